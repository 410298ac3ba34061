"""Records of one's own: what is asked, how it is scored, by which type, and that perplexity is what the loss says."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmtune import cli
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.collate import collate
from mmtune.data.build import streams_of
from mmtune.errors import ConfigError, UsageError
from mmtune.eval import metrics
from mmtune.eval.run import evaluate
from tests.losses import cross_entropy
from tests.training import world


def record(*turns: tuple[str, str], **more: Any) -> bytes:
    return json.dumps({"conversations": [{"from": who, "value": text} for who, text in turns], **more}).encode()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return world.recipe(tmp_path_factory.mktemp("model"), length=96, batch_tokens=96)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture with two questions, a text with a type, one with a turn that carries no loss, a broken record."""
    path = tmp_path_factory.mktemp("data") / "own.tar"
    unlearned = {"conversations": [*world.said("say red", "red it is"), *world.said("again", "green")], "category": "b"}
    unlearned["conversations"][1]["loss"] = False
    two = [("human", "<image>\nwhat is it?"), ("gpt", "red"), ("human", "sure?"), ("gpt", "yes it is red")]
    members = {
        "0.png": world.png("red"), "0.json": record(*two, question_type="colour"),
        "1.json": record(("human", "say blue"), ("gpt", "blue it is"), type="a"),
        "2.json": json.dumps(unlearned).encode(),
        "3.json": b"{}",
    }  # fmt: skip
    world.write_tar(path, members)
    return str(path)


def test_every_learned_answer_is_asked_for(run: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(run, "qa", [shard], device="cpu")
    rows = report["answers"]["plain"]
    assert [(row["type"], row["truth"]) for row in rows] == [
        ("colour", "red"), ("colour", "yes it is red"), ("a", "blue it is"), ("b", "green"),
    ]  # fmt: skip
    assert report["records"] == 3 and report["skipped"] == {"bad_json": 1}
    assert set(report["measures"]["plain"]) == {"overall", "static", "type a", "type b", "type colour"}
    said = capsys.readouterr().out
    for words in ("exact match", "f1", "rouge l", "perplexity", "type colour", "type a", "skipped: bad_json 1"):
        assert words in said
    assert "static" not in said and "temporal" not in said, "no question is about time"
    lines = [json.loads(line) for line in (run / "eval/qa.answers.jsonl").read_text().splitlines()]
    assert lines == [{"control": "plain", **row} for row in rows]


def test_media_that_were_unusual_are_counted_and_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of whose side data the library warns is used, and no word of it is lost."""
    image = io.BytesIO()
    Image.new("RGB", (24, 24), (220, 30, 30)).save(image, "TIFF", tiffinfo={282: 72.0, 283: 72.0})
    odd = bytearray(image.getvalue())
    struct.pack_into("<I", odd, odd.find(struct.pack("<HH", 282, 5)) + 4, 2)  # two resolutions
    both = record(("human", "<image>\nwhat is it?"), ("gpt", "red"), ("human", "sure?"), ("gpt", "yes"))
    members = {"0.tiff": bytes(odd), "0.json": both, "1.png": world.png("red"), "1.json": both}
    world.write_tar(tmp_path / "odd.tar", members)
    report = evaluate(run, "qa", [str(tmp_path / "odd.tar")], out=tmp_path / "report.json", device="cpu")
    assert report["records"] == 2 and report["unusual"] == {"odd_metadata": 1}, "once for both questions about it"
    assert "media that were unusual, and used: odd_metadata 1\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["unusual"] == {"odd_metadata": 1}


def test_perplexity_is_what_the_loss_of_training_says(run: Path, recipe: Any, shard: str) -> None:
    """Each answer alone through the processor of training and the loss of the model."""
    model, processor, _ = store.load_run(run)
    report = evaluate((model, processor), "qa", [shard], quiet=True)
    made = recipe.model_copy(
        update={"streams": {"pictures": recipe.streams["pictures"].model_copy(update={"data": (shard,)})}}
    )
    (stream,) = streams_of(made, {"pictures": processor})
    nats, tokens = 0.0, 0.0
    keys = list(stream.corpus.samples())
    for place in (0, 1, 2):
        with torch.no_grad():
            loss, weight = cross_entropy(model, collate([[processor.example(stream.sample(keys[place]))]]))
        nats, tokens = nats + float(loss), tokens + weight
    rows = report["answers"]["plain"]
    assert sum(row["nats"] for row in rows) == pytest.approx(nats, rel=1e-4)
    assert sum(row["tokens"] for row in rows) == tokens
    overall = report["measures"]["plain"]["overall"]
    assert overall["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    by_type = {row["type"]: row for row in rows if row["type"] in "ab"}
    for kind, row in by_type.items():
        found = report["measures"]["plain"][f"type {kind}"]["perplexity"]
        assert found == pytest.approx(math.exp(row["nats"] / row["tokens"]), rel=1e-6)


def test_scores_of_words() -> None:
    assert metrics.token_f1("a red cat", ["the red cat sat"]) == pytest.approx(2 * 2 / 7)
    assert metrics.token_f1("Red!", ["blue", "red"]) == 1 and metrics.token_f1("", ["red"]) == 0
    assert metrics.token_f1("red red red", ["red"]) == pytest.approx(2 / 4), "each word as often as it stands there"
    assert metrics.token_f1("cat red", ["red cat"]) == 1 > metrics.rouge_l("cat red", ["red cat"])


def test_captions_and_the_command_line(run: Path, tmp_path: Path) -> None:
    world.write_tar(tmp_path / "c.tar", {"0.png": world.png("red"), "0.txt": b"a red square"})
    words = ["eval", str(run), "--task", "qa:format=caption,max_tokens=4", "--data", str(tmp_path / "c.tar")]
    done = CliRunner().invoke(cli.app, [*words, "--device", "cpu", "--json", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "report.answers.jsonl").read_text())["truth"] == "a red square"
    assert json.loads((tmp_path / "report.json").read_text())["max_tokens"] == 4
    assert "type (none)" not in done.output, "no record names one"


def test_a_run_without_a_task_says_which_there_are(run: Path, shard: str) -> None:
    with pytest.raises(UsageError, match="no task\nexpected: one of choice, pocket_qa, qa"):
        evaluate(run, data=[shard], device="cpu")
    with pytest.raises(ConfigError, match="qaa"):
        evaluate(run, "qaa", [shard], device="cpu")


def test_the_task_of_the_recipe_is_asked_when_none_is_named(
    recipe: Any, shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = recipe.model_copy(update={"eval": type(recipe.eval)(task={"name": "qa", "max_tokens": 3}, data=(shard,))})
    store.save_run(tmp_path / "run", models.build(recipe.model), told)
    report = evaluate(tmp_path / "run", device="cpu")
    assert report["task"]["name"] == "qa" and report["max_tokens"] == 3
    assert "qa: 3 records, 4 questions" in capsys.readouterr().out
