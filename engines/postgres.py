"""PostgreSQL as Debian brings it, on a free port of the loopback, with a folder of its own that goes when it is closed.

It refuses to run as root: then it runs as the user `postgres`, which Debian's package makes, and its folder lies where
that user may go. Databases are made one for each test.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from engines.install import CannotInstall, Part, packages
from engines.process import Server, free_ports, tied

USER = "postgres"
SETTINGS = {"max_connections": "200", "unix_socket_directories": "", "log_min_messages": "warning"}


def _binaries() -> Path | None:
    """Debian keeps them outside of PATH, by version; the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


PART = Part(present=lambda: _binaries() is not None, fetch=lambda: packages("postgresql"))


class Postgres:
    """A server. `database()` makes an empty database and gives its SQLAlchemy URL; `kill` and `start` keep the data."""

    def __init__(self) -> None:
        binaries = _binaries()
        if binaries is None:
            raise CannotInstall("no PostgreSQL here: python -m engines install postgres")
        self._folder = Path(tempfile.mkdtemp(prefix="harmonywatch-postgres-"))
        self._password = secrets.token_hex(8)
        (self.port,) = free_ports(1)
        self._names = count(1)
        if os.getuid() == 0:
            shutil.chown(self._folder, USER)
        self._initialise(binaries / "initdb")
        asked = {**SETTINGS, "port": str(self.port), "listen_addresses": "127.0.0.1"}
        self.server = Server(
            [binaries / "postgres", "-D", self._data, *(f"--{name}={value}" for name, value in asked.items())],
            log=self._folder / "server.log",
            ready=self._answers,
            user=USER,
        )

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _initialise(self, initdb: Path) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password)
        secret.chmod(0o644)
        options = ["--username=harmonywatch", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8"]
        command = tied([initdb, "-D", self._data, *options, "--locale=C.UTF-8"], USER)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def _url(self, database: str, scheme: str = "postgresql") -> str:
        return f"{scheme}://harmonywatch:{self._password}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def database(self) -> str:
        """A new one, empty; `postgresql+psycopg://...`."""
        name = f"test{next(self._names)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name, "postgresql+psycopg")

    def start(self) -> None:
        self.server.start()

    def kill(self) -> None:
        """As when the machine dies under it."""
        self.server.kill()

    def close(self) -> None:
        """End it, whoever is connected, and remove all its data, which needs no last checkpoint."""
        self.server.kill()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
