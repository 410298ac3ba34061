from __future__ import annotations

import pytest
import torch

from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError


def tensors(*names):
    return {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}


TABLE = KeyMap(
    [
        Rule("model.layers.{i}.{rest*}", "llm.blocks.{i}.{rest*}"),
        Rule("proj.{i}.weight", "connector.{i}.weight", into=lambda t: t.T, out=lambda t: t.T),
        Rule("gate", "fusion.gate", optional=True),
    ],
    ignore=["{x*}.position_ids"],
)


def test_there_and_back():
    theirs = tensors("model.layers.0.attn.q.weight", "model.layers.11.norm", "proj.2.weight")
    ours = TABLE.into({**theirs, "vision.position_ids": torch.zeros(1)})
    assert set(ours) == {"llm.blocks.0.attn.q.weight", "llm.blocks.11.norm", "connector.2.weight"}
    assert ours["connector.2.weight"].shape == (3, 2)
    back = TABLE.out(ours)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_all_mistakes_at_once():
    with pytest.raises(CheckpointError) as caught:
        TABLE.into(tensors("model.layers.0.x", "stranger", "another"))
    text = str(caught.value)
    for words in ("stranger: no rule", "another: no rule", "proj.{i}.weight: the rule matches nothing"):
        assert words in text


def test_two_rules_for_one_name():
    table = KeyMap([Rule("a.{i}", "x.{i}"), Rule("a.0", "y")])
    with pytest.raises(CheckpointError, match=r"a\.0: 2 rules"):
        table.into(tensors("a.0", "a.1"))


def test_one_piece_is_one_piece():
    with pytest.raises(CheckpointError, match=r"a\.b\.c: no rule"):
        KeyMap([Rule("a.{i}", "x.{i}")]).into(tensors("a.b.c", "a.1"))


def test_two_names_may_not_become_one():
    with pytest.raises(CheckpointError, match=r"b\.x: .*\bz"):
        KeyMap([Rule("a.x", "z"), Rule("b.x", "z")]).into(tensors("a.x", "b.x"))


def test_a_rule_has_to_have_a_way_back():
    with pytest.raises(ValueError, match="'a'"):
        Rule("a", "b", into=lambda t: t)
    with pytest.raises(ValueError, match=r"'a\.{i}', 'b\.{j}'"):
        Rule("a.{i}", "b.{j}")
