"""How a PostgreSQL is spoken to, through SQLAlchemy (`engine.py`) or without it (`light_postgres.py`). Pure.

A server that is away must be noticed in seconds: whoever waits for it holds the keys' or the incidents' thread meanwhile.
So connecting, a silent network and a lock that somebody keeps have their limits here, as a locked file has in SQLite.
"""

from __future__ import annotations

from urllib.parse import urlsplit

SCHEMES = ("postgresql+psycopg", "postgresql")
BUSY_TIMEOUT_S = 5.0
"""As of SQLite: longer than any transaction here."""

CONNECT: dict[str, int | str] = {
    "application_name": "harmonywatch",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
"""libpq's, in seconds but the last, which is in milliseconds."""

SESSION = f"SET lock_timeout = {int(BUSY_TIMEOUT_S * 1000)}"

BUSY_STATES = frozenset({"55P03", "57014", "40001", "40P01"})
"""SQLSTATE: lock not available, query cancelled, serialization failure, deadlock: time helps, and nothing was written."""

MISSING_STATES = frozenset({"42P01", "42703"})
"""Undefined table or column: the database was restored by half, or is somebody else's."""

MISSING_DRIVER = "PostgreSQL needs the extra `distributed`: pip install 'harmonywatch[distributed]'"


def is_postgres(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def where_of(url: str) -> str:
    """What names the database in an error: no user and no password."""
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


def with_driver(url: str) -> str:
    """The URL for SQLAlchemy: with our driver, whichever of SCHEMES it has."""
    return f"{SCHEMES[0]}://{url.partition('://')[2]}"


def without_driver(url: str) -> str:
    """The URL for libpq."""
    return f"postgresql://{url.partition('://')[2]}"
