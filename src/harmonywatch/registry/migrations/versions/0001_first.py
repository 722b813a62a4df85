"""The first schema: forces, who belongs to them, keys, rules, channels, and the audit that only grows.

There is no way down: a database is taken back by restoring a backup, never by dropping what was recorded.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_REAL = sa.Float(53)


def upgrade() -> None:
    _create_state()
    _create_members()
    _create_keys()
    _create_rules_and_channels()
    _create_audit()
    if op.get_context().dialect.name == "postgresql":
        _guard_audit_postgresql()
    else:
        _guard_audit_sqlite()


def _created() -> sa.Column[int]:
    return sa.Column("created_us", sa.BigInteger, nullable=False)


def _create_state() -> None:
    state = op.create_table(
        "state",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_state_single"),
        sa.PrimaryKeyConstraint("id", name="pk_state"),
    )
    op.bulk_insert(state, [{"id": 1, "version": 1}])


def _create_members() -> None:
    op.create_table(
        "forces",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("partitions", sa.Integer, nullable=False),
        sa.Column("alert_age_max_s", _REAL, nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("name", name="pk_forces"),
    )
    op.create_table(
        "watchers",
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_watchers_force"), nullable=False),
        sa.Column("watcher_id", sa.Text, nullable=False),
        sa.Column("via", sa.Text),
        sa.Column("enrolled_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("force", "watcher_id", name="pk_watchers"),
    )
    op.create_table(
        "relays",
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_relays_force"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("force", "name", name="pk_relays"),
    )
    op.create_table(
        "officers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_officers_force")),
        sa.Column("role", sa.Text, nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("name", name="pk_officers"),
    )


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("serial", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_keys_force")),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("role", sa.Text),
        _created(),
        sa.Column("revoked_us", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_keys"),
        sa.UniqueConstraint("key_id", name="uq_keys_key_id"),
        sa.UniqueConstraint("hash", name="uq_keys_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_keys_version", "keys", ["version"])
    op.create_index("ix_keys_subject", "keys", ["kind", "force", "subject"])


def _create_rules_and_channels() -> None:
    op.create_table(
        "rules",
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_rules_force"), nullable=False),
        sa.Column("rule_id", sa.Text, nullable=False),
        sa.Column("threshold", _REAL, nullable=False),
        sa.Column("confidence_least", _REAL),
        sa.Column("area", sa.Text),
        sa.Column("words", sa.Text),
        sa.Column("hours", sa.Text),
        sa.Column("enabled", sa.Boolean, nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("force", "rule_id", name="pk_rules"),
    )
    op.create_table(
        "channels",
        sa.Column("channel_id", sa.Text, nullable=False),
        sa.Column("force", sa.Text, sa.ForeignKey("forces.name", name="fk_channels_force"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text),
        sa.Column("enabled", sa.Boolean, nullable=False),
        _created(),
        sa.PrimaryKeyConstraint("channel_id", name="pk_channels"),
    )
    op.create_index("ix_channels_force", "channels", ["force"])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("force", sa.Text),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at_us", "audit", ["at_us"])
    op.create_index("ix_audit_force", "audit", ["force"])


_SQLITE_GUARDS = (
    "CREATE TRIGGER audit_keeps_rows BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END",
    "CREATE TRIGGER audit_keeps_all BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END",
    "CREATE TRIGGER audit_keeps_ids BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
    "BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END",
)
"""The third is for INSERT OR REPLACE, which deletes without asking a DELETE trigger."""


def _guard_audit_sqlite() -> None:
    for trigger in _SQLITE_GUARDS:
        op.execute(trigger)


def _guard_audit_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit only grows' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()"
    )
