"""What bounds the state: closed incidents are trimmed, listings have their indexes, alert ids age by running time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DAY_US = 86_400_000_000


def upgrade() -> None:
    op.add_column("incidents", sa.Column("trimmed", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_incidents_force_opened", "incidents", ["force", "opened_us", "incident_id"])
    op.create_index("ix_incidents_last_alert", "incidents", ["last_alert_us"])
    op.create_index("ix_incidents_changed", "incidents", ["changed_us"])
    details = sa.text("NOT trimmed")
    op.create_index("ix_incidents_closed", "incidents", ["closed_us"], sqlite_where=details, postgresql_where=details)
    op.create_table(
        "running_time",
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("ran_us", "wall_us", "hold_us")),
    )
    # the days of alert ids were days of the calendar: running time begins with the last of them, so none is forgotten early
    op.execute(
        sa.text(
            "INSERT INTO running_time (ran_us, wall_us, hold_us) "
            "SELECT coalesce(max(day), 0) * CAST(:day AS BIGINT), 0, 0 FROM seen_alerts"
        ).bindparams(day=_DAY_US)
    )
