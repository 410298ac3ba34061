"""Saved states: sealed, kept, and fallen back to."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mmtune.errors import CheckpointError, UsageError
from mmtune.training import resume
from mmtune.training.lock import lock


def state(step):
    optimizers = {"g": {"w/step": torch.tensor(float(step))}}
    return resume.State(step, {"w": torch.full((3,), float(step))}, optimizers, {"positions": {"a": step}})


def same(left, right):
    assert left.step == right.step and left.info == right.info
    assert torch.equal(left.weights["w"], right.weights["w"])
    assert torch.equal(left.optimizers["g"]["w/step"], right.optimizers["g"]["w/step"])


def test_there_and_back(tmp_path):
    assert resume.load(tmp_path / "state") is None
    resume.save(tmp_path / "state", state(7))
    same(resume.load(tmp_path / "state"), state(7))


def test_old_ones_go_but_two_stay(tmp_path):
    for step in (1, 2, 3):
        resume.save(tmp_path / "state", state(step), keep=1)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-00000002", "step-00000003"]


FILES = ("weights.safetensors", "optimizer.g.safetensors", "run.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_damage_falls_back_and_says_so(tmp_path, name, damage):
    folder = tmp_path / "state"
    resume.save(folder, state(1))
    path = resume.save(folder, state(2)) / name
    data = path.read_bytes()
    middle = len(data) // 2
    new = {"flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "cut": data[:-1], "empty": b""}
    path.unlink() if damage == "remove" else path.write_bytes(new[damage])
    said = []
    same(resume.load(folder, said.append), state(1))
    assert any("step-00000002" in line and "damaged" in line for line in said)
    assert any("falling back to step-00000001" in line for line in said)


def test_nothing_whole_is_an_error(tmp_path):
    path = resume.save(tmp_path / "state", state(1))
    (path / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"\b1 saved states"):
        resume.load(tmp_path / "state", lambda _: None)


def test_full_disk_keeps_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    resume.save(folder, state(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.tensors, "write", full)
    with pytest.raises(CheckpointError, match="No space"):
        resume.save(folder, state(2))
    assert [p.name for p in folder.iterdir()] == ["step-00000001"]
    same(resume.load(folder), state(1))


def test_differences():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 0}
    new = {"a": {"b": 2, "c": [1, 2]}, "e": 0}
    assert resume.differences(old, new) == ["a.b: 1 -> 2", "d: 0 -> null", "e: null -> 0"]
    assert resume.differences(old, old) == []


def test_steps_draw_their_own_numbers():
    resume.seed_step(1, 5)
    first = torch.rand(3)
    torch.rand(7)
    resume.seed_step(1, 5)
    assert torch.equal(torch.rand(3), first)
    for other in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
        resume.seed_step(*other)
        assert not torch.equal(torch.rand(3), first)


def test_one_run_in_a_folder(tmp_path):
    with lock(tmp_path):
        code = (
            "import sys; from pathlib import Path\n"
            "from mmtune.errors import UsageError\nfrom mmtune.training.lock import lock\n"
            "try:\n    with lock(Path(sys.argv[1])): print('taken')\nexcept UsageError as e: print('refused')"
        )
        run = [sys.executable, "-c", code, str(tmp_path)]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "refused"
    with lock(tmp_path):
        pass
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "taken"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be used: "), lock(tmp_path / "file"):
        pass
