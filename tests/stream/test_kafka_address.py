"""Where the brokers are and how to speak to them, as settings say it. Needs no broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonywatch.settings import BadSettings
from harmonywatch.stream.kafka.address import parse


def test_a_port_and_a_namespace_are_optional() -> None:
    plain = parse("kafka://one,two:9093,[::1],[::1]:9094", "", {})
    assert plain.servers == "one:9092,two:9093,[::1]:9092,[::1]:9094"
    assert (plain.outer("reports.north"), plain.inner("reports.north")) == ("reports.north", "reports.north")
    assert plain.inner("__consumer_offsets") is None
    shared = parse("kafka://one/city-1", "", {})
    assert shared.outer("reports.north") == "city-1.reports.north"
    assert shared.inner("city-1.reports.north") == "reports.north"
    assert shared.inner("city-12.reports.north") is None and shared.inner("reports.north") is None


@pytest.mark.parametrize(
    "url",
    ["kafka:one", "kafka://", "kafka://one,,two", "kafka://user:secret@one", "kafka://one/a.b", "kafka://one/a/b"],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadSettings, match=r"stream\.url"):
        parse(url, "", {})


def test_secrets_come_from_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "client"
    file.write_text("# ours\n\nsecurity.protocol = SASL_SSL\nsasl.username=hw\nsasl.password = x${PASSWORD}=y\n")
    made = parse("kafka://one", str(file), {"PASSWORD": "s3cret"})
    assert made.client == {"security.protocol": "SASL_SSL", "sasl.username": "hw", "sasl.password": "xs3cret=y"}
    assert "s3cret" not in repr(made)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("acks = 1", "line 1: 'acks' is not a setting"),
        ("sasl.username", "line 1"),
        ("\nsasl.password = ${NOWHERE}", "line 2: the environment has no NOWHERE"),
        ("enable.idempotence=false", "not a setting that can be given here"),
    ],
)
def test_what_decides_on_durability_cannot_be_given(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "client"
    file.write_text(text)
    with pytest.raises(BadSettings, match=why):
        parse("kafka://one", str(file), {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="nothing-here"):
        parse("kafka://one", str(tmp_path / "nothing-here"), {})
