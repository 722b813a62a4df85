"""Which data folder a command means, what it does about one that is not there, and with which status it ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harmonywatch.cli import main

READING = (
    ("alerts",),
    ("incidents",),
    ("incidents", "show", "i1"),
    ("incidents", "acknowledge", "i1"),
    ("query", "select 1"),
    ("ask", "alerts-by-hour"),
    ("audit",),
    ("force", "list"),
    ("relay", "add", "base"),
    ("relay", "list"),
    ("watcher", "list"),
    ("officer", "list"),
    ("rule", "list"),
    ("channel", "list"),
    ("lake", "verify"),
    ("lake", "compact"),
    ("rejects", "list"),
    ("rejects", "show", "r1"),
    ("status",),
    ("doctor",),
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_misspelt_folder_is_said_so_and_not_made(arguments: tuple[str, ...], tmp_path: Path) -> None:
    missing = tmp_path / "dta"
    done = run(*arguments, "--data", str(missing))
    assert done.exit_code == 2
    assert f"nothing here: {missing} holds no harmonywatch data" in done.stderr
    assert f"harmonywatch up --data {missing}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = run("alerts", "--data", str(tmp_path))
    assert done.exit_code == 2
    assert "nothing here" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_empty_folder_needs_no_set_up(tmp_path: Path) -> None:
    for arguments in (("alerts",), ("incidents",), ("lake", "verify"), ("status", "--seconds", "0")):
        folder = tmp_path / arguments[0]
        folder.mkdir()
        done = run(*arguments, "--data", str(folder))
        assert done.exit_code == 0, done.stderr


def test_a_force_may_be_the_first_thing_in_a_folder(tmp_path: Path) -> None:
    assert run("force", "add", "north", "--data", str(tmp_path / "new" / "data")).exit_code == 0
    assert run("force", "list", "--data", str(tmp_path / "new" / "data")).exit_code == 0


def test_a_group_s_options_count_for_its_subcommands_and_the_inner_ones_win(tmp_path: Path) -> None:
    folder, wrong = tmp_path / "data", tmp_path / "wrong"
    for name in ("north", "south"):
        assert run("force", "add", name, "--data", str(folder)).exit_code == 0
    for arguments in (
        ("incidents", "--data", str(folder), "acknowledge", "i1"),
        ("incidents", "--data", str(wrong), "acknowledge", "i1", "--data", str(folder)),
        ("incidents", "acknowledge", "i1", "--data", str(folder)),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert "no incident 'i1'" in done.stderr, arguments
    outer = run("incidents", "--data", str(folder), "--force", "nort", "show", "i1")
    assert "did you mean north" in outer.stderr
    inner = run("incidents", "--data", str(folder), "--force", "nort", "show", "i1", "--force", "north")
    assert "no incident 'i1'" in inner.stderr
    assert not wrong.exists()


def unanswered() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_what_could_not_be_sent_is_2(tmp_path: Path) -> None:
    file = tmp_path / "one.ndjson"
    file.write_text("{}\n")
    for url in (unanswered(), "ftp://nowhere"):
        nobody = run("send", str(file), "--key", "k", "--to", url, "--give-up", "0.2", "--data", str(tmp_path))
        assert nobody.exit_code == 2, nobody.stderr
    missing = run("send", str(tmp_path / "none"), "--key", "k", "--to", unanswered(), "--data", str(tmp_path))
    assert missing.exit_code == 2
    assert str(tmp_path / "none") in missing.stderr
    assert run("send", str(file), "--data", str(tmp_path)).exit_code == 2, "no key is misuse"


def test_an_answer_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    run("force", "add", "north", "--data", str(tmp_path / "data"))
    nowhere = tmp_path / "no" / "where.csv"
    done = run("query", "select 1 as n", "--out", str(nowhere), "--data", str(tmp_path / "data"))
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [f"harmonywatch: {nowhere}: No such file or directory"]


@pytest.mark.parametrize(("command", "argument"), [("send", "reports.ndjson"), ("fleet", "--seconds=1")])
def test_a_mistyped_folder_does_not_send_to_whoever_listens(tmp_path: Path, command: str, argument: str) -> None:
    report = b'{"watcher_id":"w","location":{"lat":1,"lon":2},"citizens":[],"words":[]}\n'
    (tmp_path / "reports.ndjson").write_bytes(report)
    named = str(tmp_path / argument) if command == "send" else argument
    done = run(command, named, "--key", "north=k", "--data", str(tmp_path / "dta"))
    assert done.exit_code == 2
    assert "nothing here" in done.output
    assert not (tmp_path / "dta").exists()


def test_up_says_at_once_that_a_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("up", "--data", str(tmp_path / "data"), "--gateway-port", str(port), "--console-port", "0")
    assert done.exit_code == 2
    assert f"127.0.0.1:{port}" in done.output and "--gateway-port" in done.output
