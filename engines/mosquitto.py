"""Mosquitto, as docs/how-to/mqtt.md sets it up: a listener for the service, and one for each force with its own passwords
and access list, so that a watcher can publish as itself and for its force only.

Its own process on free ports of the loopback; the service that the package brings is never touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from engines.install import Part, packages
from engines.process import Server, accepts, free_ports

PART = Part(present=lambda: shutil.which("mosquitto") is not None, fetch=lambda: packages("mosquitto"))

SERVICE, SERVICE_PASSWORD = "harmonywatch", "of-the-service"
AUTOSAVE_S = 2
PACKET_BYTES_MAX = 1_200_000

BROKER = """\
user {user}
per_listener_settings true
persistence true
persistence_location {folder}/
autosave_interval {autosave_s}
max_inflight_messages 256
max_queued_messages 0
max_packet_size {packet_bytes_max}
set_tcp_nodelay true
"""
LISTENER = """
listener {port} 127.0.0.1
allow_anonymous false
password_file {folder}/{name}.passwords
acl_file {folder}/{name}.acl
"""
TLS = """cafile {ca}
certfile {ca}
keyfile {key}
"""
SERVICE_ACL = """\
user {user}
topic read forces/#
"""
FORCE_ACL = """\
pattern write forces/{force}/watchers/%u/reports
pattern write forces/{force}/watchers/%u/state
"""
BASE_ACL = """
user {user}
topic write forces/{force}/watchers/+/reports
topic write forces/{force}/watchers/+/state
"""


class Mosquitto:
    """A broker with a listener for the service (`port`) and one for each force (`ports`).

    `watchers`, `bases`: user names by force; the password of `name` is `of-name`. A base may publish for every watcher of
    its force. `tls`: PEM files of a certificate for `localhost` and its key, for the service's listener. `kill` and `start`
    keep the data.
    """

    def __init__(
        self,
        folder: Path,
        watchers: Mapping[str, Sequence[str]],
        bases: Mapping[str, Sequence[str]] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        forces = sorted({*watchers, *(bases or {})})
        self.port, *others = free_ports(1 + len(forces))
        self.ports = dict(zip(forces, others, strict=True))
        self._watchers, self._bases, self._tls = watchers, bases or {}, tls
        self.server = Server(
            ["mosquitto", "-c", self.folder / "mosquitto.conf"],
            log=self.folder / "broker.log",
            ready=lambda: all(accepts(port) for port in (self.port, *self.ports.values())),
            deadline_s=20,
        )

    @property
    def url(self) -> str:
        """Where the service goes."""
        return f"mqtts://localhost:{self.port}" if self._tls else f"mqtt://127.0.0.1:{self.port}"

    def url_of(self, force: str) -> str:
        """Where the watchers of a force go."""
        return f"mqtt://127.0.0.1:{self.ports[force]}"

    def password_file(self) -> Path:
        """With the service's password, as the setting `mqtt.password_file` wants it."""
        path = self.folder / "service.password"
        path.write_text(SERVICE_PASSWORD + "\n")
        return path

    def start(self) -> None:
        """Raises NotReady."""
        if not (self.folder / "mosquitto.conf").exists():
            self._write()
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()

    def save(self) -> None:
        """Have the sessions and what waits in them written to disk now."""
        os.kill(self.server.pid, signal.SIGUSR1)

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        user = (
            "root" if os.getuid() == 0 else "mosquitto"
        )  # as root it would become a user that cannot enter the folder
        parts = [
            BROKER.format(user=user, folder=self.folder, autosave_s=AUTOSAVE_S, packet_bytes_max=PACKET_BYTES_MAX),
            self._listener(self.port, "service", {SERVICE: SERVICE_PASSWORD}, SERVICE_ACL.format(user=SERVICE)),
            TLS.format(ca=self._tls[0], key=self._tls[1]) if self._tls else "",
        ]
        for force, port in self.ports.items():
            bases = self._bases.get(force, ())
            users = {name: password_of(name) for name in (*self._watchers.get(force, ()), *bases)}
            acl = FORCE_ACL.format(force=force) + "".join(BASE_ACL.format(user=base, force=force) for base in bases)
            parts.append(self._listener(port, force, users, acl))
        (self.folder / "mosquitto.conf").write_text("".join(parts))

    def _listener(self, port: int, name: str, users: Mapping[str, str], acl: str) -> str:
        (self.folder / f"{name}.acl").write_text(acl)
        passwords = self.folder / f"{name}.passwords"
        passwords.write_text("".join(f"{user}:{password}\n" for user, password in users.items()))
        passwords.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)  # plain ones become hashes
        return LISTENER.format(port=port, folder=self.folder, name=name)


def password_of(user: str) -> str:
    """The password of a watcher or base."""
    return f"of-{user}"
