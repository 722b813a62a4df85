"""An S3 server: versitygw over a folder, in which each bucket is a folder. `kill` and `start` keep the data.

The environment it gives is what S3 clients everywhere read (AWS_...), and what `lake = "s3://bucket/lake"` needs besides.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from engines.install import DOWNLOADS, Part, go_program
from engines.process import Server, accepts, free_ports

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
PROGRAM = DOWNLOADS / "bin" / "versitygw"
PART = Part(present=PROGRAM.is_file, fetch=lambda: go_program(MODULE))
REGION = "us-east-1"


class S3:
    """A server on a free port of the loopback, with one account that may do everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._buckets = self.folder / "buckets"
        self._buckets.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self._access, self._secret = "harmonywatch", secrets.token_hex(16)
        self.server = Server(
            [PROGRAM, "--port", f"127.0.0.1:{self.port}", "--region", REGION, "posix", self._buckets],
            log=self.folder / "server.log",
            ready=lambda: accepts(self.port),
            environment={"ROOT_ACCESS_KEY": self._access, "ROOT_SECRET_KEY": self._secret},
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client of it needs to know."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self._access,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": REGION,
        }

    def bucket(self, name: str) -> str:
        """Make a bucket (3 characters or more); its URL."""
        (self._buckets / name).mkdir(exist_ok=True)
        return f"s3://{name}"

    def start(self) -> None:
        """Raises NotReady."""
        self.server.start()

    def kill(self) -> None:
        """As when the machine dies under it."""
        self.server.kill()

    def stop(self) -> None:
        self.server.stop()

    def __enter__(self) -> S3:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
