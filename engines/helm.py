"""Helm, to render the chart. It needs no cluster, and none is here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from engines.install import DOWNLOADS, Part, go_program

MODULE = "helm.sh/helm/v3/cmd/helm@v3.19.0"
PROGRAM = DOWNLOADS / "bin" / "helm"
PART = Part(present=PROGRAM.is_file, fetch=lambda: go_program(MODULE))


class NotRendered(Exception):
    """What Helm says is wrong with chart or values."""


def render(chart: Path, values: Mapping[str, Any], release: str = "night") -> list[dict[str, Any]]:
    """The objects that an installation with these values would make. Raises NotRendered."""
    done = subprocess.run(
        [PROGRAM, "template", release, chart, "--values", "-"],
        input=yaml.safe_dump(dict(values)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NotRendered(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]
