"""The first schema: incidents, their occurrences, watchers and log; alerts seen, positions, and the two outboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_incidents()
    _create_parts_of_incidents()
    _create_progress()
    _create_outboxes()


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _big(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable, autoincrement=False)


def _real(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(53), nullable=False)


def _create_incidents() -> None:
    op.create_table(
        "incidents",
        *(_text(name) for name in ("incident_id", "force", "identity", "name", "rule", "state")),
        *(_big(name) for name in ("occurrences", "watchers", "opened_us", "last_seen_us", "last_alert_us")),
        *(_real(name) for name in ("lat", "lon", "harmonyscore_least")),
        _big("version"),
        sa.Column("late", sa.Boolean, nullable=False),
        _text("owner", nullable=True),
        _text("reason", nullable=True),
        _big("closed_us", nullable=True),
        _text("changed_by"),
        _big("changed_us"),
        sa.Column("current_subject", sa.LargeBinary),
        sa.PrimaryKeyConstraint("incident_id", name="pk_incidents"),
        sa.UniqueConstraint("current_subject", name="uq_incidents_current_subject"),
        sa.CheckConstraint("closed_us IS NOT NULL OR current_subject IS NOT NULL", name="ck_incidents_open_is_current"),
    )
    op.create_index("ix_incidents_opened", "incidents", ["opened_us", "incident_id"])
    still_open = sa.text("closed_us IS NULL")
    op.create_index(
        "ix_incidents_open", "incidents", ["last_alert_us"], sqlite_where=still_open, postgresql_where=still_open
    )


def _create_parts_of_incidents() -> None:
    op.create_table(
        "incident_occurrences",
        _text("incident_id"),
        _big("number"),
        sa.Column("alert", sa.LargeBinary, nullable=False),
        _text("watcher_id"),
        _text("report_id"),
        sa.Column("place", sa.Integer, nullable=False),
        *(_real(name) for name in ("harmonyscore", "lat", "lon")),
        _big("time_us"),
        _big("judged_us"),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("incident_id", "number", name="pk_incident_occurrences"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "incident_watchers",
        _text("incident_id"),
        _text("watcher_id"),
        sa.PrimaryKeyConstraint("incident_id", "watcher_id", name="pk_incident_watchers"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "incident_log",
        _text("incident_id"),
        _big("version"),
        _big("at_us"),
        *(_text(name) for name in ("kind", "state", "by", "note")),
        _text("reason", nullable=True),
        sa.PrimaryKeyConstraint("incident_id", "version", name="pk_incident_log"),
        sqlite_with_rowid=False,
    )


def _create_progress() -> None:
    op.create_table(
        "seen_alerts",
        sa.Column("day", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("alert", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("day", "alert", name="pk_seen_alerts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "alert_positions",
        _text("topic"),
        sa.Column("partition", sa.Integer, nullable=False, autoincrement=False),
        _big("position"),
        _text("stream_id"),
        sa.PrimaryKeyConstraint("topic", "partition", name="pk_alert_positions"),
    )


def _create_outboxes() -> None:
    op.create_table(
        "incident_events",
        _text("incident_id"),
        _big("version"),
        _big("occurrences"),
        _text("force"),
        sa.Column("body", sa.LargeBinary, nullable=False),
        _big("due_us"),
        sa.PrimaryKeyConstraint("incident_id", "version", "occurrences", name="pk_incident_events"),
    )
    op.create_index("ix_incident_events_due_us", "incident_events", ["due_us"])
    op.create_table(
        "notifications",
        sa.Column("serial", _SERIAL, nullable=False, autoincrement=True),
        *(_text(name) for name in ("force", "channel_id", "incident_id")),
        _big("version"),
        _text("alert_id"),
        *(_big(name) for name in ("received_us", "made_us", "due_us")),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_notifications"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notifications_due_us", "notifications", ["due_us"])
    op.create_index("uq_notifications_once", "notifications", ["incident_id", "version", "channel_id"], unique=True)
