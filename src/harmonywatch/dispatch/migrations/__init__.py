"""The steps from one schema of the incidents to the next; `registry.migrate` applies them."""

from pathlib import Path

INCIDENTS_HEAD = "0002"
"""The last step. A constant, so that finding a database up to date needs no reading of the steps."""

INCIDENTS_VERSION_TABLE = "incidents_alembic_version"
"""Its own, because on a server incidents and registry share one database and each has its own steps."""

MIGRATIONS = Path(__file__).parent
