"""The tables of incidents, in types that SQLite and PostgreSQL share.

Times are microseconds since 1970 in UTC. Names of citizens are clear here: officers need them live; what is kept for
ever, the lake, holds tokens. What changes these tables is a new migration beside `migrations/versions`; a test holds the
two equal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Serial = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column declared INTEGER (its integers have 64 bits all the same)."""

incidents = Table(
    "incidents",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("force", Text, nullable=False),
    Column("identity", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("occurrences", BigInteger, nullable=False),
    Column("watchers", BigInteger, nullable=False),
    Column("opened_us", BigInteger, nullable=False),
    Column("last_seen_us", BigInteger, nullable=False),
    Column("last_alert_us", BigInteger, nullable=False),
    Column("lat", Float(53), nullable=False),
    Column("lon", Float(53), nullable=False),
    Column("harmonyscore_least", Float(53), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("late", Boolean, nullable=False),
    Column("owner", Text),
    Column("reason", Text),
    Column("closed_us", BigInteger),
    Column("changed_by", Text, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    Column("current_subject", LargeBinary, unique=True),
    Column("trimmed", Boolean, nullable=False, server_default=false()),
    CheckConstraint("closed_us IS NOT NULL OR current_subject IS NOT NULL", name="open_is_current"),
    Index("ix_incidents_opened", "opened_us", "incident_id"),
    Index("ix_incidents_force_opened", "force", "opened_us", "incident_id"),
    Index("ix_incidents_last_alert", "last_alert_us"),
    Index("ix_incidents_changed", "changed_us"),
    Index(
        "ix_incidents_open",
        "last_alert_us",
        sqlite_where=text("closed_us IS NULL"),
        postgresql_where=text("closed_us IS NULL"),
    ),
    Index("ix_incidents_closed", "closed_us", sqlite_where=text("NOT trimmed"), postgresql_where=text("NOT trimmed")),
)
"""What the indexes serve: the listing (of all, of a force, since a moment), the lapse of open ones, the trimming of closed
ones; an alert finds its incident, open or just closed, by `current_subject`. `trimmed`: history, see `upkeep`.

`current_subject`: set while the incident is its subject's newest. It is unique and an open incident must have it: so
the database itself refuses a second open incident of one citizen and rule, whatever the workers do."""

incident_occurrences = Table(
    "incident_occurrences",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("alert", LargeBinary, nullable=False),
    Column("watcher_id", Text, nullable=False),
    Column("report_id", Text, nullable=False),
    Column("place", Integer, nullable=False),
    Column("harmonyscore", Float(53), nullable=False),
    Column("lat", Float(53), nullable=False),
    Column("lon", Float(53), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("judged_us", BigInteger, nullable=False),
    Column("late", Boolean, nullable=False),
    sqlite_with_rowid=False,
)
"""The last ones of each incident; the rest is in the lake."""

incident_watchers = Table(
    "incident_watchers",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("watcher_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)
"""Who saw it, so that `watchers` counts distinct ones exactly; forgotten when nothing can join the incident any more."""

incident_log = Table(
    "incident_log",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("reason", Text),
    sqlite_with_rowid=False,
)
"""One line per version: who, when, what, why. Two who make the same version from the same state cannot both commit."""

seen_alerts = Table(
    "seen_alerts",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("alert", LargeBinary, primary_key=True),
    sqlite_with_rowid=False,
)
"""Alerts counted, under the day of running time they were first handled on: forgetting a day is then one stretch of the
table, and neither needs another index on millions of rows."""

running_time = Table(
    "running_time",
    metadata,
    Column("ran_us", BigInteger, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    Column("hold_us", BigInteger, nullable=False),
)
"""One row. `ran_us`: how long dispatchers have run on this database, which no setting of a clock changes; `wall_us`: what the
clock said when that was written, 0 before the first time; `hold_us`: nothing is trimmed before so much has been run."""

alert_positions = Table(
    "alert_positions",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("stream_id", Text, nullable=False),
)

incident_events = Table(
    "incident_events",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("occurrences", BigInteger, primary_key=True, autoincrement=False),
    Column("force", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("due_us", BigInteger, nullable=False, index=True),
)
"""Events committed and not known to be on the stream. `due_us`: from when on any worker may append them."""

notifications = Table(
    "notifications",
    metadata,
    Column("serial", Serial, primary_key=True, autoincrement=True),
    Column("force", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("incident_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("alert_id", Text, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("made_us", BigInteger, nullable=False),
    Column("due_us", BigInteger, nullable=False, index=True),
    Column("tries", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("uq_notifications_once", "incident_id", "version", "channel_id", unique=True),
    sqlite_autoincrement=True,
)
"""What channels have not taken yet. `due_us`: the next try; a worker that tries moves it on first."""
