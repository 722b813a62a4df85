"""Brings a state database to this program's schema: from nothing, from an older one, or not at all if it is there.

1. Look, without a lock on writing: at the head already? Then nothing more happens (and alembic is never imported: it
   costs more than opening the database). 2. Take the lock of migrations and look again: another process may have been
   faster. 3. Run the missing steps in that one transaction. A crash before its end leaves the old schema, whole.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, column, inspect, select, table

from harmonywatch.registry.contract import SchemaTooNew
from harmonywatch.registry.engine import migrating, reading
from harmonywatch.registry.migrations import SCHEMA_HEAD

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"


def migrate(
    engine: Engine, head: str = SCHEMA_HEAD, folder: Path = MIGRATIONS, version_table: str = VERSION_TABLE
) -> None:
    """Bring the database to revision `head` of the steps in `folder`. Any number of processes may call it at once.

    `version_table`: where the revision stands; each set of steps that shares a database has its own.
    Raises SchemaTooNew, RegistryBusy, RegistryBroken.
    """
    with reading(engine) as connection:
        revision = _revision(connection, version_table)
    if revision == head:
        return
    with migrating(engine) as connection:
        if _revision(connection, version_table) != head:
            _upgrade(connection, head, folder, version_table)


def _revision(connection: Connection, version_table: str) -> str | None:
    if not inspect(connection).has_table(version_table):
        return None
    found = connection.execute(select(column("version_num")).select_from(table(version_table))).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, head: str, folder: Path, version_table: str) -> None:
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
        environment.configure(connection=connection, transaction_per_migration=False, version_table=version_table)
        try:
            environment.run_migrations()
        except (CommandError, ResolutionError) as error:
            found = _revision(connection, version_table)
            raise SchemaTooNew(str(connection.engine.url.database), str(found)) from error
