"""Brings a state database to this program's schema: from nothing, from an older one, or not at all if it is there.

1. Look, without a lock on writing: at the head already? Then nothing more happens (and alembic is never imported: it
   costs more than opening the database). 2. Take the lock of migrations and look again: another process may have been
   faster. 3. Run the missing steps in that one transaction. A crash before its end leaves the old schema, whole.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from harmonywatch.registry.contract import SchemaTooNew
from harmonywatch.registry.engine import migrating, reading
from harmonywatch.registry.migrations import SCHEMA_HEAD

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(engine: Engine, head: str = SCHEMA_HEAD, folder: Path = MIGRATIONS) -> None:
    """Bring the database to revision `head` of the steps in `folder`. Any number of processes may call it at once.

    Raises SchemaTooNew, RegistryBusy, RegistryBroken.
    """
    with reading(engine) as connection:
        revision = _revision(connection)
    if revision == head:
        return
    with migrating(engine) as connection:
        if _revision(connection) != head:
            _upgrade(connection, head, folder)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, head: str, folder: Path) -> None:
    from alembic.config import Config  # here, because a database at its head never needs it
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.script.revision import ResolutionError
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, script, fn=lambda revision, _context: script._upgrade_revs(head, revision)
    ) as environment:
        environment.configure(connection=connection, transaction_per_migration=False)
        try:
            environment.run_migrations()
        except (CommandError, ResolutionError) as error:
            found = _revision(connection)
            raise SchemaTooNew(str(connection.engine.url.database), str(found)) from error
