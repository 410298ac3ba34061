"""A recipe says how it is resolved, and lists everything that does not fit together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mmtune import config, registry
from mmtune.errors import ConfigError
from mmtune.recipe import Card, Recipe, StreamSection, is_card

TREE: dict[str, Any] = {
    "model": {
        "branches": {"sight": {"encoder": {"name": "clip"}, "connector": {"name": "mlp"}}},
        "llm": {"name": "hf", "folder": "somewhere"},
        "fusion": {"name": "tokens"},
    },
    "streams": {"talk": {"data": "shards/*.tar", "format": "llava", "prompt": "vicuna"}},
    "groups": {"sight": {"match": ["branches.sight.connector.*"], "lr": 1e-3}},
}


def tree(*overrides: str) -> dict[str, Any]:
    result = copy.deepcopy(TREE)
    for text in overrides:
        result = config.override(result, text)
    return result


def recipe(*overrides: str) -> Recipe:
    return config.validate(Recipe, tree(*overrides))


def mistakes(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    return [line.strip() for line in caught.value.seen.splitlines()[1:]]


def test_it_is_resolved() -> None:
    found = recipe()
    assert found.model.branches["sight"].kinds == ("image", "video")
    assert found.chat.prompt == "vicuna"
    assert found.streams["talk"].data == ("shards/*.tar",)
    assert found.streams["talk"].format.name == "llava"
    assert found.groups["sight"].streams == ()


def test_it_survives_yaml() -> None:
    found = recipe("schedule.steps=7", "run.max_grad_norm=0")
    again = config.validate(Recipe, config.parse(config.dump(found), "t"))
    assert again == found
    written = config.parse(config.dump(found), "t")
    assert written["model"]["branches"]["sight"]["kinds"] == ["image", "video"]
    assert written["run"]["length"] == 1024, "defaults are written out"


def test_what_does_not_fit_together_is_listed_at_once() -> None:
    found = mistakes(
        "model.branches.other={encoder: {name: clip}, connector: {name: linear}, kinds: [video]}",
        "groups.sight.match=[branches.sigth.connector.*, '@lora']",
        "groups.sight.streams=[tlak]",
        "schedule={steps: 5, warmup: 6}",
        "run={length: 100, batch_tokens: 50}",
        "streams.talk.prompt=vicunna",
        "eval={every: 5, streams: {vla: x.tar}}",
    )
    text = "\n".join(found)
    assert "model.branches: video goes to sight and other" in text
    assert "groups.sight.match: branches.sigth.connector.*: no branch sigth; known: sight, other" in text
    assert "groups.sight.match: no tuner @lora; known: none" in text
    assert "groups.sight.streams: no stream tlak; known: talk" in text
    assert "schedule.warmup: 6 of 5 steps" in text
    assert "run.batch_tokens: 50 holds no example of run.length = 100" in text
    assert "streams.talk.prompt: no prompt vicunna; known: vicuna" in text
    assert "streams.talk: trains no group" in text
    assert "eval.streams.vla: no stream vla; known: talk; say `like`" in text
    assert len(found) == 9


def test_a_task_that_is_not_there() -> None:
    (found,) = mistakes("eval.task=pocket_qaa")
    assert found.startswith("eval.task: ") and "pocket_qaa" in found and "pocket_qa" in found.replace("pocket_qaa", "")
    assert recipe("eval.task=pocket_qa").eval.task.name == "pocket_qa"


def test_steps_or_epochs() -> None:
    assert (recipe().schedule.steps, recipe().schedule.epochs) == (1000, None), "where neither is said"
    found = recipe("schedule={epochs: 2.5, warmup: 6}").schedule
    assert (found.steps, found.epochs) == (None, 2.5)
    assert mistakes("schedule={steps: 5, epochs: 2}") == [
        "schedule.steps: 5 beside schedule.epochs = 2.0; take one out, as schedule.steps=null"
    ]
    assert recipe("schedule={steps: 5, epochs: 2}", "schedule.steps=null").schedule.epochs == 2
    stages = "schedule={epochs: 2, interleave: stage, stages: [{streams: talk, steps: 3}]}"
    assert mistakes(stages) == ["schedule.epochs: stages say how many steps they have"]


def test_what_is_held_out() -> None:
    found = recipe("eval={every: 5, streams: {talk: [x.tar, y.tar], other: {data: z.tar, like: talk}}}").eval
    assert found.streams["talk"].data == ("x.tar", "y.tar") and found.streams["other"].like == "talk"
    for change, words in {
        "eval={every: 5}": "eval.every: nothing is held out",
        "eval={every: 5, task: pocket_qa}": "eval.every: nothing is held out",
        "eval={fraction: 0.1, streams: {talk: x.tar}}": "eval.fraction: every stream has held-out data of its own",
        "eval={streams: {other: {data: z.tar, like: tlak}}}": "eval.streams.other.like: no stream tlak; known: talk",
    }.items():
        assert any(line.startswith(words) for line in mistakes(change)), change


def test_a_stream_that_trains_nothing() -> None:
    more = "streams.more={data: [a/b.tar], format: caption, prompt: vicuna}"
    assert recipe(more).streams.keys() == {"talk", "more"}, "a group without streams is trained by all"
    assert mistakes(more, "groups.sight.streams=[talk]") == [
        "streams.more: trains no group; name it under `streams` of one"
    ]


def test_the_prompt_of_the_chat() -> None:
    more = "streams.more={data: [a/b.tar], format: caption, prompt: plain}"
    assert mistakes(more) == ["chat.prompt: missing; the streams do not settle it"]
    assert recipe(more, "chat.prompt=plain").chat.prompt == "plain"
    assert recipe("chat.prompt=/not/here/mine.yaml").chat.prompt == "/not/here/mine.yaml"
    assert mistakes("streams={}", "groups={}") == [
        "chat.prompt: missing; no streams settle it; `mmtune init` writes a whole recipe"
    ]
    assert recipe("streams={}", "groups={}", "chat.prompt=vicuna").streams == {}
    assert mistakes("streams={}", "chat.prompt=vicuna") == ["streams: none, so the groups would never train"]


def test_kinds_are_those_of_the_encoder() -> None:
    assert recipe("model.branches.sight.kinds=[image]").model.branches["sight"].kinds == ("image",)
    assert mistakes("model.branches.sight.kinds=[audio]") == [
        "model.branches.sight.kinds: audio for encoder clip, which takes image, video"
    ]
    assert len(mistakes("model.branches.sight.kinds=[]")) == 1
    assert "seen 'smell'" in mistakes("model.branches.sight.kinds=[smell]")[0]


@pytest.mark.parametrize("name", ["Sight", "a.b", "_rest", "1st", "a-b", ""])
def test_names_become_files_and_parameters(name: str) -> None:
    for section in ("model.branches", "streams", "groups"):
        changed = tree()
        node = changed
        for key in section.split("."):
            node = node[key]
        node[name] = next(iter(node.values()))
        with pytest.raises(ConfigError, match="string should"):
            config.validate(Recipe, changed)


@pytest.mark.parametrize(
    "override",
    ["run.device=gpu", "run.precision=fp16", "run.seed=-1", "schedule.steps=0", "run.max_grad_norm=-1",
     "chat.temperature=-1", "streams.talk.share=0", "streams.talk.data=[]", "groups.sight.lr=0", "run.lenght=3"],
)  # fmt: skip
def test_values_that_are_refused(override: str) -> None:
    assert len(mistakes(override)) == 1


def test_two_prompts_with_one_file_name() -> None:
    other = {**TREE["streams"]["talk"], "prompt": "b/mine.yaml"}
    with pytest.raises(ConfigError, match="a/mine.yaml and b/mine.yaml have the same file name"):
        made = tree("streams.talk.prompt=a/mine.yaml", "chat.prompt=a/mine.yaml")
        made["streams"]["more"] = other
        made["groups"]["sight"]["streams"] = ["talk", "more"]
        config.validate(Recipe, made)


def test_devices() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert recipe(f"run.device={device}").run.device == device


# ------------------------------------------------------------------------------------------------------------ cards

CARD = """
title: Coloured things
source: https://example.org/things
licence: CC0-1.0
format: {name: FORMAT}
shards: [things/*.tar, /mnt/more/*.tar, "https://example.org/a.tar"]
"""


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "things.yaml").write_text(CARD.replace("FORMAT", "llava"))
    (tmp_path / "words.yaml").write_text(CARD.replace("FORMAT", "caption"))
    (tmp_path / "broken.yaml").write_text("title: x")
    monkeypatch.setattr(
        registry, "builtin_folder", lambda kind, old=registry.builtin_folder: tmp_path if kind == "cards" else old(kind)
    )


def stream(**more: Any) -> StreamSection:
    return config.validate(StreamSection, {"prompt": "vicuna", **more})


@pytest.mark.usefixtures("cards")
def test_a_card_says_format_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMTUNE_DATA", raising=False)
    found = stream(data=["things"])
    assert found.format.name == "llava"
    assert found.patterns() == ("things/*.tar", "/mnt/more/*.tar", "https://example.org/a.tar")
    monkeypatch.setenv("MMTUNE_DATA", "/data")
    assert found.patterns()[0] == "/data/things/*.tar"
    assert stream(data=["things", "x/{000..009}.tar"], format="llava").patterns()[-1] == "x/{000..009}.tar"
    assert stream(data=["things"], format="caption").format.name == "caption"
    assert config.load(Card, "things", builtin="cards").samples is None


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["thing"], "no card is called 'thing'; expected: one of things, "),
        (["broken"], "mistakes in broken"),
        (["things", "words"], "the cards do not agree"),
        (["things", "x/*.tar"], r"format: missing, and x/\*.tar has no card; one of "),
        (["a/*.tar"], "has no card"),
    ],
)
def test_cards_that_do_not_help(data: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(data=data)


def test_what_is_the_name_of_a_card() -> None:
    assert is_card("cc3m")
    assert not any(is_card(text) for text in ("a/b", "a.tar", "*.tar", "x{0..3}", "https://x/y", "./a"))


def test_a_task_reads_records_as_the_streams_do_unless_it_says_otherwise():
    both = ["streams.instruct=null", "groups.connector.streams=[caption]", "eval.task=qa"]
    found = config.load(Recipe, "pocket", both)
    assert found.eval.task.format == found.streams["caption"].format and found.eval.task.format.name == "caption"
    again = config.validate(Recipe, found.model_dump(mode="json"))
    assert again == found
    own = config.load(Recipe, "pocket", [*both, "eval.task={name: qa, format: llava}"])
    assert own.eval.task.format.name == "llava"
    assert config.load(Recipe, "pocket", ["eval.task=qa"]).eval.task.format.name == "llava"  # the streams do not agree
