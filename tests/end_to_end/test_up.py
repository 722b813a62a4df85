"""`up` as an operator meets it: first start, second start, stopping, commands beside it, and where it may listen."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from figures import Tell
from running_system import SERVICES, System, clean_environment, made, report, wait_for


def test_an_existing_folder_needs_no_set_up_and_keeps_what_it_had(folder_system: System, tell: Tell) -> None:
    system = folder_system
    key = system.add_force("north")  # before `up` ever ran
    assert system.query("select count(*) as n from reports") == [{"n": 0}]
    assert system.run("alerts") == system.run("incidents") == []
    system.start()
    assert system.services().keys() == set(SERVICES)
    assert system.post(key, report("w", 4.0, "Nora Loud", sequence=1)).status == 202
    wait_for("the alert", lambda: system.run("alerts"), 10)
    took = [system.stop()]
    assert len(system.run("alerts")) == 1, "commands work after `up` too"
    system.start()
    assert system.post(key, report("w", 4.0, "Nora Loud", sequence=2)).status == 202
    wait_for("both alerts", lambda: len(system.run("alerts")) == 2, 10)
    (incident,) = system.run("incidents")
    assert incident["occurrences"] == 2
    system.wait_archived("north", 2)
    took.append(system.stop())
    assert system.query("select count(*) as n from reports") == [{"n": 2}]
    tell(f"up stopped after {took[0]:.2f} s and {took[1]:.2f} s")


def test_stopping_under_load_answers_what_it_took(folder_system: System) -> None:
    """A report that was accepted just before SIGTERM is in the archive of the next `up`."""
    system = folder_system
    key = system.add_force("north")
    system.start()
    accepted = sum(system.post(key, report("w", sequence=number)).status == 202 for number in range(50))
    system.stop()
    assert accepted == 50
    system.start()
    row = system.wait_archived("north", 50)
    assert row["accepted"] == row["stored"] == 50
    system.stop()


def test_two_gateways_share_a_port_and_everything_is_stored_once(tmp_path: Path) -> None:
    with made(tmp_path / "data", options=("--copies", "gateway=2")) as system:
        key = system.add_force("north")
        system.start()
        assert {"gateway:1", "gateway:2"} < system.services().keys()
        statuses = [system.post(key, report("w", sequence=number)).status for number in range(60)]
        assert statuses == [202] * 60
        row = system.wait_archived("north", 60)
        assert (row["accepted"], row["stored"]) == (60, 60)
        took_part = [name for name in ("gateway:1", "gateway:2") if f'"service": "{name}"' in system.log_end(1 << 20)]
        assert took_part == ["gateway:1", "gateway:2"]
        system.kill("gateway:1")
        assert system.post(key, report("w", sequence=100)).status == 202, "the other one holds the port"
        system.stop()


@pytest.mark.parametrize("service", ["gateway", "archive"])
def test_a_second_process_of_a_service_is_refused(system: System, service: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harmonywatch", "run", service, "--data", str(system.folder)],
        capture_output=True, text=True, timeout=20, env=clean_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "already" in done.stderr and str(system.folder) in done.stderr


def test_the_embedded_stream_has_one_worker_of_a_group(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harmonywatch", "run", "archive:2", "--data", str(tmp_path)],
        capture_output=True, text=True, timeout=20, env=clean_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "kafka://" in done.stderr


def test_a_second_up_on_the_same_folder_is_refused(system: System) -> None:
    second = System(system.folder)
    done = subprocess.run(second.up_command(), capture_output=True, text=True, timeout=20, env=clean_environment())
    assert done.returncode != 0
    assert "another" in done.stderr and str(system.folder) in done.stderr
    assert system.is_ready(), "the first one is not disturbed"


@pytest.mark.parametrize("door", ["gateway", "console"])
def test_an_address_for_others_is_refused_without_tls(tmp_path: Path, door: str) -> None:
    with made(tmp_path / "data", options=[f"--{door}-host", "0.0.0.0"]) as system:
        done = subprocess.run(system.up_command(), capture_output=True, text=True, timeout=20, env=clean_environment())
    assert done.returncode == 2
    assert "--tls-cert" in done.stderr


def test_tls_at_both_doors(tmp_path: Path) -> None:
    cert, key_file = certificate(tmp_path)
    options = ["--tls-cert", str(cert), "--tls-key", str(key_file), "--gateway-host", "0.0.0.0"]
    with made(tmp_path / "data", options=options, ca=cert) as system:
        key = system.add_force("north")
        system.start()
        assert system.post(key, report("w", 3.0, sequence=1)).status == 202
        file = tmp_path / "one.ndjson"
        file.write_text('{"watcher_id":"w","location":{"lat":1,"lon":2},"citizens":[],"words":[]}\n')
        verdicts = system.run("send", str(file), "--key", key, "--to", system.url, "--ca", str(cert))
        assert [row["status"] for row in verdicts] == ["accepted"]
        wait_for("the alert", lambda: system.run("alerts"), 10)
        system.stop()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own signing for localhost, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return cert_file, key_file
