"""Defaults < file < environment < flags, origins told, unknown keys refused with the nearest known one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonywatch.settings import BadSettings, Settings, describe, flat, load


def test_each_layer_overrides_the_one_before_and_is_named_as_origin(tmp_path: Path) -> None:
    (tmp_path / "harmonywatch.toml").write_text('[gateway]\nport = 1\nhost = "127.0.0.2"\n[console]\nport = 1\n')
    environment = {"HARMONYWATCH_GATEWAY__PORT": "2", "HARMONYWATCH_ANALYSIS__THREADS": "3", "OTHER": "x"}
    settings, origins = load({"data": str(tmp_path), "gateway.port": 4, "console.port": None}, environment)
    assert (settings.gateway.port, settings.gateway.host, settings.console.port) == (4, "127.0.0.2", 1)
    assert settings.analysis.threads == 3
    assert origins["gateway.port"] == "flag"
    assert origins["analysis.threads"] == "environment"
    assert origins["console.port"] == str(tmp_path / "harmonywatch.toml")
    assert "stream.url" not in origins


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"no setting gateway\.prot \(flag\); did you mean gateway\.port"):
        load({"data": str(tmp_path), "gateway.prot": 1}, {})
    with pytest.raises(BadSettings, match=r"archive\.flush_byte .*environment.*archive\.flush_bytes"):
        load({"data": str(tmp_path)}, {"HARMONYWATCH_ARCHIVE__FLUSH_BYTE": "1"})


def test_a_value_that_does_not_fit_names_key_origin_and_value(tmp_path: Path) -> None:
    (tmp_path / "harmonywatch.toml").write_text('[gateway]\nport = "high"\n')
    with pytest.raises(BadSettings, match=r"gateway\.port \(.*harmonywatch\.toml\).*'high'"):
        load({"data": str(tmp_path)}, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GATEWAY__PORT", "70000"),
        ("GATEWAY__PORT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("GATEWAY__BEHIND_PROXY", "perhaps"),
        ("ARCHIVE__VACUUM_S", "60"),
        ("STREAM__SEGMENT_BYTES", "1.5"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, text: str, tmp_path: Path) -> None:
    key = name.lower().replace("__", ".")
    with pytest.raises(BadSettings, match=rf"{key} \(environment\): .*, not '{text}'"):
        load({"data": str(tmp_path)}, {f"HARMONYWATCH_{name}": text})


def test_text_of_the_environment_becomes_what_the_setting_is(tmp_path: Path) -> None:
    given = {"GATEWAY__BEHIND_PROXY": "true", "ARCHIVE__FLUSH_INTERVAL_S": "1", "GATEWAY__PORT": "0", "STATE": "5"}
    settings, _ = load({"data": str(tmp_path)}, {f"HARMONYWATCH_{name}": text for name, text in given.items()})
    assert settings.gateway.behind_proxy is True
    assert (settings.archive.flush_interval_s, settings.gateway.port, settings.state) == (1.0, 0, "5")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "harmonywatch.toml").write_text("[gateway\n")
    with pytest.raises(BadSettings, match=r"harmonywatch\.toml"):
        load({"data": str(tmp_path)}, {})


def test_every_setting_says_what_it_means() -> None:
    meanings = describe()
    assert meanings.keys() == flat(Settings()).keys()
    assert all(len(meaning) > 10 for meaning in meanings.values())


def test_everything_lies_below_the_data_folder_unless_a_url_says_otherwise(tmp_path: Path) -> None:
    settings, _ = load({"data": str(tmp_path)}, {})
    assert settings.stream_url == f"sqlite:{tmp_path / 'stream'}"
    assert settings.lake_url == str(tmp_path / "lake")
    assert settings.keys_folder == tmp_path / "keys"
    assert settings.state_url("registry") == f"sqlite:///{tmp_path / 'state' / 'registry.db'}"
    elsewhere, _ = load({"data": str(tmp_path), "state": "postgresql+psycopg://h/db"}, {})
    assert elsewhere.state_url("registry") == "postgresql+psycopg://h/db"
