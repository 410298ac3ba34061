"""What lies in a run folder that somebody handed over: files that do not end, pipes, and numbers that no run writes."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mmtune import config, disk
from mmtune import model as models
from mmtune.checkpoint import seal, store
from mmtune.data import ledger
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.recipe import Recipe
from mmtune.training import resume
from mmtune.training.log import Metrics
from mmtune.types import MediaRef, Sample, Turn
from tests.training.world import png

ROW = {"step": 0, "id": "a", "reason": "bad_text", "stream": "talk", "epoch": 0}


def sealed(folder: Path) -> Path:
    seal.write(folder, lambda draft: disk.put(draft / "a.safetensors", [b"weights"]))
    return folder


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


# ------------------------------------------------------------------------------------------------------------- seals


def test_a_manifest_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    (sealed(tmp_path / "weights") / seal.MANIFEST).unlink()
    os.mkfifo(tmp_path / "weights" / seal.MANIFEST)
    assert seal.faults(tmp_path / "weights") == ["manifest.json: damaged"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_names_nothing_outside_its_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("x")
    folder = sealed(tmp_path / "weights")
    listed = {name: {"sha256": "0" * 64, "bytes": 1}}
    (folder / seal.MANIFEST).write_text(json.dumps({"files": listed}, indent=1))
    monkeypatch.setattr(seal, "file_digest", lambda path: pytest.fail(f"{path} is read"))
    assert seal.faults(folder) == ["manifest.json: damaged"]


def test_a_manifest_without_an_end_or_a_bottom(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "weights")
    sparse(folder / seal.MANIFEST, 1 << 40)
    assert seal.faults(folder) == ["manifest.json: damaged"]
    (folder / seal.MANIFEST).write_text('{"files":' + "[" * 100_000)
    assert seal.faults(folder) == ["manifest.json: damaged"]


def test_a_pipe_beside_sealed_weights_is_found_before_it_is_read(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "weights")
    os.mkfifo(folder / "b.safetensors")
    (folder / "c.safetensors").symlink_to("/dev/zero")
    assert seal.faults(folder) == ["b.safetensors: not in the manifest", "c.safetensors: not in the manifest"]


# ------------------------------------------------------------------------------------------------- ledger and metrics


def test_a_ledger_that_is_a_pipe_or_does_not_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "skipped.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    sparse(tmp_path / "huge.jsonl", 1 << 40)
    for name in ("skipped.jsonl", "zero.jsonl", "huge.jsonl"):
        for use in (ledger.read, ledger._digest):
            with pytest.raises(CheckpointError, match=f"{name}: (no plain file|1,099,511,627,776 bytes)"):
                list(use(tmp_path / name))


def test_a_long_ledger_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_bytes((json.dumps({**ROW, "detail": "x" * 900}) + "\n").encode() * 6_000)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (64 << 20))  # one line of zeros
    found = ledger.Ledger(path)
    tracemalloc.start()
    found.rewind(5)
    found.position()
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert found.counts == {"bad_text": 6_000} and path.stat().st_size < 8 << 20


@pytest.mark.parametrize(
    "row",
    [
        {"step": 1},
        {**ROW, "reason": ["bad_text"]},
        {**ROW, "reason": "x" * 99},
        {**ROW, "step": True},
        {**ROW, "id": 3},
        {**ROW, "stream": {}},
        {**ROW, "epoch": "x"},
        {**ROW, "epoch": -1},
    ],
)
def test_a_line_that_no_run_writes_is_no_line(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(ROW) + "\n")
    found = ledger.Ledger(path)
    found.rewind(9)
    assert found.counts == {"bad_text": 1} and list(ledger.read(path)) == [ROW]


def test_metrics_from_elsewhere_take_no_memory_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    with path.open("ab") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    Metrics(tmp_path, start=1)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert path.read_text() == '{"step": 1}\n'
    sparse(path, 1 << 40)
    assert Metrics(tmp_path, start=1).lost == 1 and "training goes on" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ states


def state(**changes: Any) -> dict[str, Any]:
    return {
        "facts": {"recipe": {}},
        "positions": {"step": 4, "streams": {"talk": {"epoch": 0, "position": 3}}},
        "ledger": {"bytes": 0, "sha256": "0" * 64, "good": 3, "bad": 0, "row": 0, "notes": {}},
        "nonfinite_steps": 0,
        "recent": [[1.5, 3.0]],
        "micro_step_parts": 1,
        "validation": {"last": 0, "best": None},
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": None},
        {"positions": {"step": 4, "streams": []}},
        {"positions": {"step": 4, "streams": {"talk": {"epoch": 10**30, "position": 0}}}},
        {"positions": {"step": 4, "streams": {"talk": {"epoch": 0, "position": "3"}}}},
        {"ledger": {}},
        {"ledger": {**state()["ledger"], "bytes": -1}},
        {"ledger": {**state()["ledger"], "notes": {"a": "b"}}},
        {"nonfinite_steps": "many"},
        {"recent": [[1.5]]},
        {"micro_step_parts": 0},
        {"micro_step_parts": 10**30},
        {"validation": {"last": 0, "best": {"measure": "loss", "step": 2, "value": "low"}}},
    ],
)
def test_numbers_of_a_state_are_looked_at(changes: dict[str, Any]) -> None:
    resume.check(state())
    with pytest.raises(CheckpointError, match=f"run.json of a saved state: {next(iter(changes))}"):
        resume.check(state(**changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.update(step=5),
        lambda tree: tree.update(groups=["../../elsewhere"]),
        lambda tree: tree.update(groups=3),
        lambda tree: tree.update(deep=json.loads("[" * 200 + "]" * 200)),
        lambda tree: tree.clear(),
    ],
)
def test_a_state_that_no_run_writes_is_passed_over(tmp_path: Path, spoil: Any) -> None:
    for step in (3, 4):
        resume.save(tmp_path, resume.State(step, {"w": torch.ones(2)}, {}, state()))
    tree = json.loads((tmp_path / "step-00000004/run.json").read_text())
    spoil(tree)

    def fill(draft: Path) -> None:
        resume.tensors.write(draft / "weights.safetensors", {"w": torch.ones(2)})
        (draft / "run.json").write_text(json.dumps(tree))

    seal.write(tmp_path / "step-00000004", fill)
    said: list[str] = []
    assert resume.load(tmp_path, said.append).step == 3 and "step-00000004 is damaged" in said[0]


def test_weights_of_a_state_that_are_no_numbers_are_found_when_they_are_read(tmp_path: Path) -> None:
    resume.save(tmp_path, resume.State(4, {"w": torch.tensor([1.0, float("nan")])}, {}, state()))
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"\b1 saved states"):
        resume.load(tmp_path, said.append)
    assert "NaN" in said[0]


# ------------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    "text", ["!!int ''", "!!float '_'", "!!bool x", "!!timestamp x", "!!map [a]", "!!binary aGk=", "!!set {a}", "! a"]
)
def test_tags_are_refused_whatever_they_make(text: str) -> None:
    with pytest.raises(ConfigError, match="the tag"):
        config.parse(f"a: {text}", "recipe.yaml")


def test_half_a_letter_on_a_command_line_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="surrogates"):
        config.override({}, "run.out=\udcff")


def test_a_file_of_nothing_but_commas_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_NODES", 500)
    with pytest.raises(ConfigError, match=r"column [0-9]{4}: more than 500 values"):
        config.parse("[" + "a," * 400_000 + "]", "recipe.yaml")


# ------------------------------------------------------------------------------------------------ numbers of a recipe


@pytest.mark.parametrize(
    "change",
    [
        "model.branches.sight.connector.hidden=1000000000",
        "model.tuners=[{name: hf_peft, method: lora, r: 10000000, lora_alpha: 32, target_modules: all-linear}]",
    ],
)
def test_sizes_that_only_a_recipe_says_fill_no_memory(change: str) -> None:
    section = config.load(Recipe, "pocket", [change]).model
    before = psutil.Process().memory_info().rss
    with pytest.raises(ModelError, match="tuners, connectors and fusion: .* GB by its settings"):
        models.build(section)
    assert psutil.Process().memory_info().rss - before < 1 << 30


@pytest.mark.parametrize(
    "change",
    [
        "run.length=1000000000000",
        "run.batch_tokens=1000000000000",
        "run.accumulate=1000000000000",
        "model.branches.sight.encoder.frames=1000000000",
        "model.branches.sight.encoder.chunk=1000000000000000000000",
    ],
)
def test_numbers_of_a_recipe_that_nobody_means_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match="less than or equal to"):
        config.load(Recipe, "pocket", [change])


def test_an_item_of_a_billion_tokens_is_not_written_down() -> None:
    changes = [f"model.branches.sight.connector.{one}" for one in ("time=1000000000", "short=repeat")]
    section = config.load(Recipe, "pocket", changes)
    model = models.build(section.model, weights=False, device="meta")
    processor = store.processor_for(section, model)
    ref = MediaRef("image", png("red"), "a.png")
    with pytest.raises(ModelError, match="makes 9,000,000,000 tokens of one item"):
        processor.example(Sample("a", (Turn("user", (ref, "what?")),)), answer=True)
