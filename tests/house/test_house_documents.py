"""What is written keeps its word: commands exist, links lead somewhere, decisions are listed, the version is told."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import reference
from housemap import ROOT, documents, markdown, short, tracked

from harmonywatch.cli import main as command_line
from harmonywatch.settings import describe

_FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_ENDS = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


def _commands(text: str) -> Iterator[list[str]]:
    """The words of every line of shell that begins with our command or make, wherever it stands in a pipe or `$( )`."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\$\(|`", line):
                yield from _calls(part)


def _calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    call: list[str] = []
    for word in [*lexer, ";"]:
        if word in _ENDS or set(word) <= set("|&;<>()"):
            if word[:1] == ">" and call and call[-1].isdigit():
                call.pop()  # of `2>`
            if call and call[0].removeprefix(".venv/bin/") in ("harmonywatch", "make"):
                yield [call[0].removeprefix(".venv/bin/"), *call[1:]]
            call = []
        else:
            call.append(word)


def _check(words: list[str]) -> None:
    """Parse a call as the command line would, without doing it. Raises click.UsageError."""
    context = click.Context(command_line, info_name="harmonywatch")
    name, *rest = words
    if name.startswith("-"):
        assert name in ("--help", "-h", "--version")
        return
    command = command_line.get_command(context, name)
    if command is None:
        raise click.UsageError(f"no command {name}")
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if {"--help", "-h"} & set(rest):
        return
    if isinstance(command, click.Group) and not command.invoke_without_command:
        raise click.UsageError(f"{name} {' '.join(rest)}: no such subcommand")
    parsed = command.make_context(name, list(rest))
    if parsed.args:
        raise click.UsageError(f"too many arguments: {parsed.args}")


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable:
            known = makefile + (ROOT / "src/harmonywatch/cli/show.py").read_text("utf-8")
            assert re.search(rf"\b{name}\b", known), f"make knows no variable {name}"
        else:
            assert re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE), f"make knows no verb {name}"


def _shown() -> list[tuple[str, list[str]]]:
    shown = [(short(path), words) for path in documents() for words in _commands(path.read_text("utf-8"))]
    for name, command in reference.commands():
        for line in map(str.strip, (command.help or "").splitlines()):
            if line.startswith("harmonywatch ") and line.count('"') % 2 == 0:
                shown += [(f"help of {name}", words) for words in _calls(line)]
    return shown


def test_every_command_shown_exists_with_those_options() -> None:
    shown = _shown()
    assert len({where for where, _ in shown}) > 5, "the search found too few documents to prove anything"
    wrong = []
    for where, words in shown:
        try:
            (_check if words[0] == "harmonywatch" else _check_make)(words[1:])
        except (click.UsageError, AssertionError) as error:
            wrong.append(f"{where}: {' '.join(words)}: {error}")
    assert wrong == []


def test_the_check_of_commands_can_fail() -> None:
    assert list(_calls("KEY=x; zcat a | harmonywatch send - --key K > out")) == [
        ["harmonywatch", "send", "-", "--key", "K"]
    ]
    for bad in ("nothing", "send", "send f --key K --nonsense", "lake nothing", "run nothing", "demo --seconds soon"):
        with pytest.raises(click.UsageError):
            _check(bad.split())


@pytest.mark.parametrize("path", markdown(), ids=short)
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for found in _LINK.finditer(text):
        target, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (path.parent / target).resolve() if target else path
        if not place.exists() or ROOT not in (place, *place.parents):
            broken.append(target)
        elif anchor and place.suffix == ".md" and anchor not in _anchors(place):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def _anchors(path: Path) -> set[str]:
    """Of a page's headings, as they are shown."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_decision_is_listed_numbered_and_dated_by_its_status() -> None:
    index = (ROOT / "docs/adr/README.md").read_text("utf-8")
    records = sorted(path for path in (ROOT / "docs/adr").glob("*.md") if path.name != "README.md")
    assert records
    for path in records:
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name), path.name
        assert f"]({path.name})" in index, f"{path.name} is not in docs/adr/README.md"
        assert path.read_text("utf-8").startswith(f"# {path.name[:4]} "), f"{path.name} begins with its number"
    numbers = [path.name[:4] for path in records]
    assert len(set(numbers)) == len(numbers)


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_the_licence_is_the_one_that_the_package_names() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license"]
    assert f"SPDX-License-Identifier: {named}" in (ROOT / "LICENSE").read_text("utf-8")


def test_the_readme_says_what_is_missing_what_it_is_and_how_to_go_on() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for target in ("docs/gaps.md", "ARCHITECTURE.md", "docs/adr/README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert f"({target})" in readme, f"README.md does not lead to {target}"
    for words in ("make demo", "make test", "satire", "Article 5"):
        assert words in readme


def test_the_readme_counts_the_saved_questions_right() -> None:
    count = len(list((ROOT / "src/harmonywatch/analysis/questions").glob("*.sql")))
    assert re.findall(r"(\d+) saved questions", (ROOT / "README.md").read_text("utf-8")) == [str(count)]


def test_settings_and_metrics_that_documents_name_exist() -> None:
    keys = describe()
    branches = "|".join({key.split(".")[0] for key in keys if "." in key})
    metrics = "".join(reference.metrics().split())
    unknown = []
    for path in documents():
        text = path.read_text("utf-8")
        named = re.findall(rf"`((?:{branches})\.[a-z_]+)`", text)
        unknown += [f"{short(path)}: {key}" for key in named if key not in keys and not key.endswith(".py")]
        unknown += [
            f"{short(path)}: {name}" for name in re.findall(r"`(harmonywatch_\w+)`", text) if name not in metrics
        ]
    assert unknown == []


def test_decisions_that_the_code_names_exist() -> None:
    named = {
        (short(path), number)
        for path in tracked()
        if path.suffix in (".py", ".sql")
        for number in re.findall(r"docs/adr/(\d{4})", path.read_text("utf-8"))
    }
    assert named
    assert [each for each in named if not list((ROOT / "docs/adr").glob(f"{each[1]}-*.md"))] == []


def test_every_document_under_docs_is_reached_from_somewhere() -> None:
    reached = {
        (path.parent / (found[1] or found[2]).partition("#")[0]).resolve()
        for path in markdown()
        for found in _LINK.finditer(path.read_text("utf-8"))
    }
    lost = [short(path) for path in documents() if ROOT / "docs" in path.parents and path.resolve() not in reached]
    assert lost == []


def test_architecture_names_files_and_tests_that_exist() -> None:
    """In ARCHITECTURE.md and the decisions, `src/...`, `tests/...` and a room's file in backticks are promises."""
    missing = []
    for path in documents():
        for name in re.findall(r"`((?:src|tests|docs|bench)/[\w./-]+)`", path.read_text("utf-8")):
            if not (ROOT / name).exists():
                missing.append(f"{short(path)}: {name}")
        for name in re.findall(r"`((?:[a-z]+/)+[a-z_]+\.(?:py|sql|txt))`", path.read_text("utf-8")):
            if not name.startswith(("src/", "tests/", "bench/")) and not (ROOT / "src/harmonywatch" / name).exists():
                missing.append(f"{short(path)}: {name}")
        for name in re.findall(r"`(test_\w+)`", path.read_text("utf-8")):
            if not any(f"def {name}(" in test.read_text("utf-8") for test in _tests()):
                missing.append(f"{short(path)}: {name}")
    assert missing == []


def _tests() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and ROOT / "tests" in path.parents]
