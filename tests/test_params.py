"""Groups: every trainable parameter in exactly one, and mistakes listed by name."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mmtune import params
from mmtune.errors import ConfigError
from mmtune.params import ParameterGroup, freeze, partition, table


class Llm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


class Model(nn.Module):
    """Names as in the real model, connectors trainable, the language model frozen."""

    def __init__(self) -> None:
        super().__init__()
        branch = nn.ModuleDict({"encoder": nn.Linear(3, 4), "connector": nn.Linear(4, 4)})
        self.branches = nn.ModuleDict({"sight": branch})
        self.llm = Llm()
        self.branches["sight"]["encoder"].requires_grad_(False)
        self.llm.requires_grad_(False)
        self.tuned = {"bias_norm": ["llm.norm.weight", "llm.norm.bias"]}


def group(*match: str, **more: object) -> ParameterGroup:
    return ParameterGroup(match=match, lr=1e-3, **more)  # type: ignore[arg-type]


CONNECTOR = "branches.sight.connector.*"


def test_what_a_group_claims_is_opened_and_the_rest_stays_frozen() -> None:
    model = Model()
    parts = partition(model, {"sight": group(CONNECTOR), "speech": group("@bias_norm", "llm.head.weight")})
    assert [name for name, _ in parts["sight"]] == [CONNECTOR[:-1] + "weight", CONNECTOR[:-1] + "bias"]
    assert [name for name, _ in parts["speech"]] == ["llm.embed.weight", "llm.norm.weight", "llm.norm.bias"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for named in parts.values() for name, _ in named}
    assert parts["sight"][0][1] is model.branches["sight"]["connector"].weight
    assert partition(model, {"sight": group(CONNECTOR), "speech": group("llm.*")}).keys() == {"sight", "speech"}


def test_all_mistakes_are_listed_together() -> None:
    model = Model()
    model.extra = nn.Parameter(torch.zeros(2))
    groups = {
        "one": group(CONNECTOR, "branches.sigth.*"),
        "two": group("branches.sight.connector.bias", "@lora"),
    }
    with pytest.raises(ConfigError) as caught:
        partition(model, groups)
    text = str(caught.value)
    assert "branches.sigth.* of group one matches nothing; names are such as branches.sight.encoder.weight" in text
    assert "@lora of group two stands for no parameter; known: @bias_norm" in text
    assert "claimed by more than one group: branches.sight.connector.bias (groups one, two)" in text
    assert "trainable, but in no group: extra" in text
    assert not model.llm.norm.weight.requires_grad


def test_nothing_is_opened_when_something_is_wrong() -> None:
    model = Model()
    with pytest.raises(ConfigError):
        partition(model, {"a": group(CONNECTOR, "llm.*"), "b": group("nothing")})
    assert not model.llm.embed.weight.requires_grad


def test_a_tied_weight_is_one_parameter_with_two_names() -> None:
    model = Model()
    with pytest.raises(ConfigError, match=r"llm\.embed\.weight \(groups a, b\)"):
        partition(model, {"s": group(CONNECTOR), "a": group("llm.embed.*"), "b": group("llm.head.*")})


def test_whole_numbers_cannot_train() -> None:
    model = Model()
    model.llm.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"not a floating-point tensor: llm\.codes \(int8\)"):
        partition(model, {"s": group(CONNECTOR), "l": group("llm.*")})


def test_long_lists_are_counted() -> None:
    model = nn.Module()
    model.tuned = {}
    model.many = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(20)])
    with pytest.raises(ConfigError, match="and 12 more"):
        partition(model, {})


def test_names_are_matched_as_they_are_written() -> None:
    with pytest.raises(ConfigError, match=r"LLM\.\* of group l"):
        partition(Model(), {"s": group(CONNECTOR), "l": group("LLM.*")})


def test_freeze() -> None:
    model = Model()
    assert freeze(model, [CONNECTOR]) == [CONNECTOR[:-1] + "weight", CONNECTOR[:-1] + "bias"]
    assert partition(model, {}) == {}
    with pytest.raises(ConfigError, match=r"matches x\b"):
        freeze(model, ["x", "llm.*"])
    model.requires_grad_(True)
    assert len(freeze(model)) == len(list(model.parameters()))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_by_name_and_claimed_by_a_group_stops_the_program() -> None:
    """One of the two is a mistake, and neither gives way to the other without a word."""
    with pytest.raises(ConfigError) as caught:
        partition(Model(), {"s": group(CONNECTOR), "l": group("llm.*")}, ["*.connector.bias"])
    assert f"named by model.freeze, and claimed all the same: {CONNECTOR[:-1]}bias (group s)" in str(caught.value)
    parts = partition(Model(), {"s": group(f"{CONNECTOR[:-1]}weight"), "l": group("llm.*")}, ["*.connector.bias"])
    assert [name for name, _ in parts["s"]] == [f"{CONNECTOR[:-1]}weight"]


def test_table() -> None:
    model = Model()
    groups = {"sight": group(CONNECTOR, streams=["caption"]), "speech": group("@bias_norm")}
    text = table(model, partition(model, groups), groups)
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["part", "group", "tensors", "parameters", "lr", "streams"],
        ["branches.sight.encoder", "(frozen)", "2", "16"],
        ["branches.sight.connector", "sight", "2", "20", "0.001", "caption"],
        ["llm", "(frozen)", "1", "20"],
        ["llm", "speech", "2", "8", "0.001", "all"],
        ["28", "of", "64", "parameters", "train", "(43.8", "%)"],
    ]
    assert "lr" not in table(model, partition(model, groups))


def test_it_works_without_memory() -> None:
    with torch.device("meta"):
        model = Model()
    parts = partition(model, {"s": group(CONNECTOR)})
    assert "20 of 64" in params.table(model, parts)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": -1}, {"lr": 1e-3, "match": []}, {"lr": 1e-3, "weight_decay": 1}])
def test_settings_that_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ParameterGroup(**{"match": ["a"], **wrong})
