"""Reading what others wrote: shards with their index, and pickles by the child process."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmtune.checkpoint.foreign import _files, _unpickle
from mmtune.checkpoint.foreign.base import Source
from mmtune.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("child")


def shards(folder: Path) -> Path:
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-2.safetensors")
    table = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


def test_shards_are_joined(tmp_path: Path) -> None:
    folder = shards(tmp_path / "one")
    (folder / "other.safetensors").write_bytes(b"not looked at")
    found = Source("folder", folder).tensors()
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = shards(tmp_path / "one")
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        Source("folder", folder).tensors()


def test_shards_that_are_not_those_of_the_index(tmp_path: Path) -> None:
    folder = shards(tmp_path / "one")
    save_file({"c": torch.zeros(3)}, folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"one: .*\bb\b.*\bc"):
        Source("folder", folder).tensors()


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    folder = shards(tmp_path / "one")
    table = {"weight_map": {"a": "../model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Source("folder", folder).tensors()


def test_one_name_in_two_files(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="in more than one file: a"):
        Source("folder", tmp_path).tensors()


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights\.npz"):
        Source("file", tmp_path / "weights.npz").tensors()
    with pytest.raises(CheckpointError, match="holds no weights"):
        Source("folder", tmp_path).tensors()


def test_pickles_need_a_place_for_what_becomes_of_them(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        Source("file", tmp_path / "a.pth").tensors()


def test_what_training_scripts_leave_in_a_pickle(tmp_path: Path) -> None:
    """Wrapped weights beside an optimizer, arguments, numbers of numpy; tied weights and views become tensors."""
    shared = torch.arange(6.0).view(2, 3)
    tree = {
        "model": {"w": torch.nn.Parameter(shared), "tied": shared, "row": shared[1], "turned": shared.T},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(1000)}}},
        "args": argparse.Namespace(lr=1e-3, name="x"),
        "best": np.float64(0.5),
        "epoch": 3,
    }
    torch.save(tree, tmp_path / "a.pth")
    source = Source("file", tmp_path / "a.pth", tmp_path / "scratch")
    found = source.tensors(inside=("state_dict", "model"))
    assert set(found) == {"w", "tied", "row", "turned"}
    assert found["turned"].tolist() == shared.T.tolist() and found["row"].tolist() == [3, 4, 5]
    written = {path.name for path in (tmp_path / "scratch").rglob("*.safetensors")}
    assert written == {"model.safetensors"}


@pytest.mark.parametrize("old", [False, True], ids=["archive", "legacy"])
def test_code_outside_the_quick_look_is_refused_too(old: bool, tmp_path: Path) -> None:
    """Protocol 4 names its functions in another way, which only `weights_only` sees through."""

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"a": Canary()}, tmp_path / "a.pth", pickle_protocol=4, _use_new_zipfile_serialization=not old)
    assert _unpickle.stranger(str(tmp_path / "a.pth")) is None
    with pytest.raises(CheckpointError, match="would run code"):
        Source("file", tmp_path / "a.pth", tmp_path / "scratch").tensors()
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "canary").is_dir()


def test_a_tensor_that_is_much_larger_than_its_file(tmp_path: Path) -> None:
    """One number, repeated by its strides into more than there is room for."""
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 5000
    with pytest.raises(CheckpointError, match="takes more memory"):
        Source("file", tmp_path / "a.pth", tmp_path / "scratch").tensors()


def test_a_pickle_that_takes_too_long(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not read after 0 seconds"):
        _files.convert(tmp_path / "a.pth", (), tmp_path / "scratch", seconds=0.01)
