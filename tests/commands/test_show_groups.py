"""`mmtune show RECIPE --groups`: who trains what, how many, at which rate, by which stream, to the last digit."""

from __future__ import annotations

import re

import pytest

from mmtune.commands import _groups, show


@pytest.fixture
def said(capsys, request):
    def ask(recipe, *overrides):
        show.run(recipe, list(overrides), groups=True)
        return capsys.readouterr().out

    return ask


def test_a_joint_recipe(said):
    text = said(
        "pocket_joint", "schedule.steps=2401", "groups.speech.lr_schedule=linear", "groups.speech.min_lr_ratio=0.1"
    )
    for line in (
        "2,401 steps, interleave: alternate; steps of each stream: caption 1,201, instruct 1,200",
        "  caption: cross_entropy moves sight",
        "sight: 75,660 parameters, 12 tensors",
        "  by      caption: 1,201 of 2,401 steps",
        "  rate    0.002 after 40 steps, then falls (cosine) to 0.0",
        "  rate    0.001 after 40 steps, then falls (linear) to 0.0001",
        "  adamw   betas 0.9 0.999, decay 0.01 on 3,084 of them, clip 1.0",
        "  llm.prompts.gates.{3-5}.weight                                [4, 1] x 3  12",
        "trained  96,536 = 75,660 (sight) + 20,876 (speech)",
        "frozen   2,153,344",
        "model    2,249,880",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize("recipe", ["pocket_joint", "joint_caption_instruct", "llama_adapter_v2_7b_stage1"])
def test_the_lines_of_a_group_add_up(said, recipe):
    text = said(recipe)
    for head, body in re.findall(r"^\w+: ([\d,]+) parameters, .*\n((?:  .*\n)+)", text, re.M):
        numbers = re.findall(r"^  (?:branches|llm|fusion)\..*  ([\d,]+)$", body, re.M)
        assert sum(int(number.replace(",", "")) for number in numbers) == int(head.replace(",", ""))
    total, parts = re.search(r"^trained  ([\d,]+) = (.*)$", text, re.M).groups()
    assert sum(int(n.replace(",", "")) for n in re.findall(r"[\d,]+(?= \()", parts)) == int(total.replace(",", ""))


def test_the_joint_recipe_holds_all_streams_in_each_step(said):
    text = said("joint_caption_instruct")
    assert "interleave: mixed; steps of each stream: caption 5,900, text 5,900, picture 5,900" in text
    assert "64,725,248 = 60,468,512 (sight) + 4,256,736 (speech)" in text


def test_numbers_of_layers_are_folded():
    assert _groups._ranges([7]) == "7" and _groups._ranges([0, 1, 2, 5, 7, 8]) == "{0-2,5,7-8}"
