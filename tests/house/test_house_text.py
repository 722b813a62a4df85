"""What must not stand in any file of the repository, and how tests are written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from housemap import ROOT, AnyFunction, documents, short, tracked, tree_of

HOSTS = (
    ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("maven", "org"), ("golang", "org"), ("crates", "io"),
    ("debian", "org"), ("docker", "io"), ("quay", "io"), ("ghcr", "io"), ("rubygems", "org"), ("yarnpkg", "com"),
)  # fmt: skip
REGISTRIES = re.compile("|".join(re.escape(".".join(parts)) for parts in HOSTS), re.IGNORECASE)
MACHINE = re.compile(r"(?<![\w.~<])/(?:root|work|home/\w+)/")
SCRATCH = re.compile(r"(?<![\w.])/tmp\b")
MADE_BY = re.compile(
    r"\b(?:" + "|".join(("assist" + "ants?", "chat" + "gpt", "cla" + "ude", "anthro" + "pic", "open" + "ai", "co" + "pilot"))
    + r"|large language mod" + r"els?|(?:this|previous|next|earlier|coding|last) sess" + r"ions?)\b",
    re.IGNORECASE,
)  # fmt: skip
LEFTOVERS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|TB" + r"D|X" + r"XX)\b")

WAITS = re.compile(r"_?(?:wait|until)")
"""How a function is named that waits for a condition with a deadline: it may sleep between looks, as may the body of any
`while CONDITION` (the test's own timeout is its deadline)."""

SLEEPS = {
    "tests/cluster/test_cluster_outages.py:survive": "the server stays away for a while: the outage is what is tested",
    "tests/cluster/test_cluster_pauses.py:pause": "not a wait: the moments of the pause are what is drawn",
    "tests/cluster/test_cluster_rebalances.py:rebalance": "not a wait: the moment of the change is what is drawn",
    "tests/fault/early_ack/sitecustomize.py:write": "the late commit is the fault that is injected",
    "tests/fault/storm.py:kill_in_turn": "not a wait: the moment of the kill is what is drawn",
    "tests/fleet/test_send.py:work": "the gateway stays away for a while: the outage is what is tested",
}
"""Functions that sleep for another reason, with it."""


def _found(pattern: re.Pattern[str], paths: tuple[Path, ...] | list[Path]) -> list[str]:
    return [
        f"{short(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_package_registry() -> None:
    assert len(tracked()) > 100
    assert _found(REGISTRIES, tracked()) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert _found(MACHINE, tracked()) == []
    assert _found(SCRATCH, documents()) == []


def test_the_project_speaks_of_itself_only() -> None:
    assert _found(MADE_BY, tracked()) == []


def test_nothing_is_left_for_later_in_silence() -> None:
    """What is missing stands in docs/gaps.md, where it is read."""
    assert _found(LEFTOVERS, tracked()) == []


def _test_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and ROOT / "tests" in path.parents]


def _calls(path: Path) -> Iterator[tuple[str, ast.Call, str]]:
    """Every call of a file: its name's last part, the call, the function that it stands in ("" in a polling loop)."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                name = child.func
                yield name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", ""), child, inside
            polls = isinstance(child, ast.While) and not isinstance(child.test, ast.Constant)
            yield from walk(child, "" if polls else child.name if isinstance(child, AnyFunction) else inside)

    yield from walk(tree_of(path), "")


def _is_zero(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_tests_wait_for_conditions_and_never_for_time() -> None:
    sleeping = {
        f"{short(path)}:{inside}"
        for path in _test_files()
        for name, call, inside in _calls(path)
        if name == "sleep" and not _is_zero(call) and inside and not WAITS.match(inside)
    }
    assert sleeping - SLEEPS.keys() == set()
    assert SLEEPS.keys() - sleeping == set(), "an entry that does not sleep is dead"


def test_what_is_skipped_or_expected_to_fail_says_why() -> None:
    silent = []
    for path in _test_files():
        for name, call, _ in _calls(path):
            given = {keyword.arg for keyword in call.keywords}
            texts = [
                each for each in call.args if not (isinstance(each, ast.Constant) and not isinstance(each.value, str))
            ]
            if (name == "skip" and not texts and "reason" not in given) or (name == "skipif" and "reason" not in given):
                silent.append(f"{short(path)}:{call.lineno}")
            if name == "xfail" and not {"reason", "strict"} <= given:
                silent.append(f"{short(path)}:{call.lineno}: an xfail is strict and has a reason")
        bare = re.findall(r"@pytest\.mark\.(?:skip|xfail)\s*$", path.read_text("utf-8"), re.MULTILINE)
        silent += [f"{short(path)}: {mark}" for mark in bare]
    assert silent == []
