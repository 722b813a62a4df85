"""The tables of the state database, in types that SQLite and PostgreSQL share.

Times are microseconds since 1970 in UTC (no engine agrees with another about time zones), JSON is text. What changes
these tables is a new migration beside `migrations/versions`; a test holds the two equal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

Serial = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column declared INTEGER (its integers have 64 bits all the same)."""

state = Table(
    "state",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("version", BigInteger, nullable=False),
)
"""One row. Every write locks it first, so that writers come one after the other also on PostgreSQL."""

forces = Table(
    "forces",
    metadata,
    Column("name", Text, primary_key=True),
    Column("partitions", Integer, nullable=False),
    Column("alert_age_max_s", Float(53), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

watchers = Table(
    "watchers",
    metadata,
    Column("force", Text, ForeignKey(forces.c.name), primary_key=True),
    Column("watcher_id", Text, primary_key=True),
    Column("via", Text),
    Column("enrolled_us", BigInteger, nullable=False),
)

relays = Table(
    "relays",
    metadata,
    Column("force", Text, ForeignKey(forces.c.name), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("created_us", BigInteger, nullable=False),
)

officers = Table(
    "officers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("force", Text, ForeignKey(forces.c.name)),
    Column("role", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("serial", Serial, primary_key=True, autoincrement=True),
    Column("key_id", Text, nullable=False, unique=True),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("force", Text, ForeignKey(forces.c.name)),
    Column("subject", Text, nullable=False),
    Column("role", Text),
    Column("created_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
    Column("version", BigInteger, nullable=False),
    Index("ix_keys_version", "version"),
    Index("ix_keys_subject", "kind", "force", "subject"),
    sqlite_autoincrement=True,
)
"""`version`: that of the change which issued or revoked the key, so a reader asks only for what is newer."""

rules = Table(
    "rules",
    metadata,
    Column("force", Text, ForeignKey(forces.c.name), primary_key=True),
    Column("rule_id", Text, primary_key=True),
    Column("threshold", Float(53), nullable=False),
    Column("confidence_least", Float(53)),
    Column("area", Text),
    Column("words", Text),
    Column("hours", Text),
    Column("enabled", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

channels = Table(
    "channels",
    metadata,
    Column("channel_id", Text, primary_key=True),
    Column("force", Text, ForeignKey(forces.c.name), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text),
    Column("enabled", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("force", Text, index=True),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""Append-only by trigger. `force` is no foreign key: an entry outlives what it speaks of."""
