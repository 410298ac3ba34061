"""What a model is shown under each control, what is counted, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmtune import model as models
from mmtune.checkpoint.store import processor_for
from mmtune.data.index import index_shards
from mmtune.errors import UsageError
from mmtune.eval import answers, run
from mmtune.eval import controls as ctl
from mmtune.eval.run import evaluate
from mmtune.types import Example
from tests.media import make
from tests.training import world

CLIPS = 4
FRAMES = 8  # as the encoder takes them


def entry(kind: str, answer: str, temporal: bool = False) -> dict[str, Any]:
    return {"type": kind, "temporal": temporal, "question": f"{kind}?", "answer": answer}


def write(path: Path, clips: list[bytes], facts: Callable[[int], bytes]) -> str:
    """One shard of clips, indexed; returns its path."""
    members = {}
    for number, clip in enumerate(clips):
        members |= {f"{number:04d}.mp4": clip, f"{number:04d}.json": facts(number)}
    world.write_tar(path, members)
    index_shards([str(path)])
    return str(path)


def two_questions(number: int) -> bytes:
    """Two questions about every clip; the first one has the same answer for all."""
    asked = [entry("colour", "red"), entry("order", f"clip {number}", temporal=True)]
    return json.dumps({"questions": asked}).encode()


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    """Clips that differ in every frame: longer ones count further between two frames that are taken."""
    return [make.video(count=FRAMES * (number + 1), width=48, height=32) for number in range(CLIPS)]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, clips: list[bytes]) -> str:
    return write(tmp_path_factory.mktemp("clips") / "one.tar", clips, two_questions)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random model, and its processor."""
    recipe = world.recipe(tmp_path_factory.mktemp("model"), length=160, batch_tokens=160)
    model = models.build(recipe.model).eval()
    return model, processor_for(recipe, model)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, pair: tuple[Any, Any]) -> list[list[Example]]:
    """Every batch that is asked. The answer is always `red`, and the model itself is not run."""
    batches: list[list[Example]] = []

    def answer(model: Any, examples: list[Example], stops: Any, max_tokens: int) -> list[list[int]]:
        batches.append(list(examples))
        return [pair[1].tokenizer.encode("red") for _ in examples]

    monkeypatch.setattr(answers.generate, "answer_batch", answer)
    return batches


@pytest.fixture(scope="module")
def true(pair: tuple[Any, Any], clips: list[bytes]) -> list[torch.Tensor]:
    """The features [F,N,E] of each clip, computed apart."""
    encoder = pair[0].branches["sight"].encoder
    with torch.inference_mode():
        items = [encoder.prepare(make.get("video", clip, frames=FRAMES)) for clip in clips]
        return [encoder(item[None], torch.ones(1, len(item), dtype=torch.bool)).tokens[0] for item in items]


def seen(examples: list[Example]) -> list[torch.Tensor]:
    return [example.media["sight"][0] for example in examples]


def equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def each_twice(items: list[Any]) -> list[Any]:
    return [item for item in items for _ in range(2)]


def test_every_question_is_asked_about_its_clip(pair, shard, asked, true):
    report = evaluate(pair, "pocket_qa", data=[shard], quiet=True)
    assert len(true[0]) == FRAMES and not equal([true[0]], [true[1]]) and not equal([true[0]], [true[0].flip(0)])
    (batch,) = asked
    assert equal(seen(batch), each_twice(true))
    assert batch[0].media["sight"][0] is batch[1].media["sight"][0], "one clip is encoded once"
    scores = report["scores"]["plain"]
    assert {row: (one["total"], one["accuracy"]) for row, one in scores.items() if one["total"]} == {
        "overall": (2 * CLIPS, 0.5), "static": (CLIPS, 1.0), "temporal": (CLIPS, 0.0),
        "type colour": (CLIPS, 1.0), "type order": (CLIPS, 0.0),
    } | {row: (one["total"], one["accuracy"]) for row, one in scores.items() if row.startswith("medium")}  # fmt: skip
    assert (report["records"], report["skipped"], report["run"]) == (CLIPS, {}, None)
    first, second = report["answers"]["plain"][:2]
    assert first == {
        "id": first["id"], "type": "colour", "temporal": False, "question": "colour?",
        "answer": "red", "truth": "red", "right": True, "scores": {"accuracy": 1.0},
    }  # fmt: skip
    assert (second["type"], second["truth"], second["right"]) == ("order", "clip 0", False)


@pytest.mark.parametrize("control", ["shuffled", "reversed"])
def test_frames_in_another_order(pair, shard, asked, true, control):
    evaluate(pair, "pocket_qa", data=[shard], frames=control, quiet=True)
    (batch,) = asked
    shown = seen(batch)
    assert equal(shown[::2], shown[1::2]) and not equal(shown[::2], true)
    for found, one in zip(shown[::2], true, strict=True):
        assert not equal([found], [one])
        names = [sorted(frames.double().square().sum((1, 2)).tolist()) for frames in (found, one)]
        assert names[0] == pytest.approx(names[1]), "the same frames"
    assert equal(shown[::2], [one.flip(0) for one in true]) == (control == "reversed")


def test_blind_questions_have_no_media(pair, shard, asked):
    evaluate(pair, "pocket_qa", data=[shard], controls=["plain", "blind"], quiet=True)
    plain, blind = asked
    assert all(not any(example.media.values()) and not example.slots for example in blind)
    assert all(len(one) < len(other) for one, other in zip(blind, plain, strict=True))


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_another_clip_of_the_same_kind(pair, shard, asked, true, monkeypatch, chunk):
    """Also where a part of the records holds a single one, but for the very first: it has nobody to borrow from."""
    monkeypatch.setattr(run, "CLIPS", chunk)
    if chunk == 1:
        with pytest.raises(UsageError, match="the only item"):
            evaluate(pair, "pocket_qa", data=[shard], other_media=True, quiet=True)
        return
    evaluate(pair, "pocket_qa", data=[shard], other_media=True, quiet=True)
    shown = [one for batch in asked for one in seen(batch)]
    for place, (found, own) in enumerate(zip(shown, each_twice(true), strict=True)):
        assert not equal([found], [own]), place
        assert any(equal([found], [one]) for one in true), place


def test_all_controls_ask_the_same_questions(pair, shard, asked):
    report = evaluate(pair, "pocket_qa", data=[shard], controls=ctl.CONTROLS, quiet=True)
    assert list(report["scores"]) == list(report["answers"]) == list(ctl.CONTROLS)
    ids = {control: [one["id"] for one in answers] for control, answers in report["answers"].items()}
    assert len({tuple(one) for one in ids.values()}) == 1 and len(ids["plain"]) == 2 * CLIPS


def test_bad_records_are_counted_and_the_others_asked(pair, clips, asked, true, tmp_path):
    damaged = {1: b"{", 2: json.dumps({"questions": []}).encode()}
    broken = [clips[0], clips[1], clips[2], clips[3][:200], clips[3]]
    path = write(tmp_path / "some.tar", broken, lambda number: damaged.get(number) or two_questions(number))
    report = evaluate(pair, "pocket_qa", data=[path], quiet=True)
    assert report["skipped"] == {"bad_json": 1, "unreadable_video": 1}  # one without questions is nobody's fault
    assert equal([one for batch in asked for one in seen(batch)], each_twice([true[0], true[3]]))
    assert (report["records"], report["scores"]["plain"]["overall"]["total"]) == (2, 4)


def test_a_question_that_is_too_long_is_counted_and_the_others_asked(pair, clips, asked, monkeypatch, tmp_path):
    """Under every control alike, and also where it is all that a part of the records holds."""
    long = json.dumps({"questions": [entry("colour", "red") | {"question": "really " * 99}]}).encode()
    path = write(tmp_path / "some.tar", clips, lambda number: long if number == 1 else two_questions(number))
    for chunk in (1, 32):
        asked.clear()
        monkeypatch.setattr(run, "CLIPS", chunk)
        report = evaluate(pair, "pocket_qa", data=[path], controls=["plain", "blind"], quiet=True)
        assert report["skipped"] == {"too_long": 1} and report["records"] == CLIPS - 1
        totals = {control: rows["overall"]["total"] for control, rows in report["scores"].items()}
        assert totals == {"plain": 2 * (CLIPS - 1), "blind": 2 * (CLIPS - 1)}
        assert all(batch for batch in asked)


def test_nothing_usable_is_an_error(pair, clips, asked, tmp_path):
    path = write(tmp_path / "none.tar", clips[:1], lambda _: b"{")
    with pytest.raises(UsageError, match=r"bad_json.*1"):
        evaluate(pair, "pocket_qa", data=[path], quiet=True)
    assert asked == []


def test_a_part_of_the_questions(pair, shard, asked):
    report = evaluate(pair, "pocket_qa", data=[shard], limit=2, types=["order"], quiet=True)
    assert [one["truth"] for one in report["answers"]["plain"]] == ["clip 0", "clip 1"] and report["records"] == 2
    with pytest.raises(UsageError, match="no record"):
        evaluate(pair, "pocket_qa", data=[shard], types=["taste"], quiet=True)


def test_the_report_is_printed_and_written(pair, shard, asked, tmp_path, capsys):
    out = tmp_path / "deep" / "report.json"
    report = evaluate(pair, "pocket_qa", data=[shard], out=out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    said = capsys.readouterr().out
    assert "type order" in said and f"written to {out}" in said
    evaluate(pair, "pocket_qa", data=[shard], quiet=True)
    assert capsys.readouterr().out == ""


def test_model_and_processor_are_left_as_they_were(pair, shard, asked, monkeypatch):
    model, processor = pair
    features = SimpleNamespace(get=lambda branch, ref: None)
    monkeypatch.setattr(processor, "features", features)
    monkeypatch.setattr(model.branches["sight"], "cached", False)
    inside = []

    def stop(*_: Any) -> None:
        inside.append((processor.features is features, model.branches["sight"].cached))
        raise KeyboardInterrupt

    evaluate(pair, "pocket_qa", data=[shard], quiet=True)
    assert processor.features is features and not model.branches["sight"].cached
    monkeypatch.setattr(answers.generate, "answer_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pair, "pocket_qa", data=[shard], quiet=True)
    assert inside == [(False, True)]
    assert processor.features is features and not model.branches["sight"].cached


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blind": True, "frames": "reversed"}, "one at a time"),
        ({"frames": "sorted"}, "one of plain, blind"),
        ({"controls": ["blind", "deaf"]}, "deaf"),
        ({"data": []}, "no data to ask about"),
    ],
)
def test_what_cannot_be_asked_is_refused(pair, shard, asked, options, message):
    with pytest.raises(UsageError, match=message):
        evaluate(pair, "pocket_qa", **{"data": [shard], "quiet": True, **options})
    assert asked == []
