"""Rules and channels: what is stored comes back, what means nothing is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from harmonywatch.clock import ManualClock
from harmonywatch.registry.contract import (
    DEFAULT_RULE_ID,
    AlreadyExists,
    InvalidName,
    InvalidValue,
    NotFound,
    Rule,
)
from harmonywatch.registry.store import Registry

SQUARE = ((6.0, 50.0), (7.0, 50.0), (7.0, 51.0), (6.0, 51.0))


def test_a_rule_with_every_condition_comes_back_as_it_was(registry: Registry, clock: ManualClock) -> None:
    registry.add_force("north")
    clock.advance(5)
    rule = Rule(
        rule_id="loud-night",
        force="north",
        threshold=0.1 + 0.2,
        confidence_least=0.75,
        area=SQUARE,
        words=("Riot", "straße"),
        hours=(22, 6),
        enabled=False,
    )
    added = registry.add_rule(rule)
    assert added == msgspec.structs.replace(rule, created_at=clock.now())
    assert registry.rules("north")[1] == added
    assert [r.rule_id for r in registry.all_rules()["north"]] == [DEFAULT_RULE_ID, "loud-night"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", float("nan")),
        ("threshold", float("inf")),
        ("confidence_least", 1.5),
        ("confidence_least", float("nan")),
        ("area", SQUARE[:2]),
        ("area", (SQUARE[0],) * 4),
        ("area", ((6.0, 50.0), (7.0, 50.0), (7.0, 91.0))),
        ("area", ((6.0, 50.0), (7.0, 50.0), (float("nan"), 51.0))),
        ("words", ()),
        ("words", ("",)),
        ("words", ("\ud800",)),
        ("hours", (24, 6)),
        ("hours", (6, 25)),
        ("hours", (6, 6)),
    ],
)
def test_a_condition_that_means_nothing_is_refused_by_name(registry: Registry, field: str, value: Any) -> None:
    registry.add_force("north")
    rule = msgspec.structs.replace(Rule(rule_id="x", force="north", threshold=25.0), **{field: value})
    with pytest.raises(InvalidValue) as error:
        registry.add_rule(rule)
    assert error.value.field == field
    assert len(registry.rules("north")) == 1


def test_a_rule_belongs_to_one_force_and_can_be_removed_the_default_too(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    with pytest.raises(AlreadyExists):
        registry.add_rule(Rule(rule_id=DEFAULT_RULE_ID, force="north", threshold=1.0))
    with pytest.raises(InvalidName):
        registry.add_rule(Rule(rule_id="No Slug", force="north", threshold=1.0))
    with pytest.raises(NotFound) as error:
        registry.remove_rule("north", "harmonyscore-below-52")
    assert error.value.near == (DEFAULT_RULE_ID,)
    before = registry.version()
    registry.remove_rule("north", DEFAULT_RULE_ID)
    assert registry.version() > before
    assert [len(rules) for rules in registry.all_rules().values()] == [0, 1]
    assert registry.audit()[-1].action == "rule.remove"


def test_a_channel_keeps_its_secrets_out_of_sight(registry: Registry) -> None:
    registry.add_force("north")
    hook = registry.add_channel("north", "webhook", "https://user:pw@hooks.example/T0KEN?x=S3CRET")
    chat = registry.add_channel("north", "apprise", "tgram://B0TT0KEN/42", secret=None)
    assert hook.secret is not None and len(hook.secret) == 64 and chat.secret is None
    assert registry.channels("north") in ([hook, chat], [chat, hook])
    assert (hook.shown_url, chat.shown_url) == ("https://hooks.example/...", "tgram://...")
    seen = repr(registry.channels("north")) + repr(registry.audit())
    assert not [word for word in ("pw@", "T0KEN", "S3CRET", "B0TT0KEN", hook.secret) if word in seen]


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        *[("webhook", bad) for bad in ("ftp://host/x", "https://", "https://[::1", "https://host:99999/")],
        *[("apprise", bad) for bad in ("no url", "x://a\x00b")],
        ("pigeon", "https://host/"),
    ],
)
def test_a_channel_that_leads_nowhere_is_refused(registry: Registry, kind: Any, address: str) -> None:
    registry.add_force("north")
    with pytest.raises(InvalidValue):
        registry.add_channel("north", kind, address)
    assert registry.channels("north") == []


def test_a_removed_channel_is_gone_and_only_from_its_own_force(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    channel = registry.add_channel("north", "webhook", "http://127.0.0.1:9/x", secret="s")
    with pytest.raises(NotFound):
        registry.remove_channel("south", channel.channel_id)
    registry.remove_channel("north", channel.channel_id)
    assert registry.channels("north") == []
