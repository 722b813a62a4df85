"""What Helm makes of the chart: objects that Kubernetes 1.34 takes, whose parts fit together. Nothing is run.

Two installations: with everything the chart brings along, and with everything brought by the site.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engines.helm import NotRendered, render
from harmonywatch.archive.sealing import open_sealer

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "harmonywatch"
KUBERNETES = "1.34"
CUSTOM = ("PodMonitor", "PrometheusRule")
"""The Prometheus operator's, in no schema of Kubernetes; their shape is looked at below."""

Object = dict[str, Any]

MORE = {
    "monitoring": {"enabled": True},
    "ingress": {"enabled": True, "className": "nginx"},
    "mqttUrl": "mqtts://broker:8883",
    "mqttSecret": "harmonywatch-mqtt",
    "settings": {"HARMONYWATCH_ARCHIVE__FLUSH_INTERVAL_S": "10"},
}
INSTALLATIONS = {
    "engines": {**MORE, "kafkaClusterId": "AAAAAAAAAAAAAAAAAAAAAA"},
    "site": {
        **MORE,
        "engines": False,
        "streamUrl": "kafka://kafka-1:9092",
        "stateSecret": "site-state",
        "s3": {"endpoint": "https://s3.example", "region": "eu-west-3", "secret": "site-s3"},
    },
}
SECRETS = {
    "engines": {"harmonywatch-keys", "harmonywatch-tls", "harmonywatch-mqtt"},
    "site": {"harmonywatch-keys", "harmonywatch-tls", "harmonywatch-mqtt", "site-state", "site-s3"},
}
"""What the site makes beforehand: the values name it."""


@cache
def rendered(name: str) -> tuple[Object, ...]:
    return tuple(render(CHART, INSTALLATIONS[name]))


def objects(name: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(name) if each["kind"] in kinds]


def pods(name: str) -> Iterator[tuple[str, Object]]:
    """Every pod template, with the name of what makes it."""
    for each in objects(name, "Deployment", "StatefulSet"):
        yield each["metadata"]["name"], each["spec"]["template"]
    for each in objects(name, "CronJob"):
        yield each["metadata"]["name"], each["spec"]["jobTemplate"]["spec"]["template"]


def labels(pod: Object) -> dict[str, str]:
    found: dict[str, str] = pod.get("metadata", {}).get("labels", {})
    return found


def containers(name: str) -> Iterator[tuple[str, Object]]:
    for maker, pod in pods(name):
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            yield maker, container


both = pytest.mark.parametrize("name", INSTALLATIONS)


@both
def test_kubernetes_takes_every_object(name: str) -> None:
    kinds = {each["kind"] for each in rendered(name)}
    assert {"Deployment", "Service", "CronJob", "Ingress", "ConfigMap", *CUSTOM} <= kinds
    assert ("StatefulSet" in kinds) == ("Secret" in kinds) == (name == "engines")
    for each in rendered(name):
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    places = [(each["kind"], each["metadata"]["name"]) for each in rendered(name)]
    assert len(places) == len(set(places))


def test_an_object_that_is_wrong_would_be_seen() -> None:
    (service, *_) = objects("engines", "Service")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {"port": 1}}, KUBERNETES, strict=True)


@both
def test_probes_ask_ports_that_their_container_has(name: str) -> None:
    probed = 0
    for maker, container in containers(name):
        named = {port["name"] for port in container.get("ports", [])}
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container.get(probe, {})
            port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
            assert port is None or port in named, (maker, probe)
            probed += port is not None
    assert probed >= 12


@both
def test_services_and_ingress_reach_pods_that_are_there(name: str) -> None:
    ports: dict[str, set[int]] = {}
    for service in objects(name, "Service"):
        wanted = service["spec"]["selector"].items()
        found = [pod for _, pod in pods(name) if wanted <= labels(pod).items()]
        assert len(found) == 1, service["metadata"]["name"]
        has = [port for container in found[0]["spec"]["containers"] for port in container["ports"]]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert target in {each["name"] for each in has} | {each["containerPort"] for each in has}
            ports.setdefault(service["metadata"]["name"], set()).add(port["port"])
    (ingress,) = objects(name, "Ingress")
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["port"]["number"] in ports[backend["name"]]


@both
def test_selectors_choose_their_own_pods(name: str) -> None:
    for each in objects(name, "Deployment", "StatefulSet"):
        chosen = each["spec"]["selector"]["matchLabels"].items()
        assert chosen <= each["spec"]["template"]["metadata"]["labels"].items()
        others = [pod for maker, pod in pods(name) if maker != each["metadata"]["name"]]
        assert not any(chosen <= labels(pod).items() for pod in others)


@both
def test_every_secret_is_made_here_or_said_to_be_the_sites(name: str) -> None:
    made = {each["metadata"]["name"]: set(each["stringData"]) for each in objects(name, "Secret")}
    asked = {
        (ref["name"], ref["key"])
        for _, container in containers(name)
        for variable in container.get("env", [])
        if (ref := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    for secret, key in asked:
        assert key in made.get(secret, set()) or secret in SECRETS[name], (secret, key)
    mounted = {
        volume["secret"]["secretName"]
        for _, pod in pods(name)
        for volume in pod["spec"].get("volumes", [])
        if "secret" in volume
    } | {each["secretName"] for each in objects(name, "Ingress")[0]["spec"]["tls"]}
    assert mounted | {secret for secret, _ in asked} == SECRETS[name] | made.keys()
    told = (CHART / "values.yaml").read_text() + (ROOT / "docs" / "how-to" / "run-a-cluster.md").read_text()
    for key in ("`url`", "`access`", "`secret`", "`password`", "FORCE.keys", "kubernetes.io/tls"):
        assert key in told


@both
def test_volumes_that_are_mounted_are_there(name: str) -> None:
    claims = {
        each["metadata"]["name"]: {claim["metadata"]["name"] for claim in each["spec"]["volumeClaimTemplates"]}
        for each in objects(name, "StatefulSet")
    }
    for maker, pod in pods(name):
        there = {volume["name"] for volume in pod["spec"].get("volumes", [])} | claims.get(maker, set())
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there, maker


def environment(name: str, maker: str) -> dict[str, Any]:
    (found,) = [container["env"] for made_by, container in containers(name) if made_by == maker]
    names = [variable["name"] for variable in found]
    assert len(names) == len(set(names)), "a variable given twice"
    return {variable["name"]: variable.get("value") for variable in found}


@both
def test_services_find_engines_that_are_there(name: str) -> None:
    found = environment(name, "night-archive")
    assert found["HARMONYWATCH_ARCHIVE__COMPACT_INTERVAL_S"] == "0"
    assert found["HARMONYWATCH_ARCHIVE__FLUSH_INTERVAL_S"] == "10"
    if name == "site":
        assert found["HARMONYWATCH_STREAM__URL"] == "kafka://kafka-1:9092"
        assert found["AWS_ENDPOINT_URL"] == "https://s3.example"
        assert "AWS_ALLOW_HTTP" not in found
        assert "night-" not in "".join(value or "" for value in found.values())
        return
    headless = {each["metadata"]["name"] for each in objects(name, "Service")}
    brokers = re.findall(r"(night-kafka-[0-2])\.(night-kafka):9092", found["HARMONYWATCH_STREAM__URL"])
    assert [broker for broker, _ in brokers] == [f"night-kafka-{number}" for number in range(3)]
    assert {service for _, service in brokers} <= headless
    assert re.fullmatch(r"http://(night-s3):7070", found["AWS_ENDPOINT_URL"])
    assert "night-s3" in headless


def test_the_mqtt_service_has_its_password_and_nobody_else() -> None:
    assert environment("site", "night-mqtt")["HARMONYWATCH_MQTT__PASSWORD_FILE"] == "/mqtt/password"
    having = {maker for maker, pod in pods("site") if "harmonywatch-mqtt" in str(pod)}
    assert having == {"night-mqtt"}


def test_without_engines_of_its_own_the_chart_asks_for_the_sites() -> None:
    bare = {"engines": False, "streamUrl": "kafka://k:9092", "stateSecret": "s"}
    found = render(CHART, bare)
    assert not any("night-engines" in str(each) or "night-s3" in str(each) for each in found)
    for missing in ("streamUrl", "stateSecret"):
        with pytest.raises(NotRendered, match=missing):
            render(CHART, {**bare, missing: ""})
    with pytest.raises(NotRendered, match="kafkaClusterId"):
        render(CHART, {})


def test_a_cluster_of_its_own_keeps_the_secret_in_one_place() -> None:
    (secret,) = objects("engines", "Secret")
    password = secret["stringData"]["password"]
    assert len(password) == 32
    assert password in secret["stringData"]["url"]
    assert not any(password in str(each) for each in rendered("engines") if each is not secret)


@both
def test_what_watches_sees_every_service(name: str) -> None:
    (monitor,) = objects(name, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    chosen = monitor["spec"]["selector"]["matchLabels"].items()
    seen = {}
    for maker, pod in pods(name):
        if chosen <= labels(pod).items():
            (container,) = pod["spec"]["containers"]
            assert endpoint["port"] in {port["name"] for port in container["ports"]}, maker
            seen[pod["metadata"]["labels"][monitor["spec"]["jobLabel"]]] = maker
    assert set(seen) == {"gateway", "mqtt", "alerting", "dispatch", "archive", "console"}


@both
def test_the_rules_arrive_as_they_are(name: str) -> None:
    (rules,) = objects(name, "PrometheusRule")
    assert rules["apiVersion"] == "monitoring.coreos.com/v1"
    assert rules["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    for group in rules["spec"]["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"\d+[smh]", rule["for"])
            assert rule["labels"]["severity"] in ("page", "ticket")
    (board,) = [each for each in objects(name, "ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert board["data"]["harmonywatch.json"] == (CHART / "files" / "dashboard.json").read_text()


def test_the_keys_are_drawn_as_the_how_to_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "run-a-cluster.md").read_text()
    (program,) = re.findall(r"^python -c '(.*open_sealer.*)'$", text, re.M)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["north.keys"]
    assert open_sealer(tmp_path / "keys", "north").token("Ada", None)[0].startswith("v1.")
