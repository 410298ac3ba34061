"""Questions asked without and with what experts say: both rows, the same questions, and evidence that does not fit."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmtune import paths
from mmtune.checkpoint.store import load_run
from mmtune.data.world.draw import clip
from mmtune.data.world.scene import Sign, draw_scene
from mmtune.data.world.video import jpeg
from mmtune.eval.run import evaluate
from mmtune.media import Limits
from mmtune.types import Quote, Sample

WORDS = ("taxi", "book", "stop")


class Reader:
    """An expert that knows the words by the name of the record."""

    def __init__(self, more: str = "") -> None:
        self.asked: list[str] = []
        self.more = more
        self.limits: Limits | None = None

    def within(self, limits: Limits | None) -> None:
        self.limits = limits

    def advise(self, sample: Sample) -> Sample:
        self.asked.append(sample.id)
        turn = sample.turns[0]
        word = WORDS[int(sample.id[-1])] + self.more
        return replace(sample, turns=(replace(turn, parts=(turn.parts[0], Quote("ocr", word), *turn.parts[1:])),))

    def record(self) -> dict[str, Any]:
        return {"asked": "reader", "found": len(self.asked)}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("signs") / "signs.tar"
    with tarfile.open(path, "w") as tar:
        for number, word in enumerate(WORDS):
            blank = replace(draw_scene(random.Random(number), "full", "test"), solids=(), sign=Sign(word, 4))
            questions = [
                {"type": "text", "question": "What does the sign say?", "answer": word},
                {"type": "count", "question": "How many objects are there?", "answer": "no"},
            ]
            for suffix, data in (
                ("jpg", jpeg(clip(blank, 1)[0])),
                ("json", json.dumps({"image": f"{number}.jpg", "questions": questions}).encode()),
            ):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="module")
def parts():
    model, processor, _ = load_run(Path(str(paths.resolve("mmtune:pocket/chat"))), "cpu")
    return model, processor


def test_both_figures(parts, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    reader = Reader()
    controls = ["plain", "blind"]
    report = evaluate(parts, "pocket_qa", [shard], controls=controls, experts=reader, types=["text"])
    scores = report["scores"]
    assert list(scores) == ["plain", "blind", "experts", "experts_blind"]
    assert all(rows["overall"]["total"] == 3 for rows in scores.values())
    assert {row["type"] for rows in report["answers"].values() for row in rows} == {"text"}
    # The answers can only come out of the quotes where there is nothing else.
    assert scores["experts_blind"]["overall"]["right"] >= 2 > scores["blind"]["overall"]["right"]
    assert reader.limits == parts[1].limits
    assert len(reader.asked) == 3 and report["experts"]["asked"] == "reader"
    text = capsys.readouterr().out
    assert "experts: asked reader" in text and text.count("type text") == 3


def test_evidence_that_does_not_fit_is_left_out(parts, shard: str) -> None:
    plain = evaluate(parts, "pocket_qa", [shard], types=["text"], quiet=True)
    flooded = evaluate(parts, "pocket_qa", [shard], types=["text"], quiet=True, experts=Reader(" no" * 3000))
    assert flooded["answers"]["experts"] == plain["answers"]["plain"] == flooded["answers"]["plain"]
    assert "experts" not in plain
