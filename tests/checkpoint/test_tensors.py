"""What is written piece by piece is what the safetensors package reads."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmtune import disk
from mmtune.checkpoint import tensors


def some() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = {str(kind).removeprefix("torch."): torch.randn(3, 5, generator=draw).to(kind) for kind in tensors._TYPES}
    return {
        **made,
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "naïve / name": torch.ones(1),
    }


def test_there_and_back(tmp_path) -> None:
    tensors.write(tmp_path / "a.safetensors", some())
    got, want = load_file(tmp_path / "a.safetensors"), some()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor) if t.numel()]
        assert not bits or torch.equal(*bits), name


def test_nothing_at_all(tmp_path) -> None:
    tensors.write(tmp_path / "a.safetensors", {})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert list(file.keys()) == []


def test_in_small_pieces(tmp_path, monkeypatch) -> None:
    tensors.write(tmp_path / "a", some())
    monkeypatch.setattr(disk, "PIECE", 7)
    tensors.write(tmp_path / "b", some())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_snapshot_stays() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    taken = tensors.snapshot({"w": weight, "row": weight[:2]})
    with torch.no_grad():
        weight.mul_(3)
    assert torch.equal(taken["w"], torch.ones(4)) and not taken["w"].requires_grad
    assert torch.equal(taken["row"], torch.ones(2))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_any_change_leaves_another_mark(kind) -> None:
    tensor = torch.ones(3, 3).to(kind)
    before = tensors.mark({"a": tensor})
    assert tensors.mark({"a": tensor.clone()}) == before
    tensor[1, 1] = 0
    assert tensors.mark({"a": tensor}) != before
