"""`make release`: what a release is made of, into dist/: wheel, sdist, SBOM (CycloneDX), notices, checksums.

Nothing is fetched: the wheel is built by the environment's own hatchling, the bill of materials is that of the environment,
which requirements.lock fixed. The notices name what the wheel needs at run time, with versions and licences; the texts come
with the packages themselves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
EXTRAS = ("distributed",)


def make(out: Path) -> list[Path]:
    """Build all parts into the folder `out`; the files. Raises CalledProcessError."""
    out.mkdir(parents=True, exist_ok=True)
    build: list[str | Path] = [
        BIN / "uv",
        "build",
        "--quiet",
        "--offline",
        "--no-build-isolation",
        "--out-dir",
        out,
        ROOT,
    ]
    subprocess.run(build, check=True)
    (wheel,) = out.glob("*.whl")
    version = wheel.name.split("-")[1]
    bill = out / f"harmonywatch-{version}.cdx.json"
    sbom: list[str | Path] = [BIN / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", "-o", bill]
    subprocess.run([*sbom, "--pyproject", ROOT / "pyproject.toml", sys.executable], check=True, capture_output=True)
    notices = out / f"harmonywatch-{version}-notices.txt"
    notices.write_text("".join(f"{line}\n" for line in notice(bill)))
    parts = [*sorted(out.glob(f"harmonywatch-{version}*"))]
    sums = out / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts))
    return [*parts, sums]


def notice(bill: Path) -> Iterator[str]:
    """A line for each package that runs with ours: name, version, licence."""
    licences = {plain(part["name"]): licence_of(part) for part in json.loads(bill.read_text())["components"]}
    yield "harmonywatch is made of its own code and, at run time, of these packages:"
    yield ""
    for name, found in sorted(needed().items()):
        yield f"{name} {found.version}: {licences.get(name) or 'see its own metadata'}"


def needed() -> dict[str, Distribution]:
    """Every distribution that the wheel and its extras in EXTRAS need to run here, by plain name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in EXTRAS for text in project["optional-dependencies"][extra])]
    found: dict[str, Distribution] = {}
    seen: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        name = plain(requirement.name)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        for text in found[name].requires or []:
            wanted = Requirement(text).marker
            if wanted is None or any(wanted.evaluate({"extra": each}) for each in ("", *requirement.extras)):
                asked.append(text)
    return found


def licence_of(part: dict[str, list[dict[str, object]]]) -> str:
    """As the bill of materials has it: an expression, or names."""
    said = []
    for each in part.get("licenses", []):
        licence = each.get("license")
        said.append(
            str(licence.get("id") or licence.get("name")) if isinstance(licence, dict) else str(each["expression"])
        )
    return ", ".join(dict.fromkeys(said))


def plain(name: str) -> str:
    """One spelling for every way to write a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the parts (default: dist)")
    for part in make(parser.parse_args().out):
        print(f"{part.stat().st_size:>10,}  {part}")  # noqa: T201


if __name__ == "__main__":
    main()
