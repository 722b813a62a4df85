"""A broker behind TLS with a password, reached by what `stream.client_file` says, and by nothing less."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.kafka import Cluster
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import StreamError
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and the same with its key as the broker wants it."""
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    both.write_text(key.read_text() + certificate.read_text())
    return certificate, both


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    folder = tmp_path_factory.mktemp("guarded")
    trusted, both = certificate(folder)
    secured = {
        "listener.security.protocol.map": "PLAIN:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plain.plain.sasl.jaas.config": f'{PLAIN} required username="broker" password="b" '
        'user_broker="b" user_harmonywatch="s3cret";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
        "ssl.client.auth": "none",
    }
    with Cluster(folder / "kafka", properties=secured) as cluster:
        yield cluster, trusted


def opened(cluster: Cluster, folder: Path, *lines: str) -> KafkaStream:
    file = folder / "client"
    file.write_text("\n".join(lines))
    return KafkaStream(parse(cluster.url, str(file), {"KAFKA_PASSWORD": "s3cret"}), StreamSettings(replicas=1))


def test_with_certificate_and_password_everything_works(guarded: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, trusted = guarded
    lines = (
        "security.protocol = SASL_SSL",
        f"ssl.ca.location = {trusted}",
        "sasl.mechanism = PLAIN",
        "sasl.username = harmonywatch",
        "sasl.password = ${KAFKA_PASSWORD}",
    )
    stream = opened(cluster, tmp_path, *lines)
    stream.create_topic("reports.north", 1)
    stream.append("reports.north", {0: [b"a"]})
    reader = stream.reader("reports.", group="archive")
    assert [batch.values for batch in reader.poll(10.0)] == [[b"a"]]
    assert stream.committed("archive", "reports.north") == {}
    stream.close()


def test_with_a_wrong_password_nothing_opens_and_it_says_why(guarded: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, trusted = guarded
    lines = ["security.protocol = SASL_SSL", f"ssl.ca.location = {trusted}", "sasl.mechanism = PLAIN"]
    with pytest.raises(StreamError, match=r"(?i)authentication"):
        opened(cluster, tmp_path, *lines, "sasl.username = harmonywatch", "sasl.password = wrong")


def test_a_certificate_that_nobody_vouches_for_is_not_believed(guarded: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, _ = guarded
    lines = ("security.protocol = SASL_SSL", "sasl.mechanism = PLAIN", "sasl.username = harmonywatch")
    with pytest.raises(StreamError, match="certificate verify failed"):
        opened(cluster, tmp_path, *lines, "sasl.password = ${KAFKA_PASSWORD}")
