"""Settings and metrics: each one is used. That each is documented, test_house_reference.py holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from housemap import SOURCE, sources, tree_of

from harmonywatch.settings import Branch, Settings, describe
from harmonywatch.telemetry import Telemetry

DOORS = {"gateway", "console"}


def _attributes(tree: ast.AST) -> set[tuple[str, str]]:
    """(what stands before the dot, what after it) of every attribute that is read: `x.gateway.port` gives (gateway, port),
    and so does `door = x.gateway` with `door.port`."""
    aliases = {
        target.id: node.value.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return set(_pairs(tree, aliases))


def _pairs(tree: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            before = node.value
            if isinstance(before, ast.Name):
                yield before.id, node.attr
                if before.id in aliases:
                    yield aliases[before.id], node.attr
            elif isinstance(before, ast.Attribute):
                yield before.attr.lstrip("_"), node.attr


def _reads() -> tuple[set[tuple[str, str]], dict[str, set[str]]]:
    """Every (before, attribute) of the source but settings.py; and by branch class, what is read where it is named."""
    pairs: set[tuple[str, str]] = set()
    by_class: dict[str, set[str]] = {}
    for path in sources():
        if path == SOURCE / "settings.py":
            continue
        found = _attributes(tree_of(path))
        pairs |= found
        for name in re.findall(r"\b[A-Z]\w+Settings\b", path.read_text("utf-8")):
            by_class.setdefault(name, set()).update(attribute for _, attribute in found)
    return pairs, by_class


def test_every_setting_is_read_somewhere() -> None:
    pairs, by_class = _reads()
    own = _attributes(tree_of(SOURCE / "settings.py"))
    dead = []
    for key in describe():
        *branches, field = key.split(".")
        if not branches:
            read = ("self", field) in own or ("settings", field) in pairs
        else:
            kind = type(getattr(Settings(), branches[0])).__name__
            read = (branches[0], field) in pairs | own or field in by_class.get(kind, set())
            read = read or (branches[0] in DOORS and field in by_class.get("DoorSettings", set()))
        if not read:
            dead.append(key)
    assert dead == []


def test_every_setting_says_what_it_means_and_in_which_unit() -> None:
    for key, text in describe().items():
        assert text, key
        if key.endswith("_s"):
            assert "second" in text or "long" in text, f"{key}: its unit is not said"
        if key.endswith("_bytes") or "_bytes_" in key:
            assert "bytes" in text or "size" in text, f"{key}: its unit is not said"


def test_every_branch_of_the_settings_is_frozen_and_closed() -> None:
    branches = [value for value in vars(Settings()).values() if isinstance(value, Branch)]
    assert len(branches) > 5
    every: list[Any] = [Settings(), *branches]
    for branch in every:
        with pytest.raises(FrozenInstanceError):
            setattr(branch, next(iter(vars(branch))), "other")
        with pytest.raises(TypeError):
            type(branch)(nonsense=1)


def _metrics() -> list[str]:
    """The fields of Telemetry that are metrics."""
    return [field for field, metric in vars(Telemetry("test")).items() if hasattr(metric, "_labelnames")]


def test_every_metric_is_used() -> None:
    used = {attribute for path in sources() if path.stem != "telemetry" for _, attribute in _attributes(tree_of(path))}
    assert len(_metrics()) > 10
    assert {field for field in _metrics() if field not in used} == set()


def test_metrics_are_declared_in_one_place() -> None:
    strays = [
        str(path.relative_to(SOURCE))
        for path in sources()
        if path.stem != "telemetry"
        and re.search(r"\b(Counter|Gauge|Histogram|Summary)\(\s*[\"']", path.read_text("utf-8"))
    ]
    assert strays == []
