"""`mmtune data check`: what is counted, and that learned text is marked where the labels say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmtune import cli, config
from mmtune.commands import check
from mmtune.errors import DataError, Reason, UsageError
from mmtune.types import IGNORE, Example, Slot
from tests.training import world


class Letters:
    """A tokenizer of letters; 0 and 1 are control tokens."""

    special_ids = frozenset({0, 1})

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids)


def _example(text: str, learn: str, slot: int | None = None) -> Example:
    """Letters as tokens, `^` and `$` as control tokens 0 and 1; `learn` has `+` below every letter to be learned."""
    tokens = torch.tensor([{"^": 0, "$": 1}.get(letter, ord(letter)) for letter in text])
    labels = torch.full_like(tokens, IGNORE)
    for place, mark in enumerate(learn):
        if mark == "+":
            labels[place - 1] = tokens[place]
    slots = (Slot("sight", slot, 3, 0),) if slot is not None else ()
    return Example("one", tokens, labels, slots, {"sight": [torch.zeros(1, 3)]} if slots else {})


def test_learned_text_and_places_are_marked() -> None:
    example = _example("^...hi$red$^ok$", "       ++++ ++ ", slot=1)
    assert check.labelled(example, Letters()) == "<0>[sight: 3 tokens]hi<1>>>red<1><<<0>>>ok<<<1>"


def test_a_stretch_to_the_end_is_closed() -> None:
    assert check.labelled(_example("hi ok", "   ++"), Letters()) == "hi >>ok<<"


def test_what_counts_otherwise_says_so() -> None:
    example = _example("hi ok hm", "   ++ ++")
    weights = torch.where(example.labels == IGNORE, 0.0, 1.0)
    weights[2:4] = 0.5
    assert check.labelled(replace(example, weights=weights), Letters()) == "hi >>0.5:ok<< >>hm<<"
    weights[5] = 2.0
    assert check.labelled(replace(example, weights=weights), Letters()) == "hi >>0.5:ok<< >>2:h<<>>m<<"


def test_conversations_that_are_compared_stand_on_lines_of_their_own() -> None:
    example = replace(_example("^q$yes$^q$no$", "   ++++   +++"), sequences=(7, 6))
    assert check.labelled(example, Letters()) == "<0>q<1>>>yes<1><<\n<0>q<1>>>no<1><<"


class Reader:
    def read(self, record: str):
        if record == "bad":
            raise DataError(Reason.bad_json, "bad is not JSON")
        return record


def _loads(*records: str):
    return [lambda record=record: record for record in records]


def test_what_can_be_done_about_it_is_said() -> None:
    class Reader:
        def read(self, record: str):
            raise DataError(Reason.unused_field, f"{record} has tools", "none", "ignore: [tools]")

    found = check.look(_loads("a", "b"), Reader(), Processor(), samples=0)
    lines = check.report(found, 2, Letters())
    assert lines[1:] == ["  skipped 2: unused_field, first: a has tools", "    try: ignore: [tools]"]


class Processor:
    def example(self, sample: str) -> Example:
        if len(sample) > 8:
            raise DataError(Reason.too_long, f"{len(sample)} letters")
        return _example(sample, " " * (len(sample) - 1) + "+")


def test_findings_count_what_training_would_skip() -> None:
    found = check.look(_loads("abc", "bad", "x" * 9, "abcdef", "bad"), Reader(), Processor(), samples=1)
    assert (found.records, found.lengths, found.learned) == (5, [3, 6], [1, 1])
    assert found.skipped == {"bad_json": 2, "too_long": 1} and len(found.examples) == 1
    lines = "\n".join(check.report(found, 9, Letters()))
    assert "5 of 9 records looked at: 2 usable" in lines
    assert "skipped 2: bad_json, first: bad is not JSON" in lines
    assert "tokens: 9, of them learned 2 (22.2 %)" in lines and "ab>>c<<" in lines


def test_nothing_usable_is_told() -> None:
    found = check.look(_loads("bad"), Reader(), Processor(), samples=1)
    assert check.report(found, 1, Letters())[0] == "1 of 1 records looked at: 0 usable"


@pytest.mark.parametrize("values", [[5], [1, 2, 3], list(range(100)), [7, 7, 900]])
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    lines = check.histogram(values)
    assert sum(int(line.split()[1]) for line in lines) == len(values)
    assert len(lines) <= check.BINS
    first, last = lines[0].split()[0].split("..")[0], lines[-1].split()[0].split("..")[1]
    assert int(first) == min(values) and int(last) >= max(values)


def test_the_stream_is_named_where_there_are_several() -> None:
    assert check._stream(["one"], None) == "one"
    assert check._stream(["one", "two"], "two") == "two"
    for name in (None, "three"):
        with pytest.raises(UsageError, match="--stream"):
            check._stream(["one", "two"], name)


def test_env_tells_why_something_does_not_work() -> None:
    from mmtune.commands import env

    def broken() -> None:
        raise OSError("libcuda.so: no such file\nmore")

    def absent() -> None:
        import mmtune_absent_package  # noqa: F401

    assert env._works(lambda: None) == "works"
    assert env._works(absent) == "not installed (mmtune_absent_package)"
    assert env._works(broken) == "installed but unusable: OSError: libcuda.so: no such file"


@pytest.mark.slow
def test_made_clips_through_a_recipe(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmtune import config
    from mmtune.commands import data
    from tests.encoders.tiny import clip_folder
    from tests.llm import tiny

    data.make(out=tmp_path / "pocket", clips=3, seed=1, level="easy", split="train", per_shard=9, workers=1)
    clip_folder(tmp_path / "clip")
    tiny.folder(tmp_path / "llm")
    encoder = {"name": "clip", "weights": str(tmp_path / "clip"), "frames": 2}
    tree = {
        "model": {
            "branches": {"sight": {"encoder": encoder, "connector": {"name": "linear"}, "kinds": ["image", "video"]}},
            "llm": {"name": "hf", "folder": str(tmp_path / "llm")},
            "fusion": {"name": "tokens"},
        },
        "streams": {"all": {"data": [str(tmp_path / "pocket/*.tar")], "prompt": "pocket", "format": "llava"}},
        "groups": {"connector": {"match": ["branches.*.connector.*"], "lr": 0.001}},
        "run": {"length": 2000, "batch_tokens": 2000},
    }
    (tmp_path / "recipe.yaml").write_text(config.dump(tree))
    capsys.readouterr()
    check.run([str(tmp_path / "pocket/*.tar")], str(tmp_path / "recipe.yaml"), None, limit=2, samples=1)
    said = capsys.readouterr().out
    assert "2 of 3 records looked at: 2 usable" in said and "media items: sight 2" in said
    assert "[sight: 18 tokens]" in said and ">>" in said
    changes = ["model.branches.sight.encoder.frames=1"]
    check.run([str(tmp_path / "pocket/*.tar")], str(tmp_path / "recipe.yaml"), None, 2, 1, changes)
    assert "[sight: 9 tokens]" in capsys.readouterr().out


def test_changes_are_told_from_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(check, "run", lambda *words: asked.append(words))
    words = ["a/*.tar", "run.length=9", "shards/a=b/0.tar", "./c=d.tar", "streams={}", "--recipe", "pocket"]
    assert CliRunner().invoke(cli.app, ["data", "check", *words]).exit_code == 0
    ((patterns, recipe, *_, changes),) = asked
    assert (recipe, changes) == ("pocket", ["run.length=9", "streams={}"])
    assert patterns == ["a/*.tar", "shards/a=b/0.tar", "./c=d.tar"]
    refused = CliRunner().invoke(cli.app, ["data", "check", "run.length=9", "--recipe", "pocket"])
    assert isinstance(refused.exception, UsageError) and "no shards" in refused.exception.seen


def test_nothing_usable_is_a_failure(tmp_path: Path) -> None:
    """The exit status says so, for the script that would train next."""
    made = world.recipe(tmp_path / "world")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(made))
    bad = tmp_path / "bad.tar"
    world.write_tar(bad, {f"{n}.json": b'{"conversations": []}' for n in range(3)})
    words = ["data", "check", "--recipe", str(recipe), "--stream", "pictures"]
    refused = CliRunner().invoke(cli.app, [*words, str(bad)])
    assert refused.exit_code == 1 and "3 of 3 records looked at: 0 usable" in refused.output
    good = CliRunner().invoke(cli.app, [*words, made.streams["pictures"].data[0]])
    assert good.exit_code == 0, good.output
