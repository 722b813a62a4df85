"""The shape of the code: no cycle, one importer per engine, nothing too long to be read at once."""

from __future__ import annotations

import ast
import subprocess
import sys

from housemap import ROOT, SOURCE, cycles, functions, graph, imports_of, short, sources, tracked, tree_of

FUNCTION_LINES_MAX = 60
ARGUMENTS_MAX = 8

LONG_FUNCTIONS: dict[str, str] = {}
"""`room/file.py:Class.function`: why it may be longer than FUNCTION_LINES_MAX. Empty is the best state."""

ENGINES = {
    "apsw": "stream/segment.py",
    "confluent_kafka": "stream/kafka/client.py",
    "deltalake": "archive/lake.py",
    "duckdb": "analysis/engine.py",
    "paho": "broker.py",
}

ONLY_IN = {"sqlalchemy": ("registry/", "dispatch/"), "alembic": ("registry/", "dispatch/migrations/")}

BANNED_NAMES = {"base", "common", "core", "helpers", "manager", "misc", "util", "utils"}


def test_the_search_for_cycles_finds_one() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_module_reaches_itself() -> None:
    edges = graph()
    assert len(edges) > 80, "the walk found too few modules to prove anything"
    assert cycles(edges) == [], "imports inside functions count too"


def test_the_layers_hold() -> None:
    """The contracts themselves stand in pyproject.toml."""
    ran = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " kept, 0 broken" in ran.stdout


def test_each_engine_has_one_importer() -> None:
    importers: dict[str, set[str]] = {engine: set() for engine in ENGINES}
    for path in sources():
        for name, _ in imports_of(path):
            if (engine := name.split(".")[0]) in ENGINES:
                importers[engine].add(path.relative_to(SOURCE).as_posix())
    assert importers == {engine: {place} for engine, place in ENGINES.items()}


def test_the_state_database_stays_in_its_rooms() -> None:
    strays = [
        f"{short(path)}:{line} imports {name}"
        for path in sources()
        for name, line in imports_of(path)
        if (places := ONLY_IN.get(name.split(".")[0])) and not path.relative_to(SOURCE).as_posix().startswith(places)
    ]
    assert strays == []


def test_no_function_is_longer_than_a_screen_and_a_half() -> None:
    long = {f.where: f.lines for path in sources() for f in functions(path) if f.lines > FUNCTION_LINES_MAX}
    unexplained = {where: lines for where, lines in long.items() if where not in LONG_FUNCTIONS}
    assert unexplained == {}
    assert set(LONG_FUNCTIONS) <= set(long), "an entry whose function is short, or gone, is dead"


def test_no_constructor_or_function_takes_more_than_eight_arguments() -> None:
    """Commands of the command line are the exception: there an argument is an option."""
    wide = [
        (f.where, f.arguments)
        for path in sources()
        if SOURCE / "cli" not in path.parents
        for f in functions(path)
        if f.arguments > ARGUMENTS_MAX
    ]
    assert wide == []


def test_every_source_file_says_what_it_is_for() -> None:
    silent = [short(path) for path in sources() if tree_of(path).body and ast.get_docstring(tree_of(path)) is None]
    assert silent == []


def test_no_module_is_named_after_nothing() -> None:
    named = [short(path) for path in sources() if {path.stem, *path.relative_to(SOURCE).parts} & BANNED_NAMES]
    assert named == []


def test_nothing_happens_at_import() -> None:
    """At the top of a module stand definitions and values; a bare call there is an effect."""
    effects = [
        f"{short(path)}:{node.lineno}"
        for path in sources()
        if path.stem != "__main__" and "migrations" not in path.parts and SOURCE / "cli" not in path.parents
        for node in tree_of(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    assert effects == []


def test_generated_folders_are_not_in_the_repository() -> None:
    ignored = [
        ".venv/x",
        "data/x",
        "demo-data/x",
        ".hypothesis/x",
        ".mypy_cache/x",
        ".ruff_cache/x",
        "build/x",
        "dist/x",
    ]
    ignored += [".pytest_cache/x", ".import_linter_cache/x", "src/harmonywatch/__pycache__/x.pyc"]
    asked = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.stdout.split() == ignored
    generated = [short(path) for path in tracked() if "__pycache__" in path.parts or path.suffix == ".pyc"]
    assert generated == []
