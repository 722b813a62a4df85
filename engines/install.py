"""What the engines need and this machine lacks: Debian packages where we are root, Java archives through Maven, programs
through Go. An engine adds itself to `PARTS`; a part that is there costs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOWNLOADS = ROOT / ".engines"
HERE = ROOT / "engines"


class CannotInstall(Exception):
    """Something is missing that only the operator can bring; the message says what."""


@dataclass(frozen=True, slots=True)
class Part:
    """`present`: whether it is there; `fetch`: bring it, raises CannotInstall or CalledProcessError."""

    present: Callable[[], bool]
    fetch: Callable[[], None]


def packages(*names: str) -> None:
    """Debian packages by apt."""
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise CannotInstall(f"install the packages {' '.join(names)} (Debian's names) and run this again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], environment)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *names], environment)


def program(name: str, *debian: str) -> str:
    """The path of a program, installed by the named packages if it is missing."""
    if shutil.which(name) is None:
        packages(*debian)
    found = shutil.which(name)
    if found is None:
        raise CannotInstall(f"{' '.join(debian)} brought no program {name}")
    return found


def jars(pom: str, target: Path) -> None:
    """All archives that `engines/POM` asks for, into the folder `target`; whole or not at all."""
    program("java", "default-jre-headless")
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    maven = program("mvn", "maven")
    run([maven, "-q", "-B", "-f", str(HERE / pom), "dependency:copy-dependencies", f"-DoutputDirectory={draft}"])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)


def go_program(module: str) -> None:
    """`go install` of a module with its version, into `.engines/bin`."""
    go = program("go", "golang-go")
    run([go, "install", module], {**os.environ, "GOBIN": str(DOWNLOADS / "bin")})


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment)


def parts() -> dict[str, Part]:
    """Every engine's part, by name."""
    from engines import helm, kafka, mosquitto, postgres, s3, spark

    found = {"helm": helm, "kafka": kafka, "mosquitto": mosquitto, "postgres": postgres, "s3": s3, "spark": spark}
    return {name: module.PART for name, module in found.items()}


def missing(names: Sequence[str] = ()) -> list[str]:
    """Which of the parts (default: all) are not there. Raises KeyError for a name that is none."""
    known = parts()
    return [name for name in names or known if not known[name].present()]


def install(names: Sequence[str] = ()) -> list[str]:
    """Fetch what is missing; what was fetched."""
    fetched = missing(names)
    for name in fetched:
        parts()[name].fetch()
    return fetched
