"""What a maker of `tests/checkpoint/foreign/makers/<kind>.py` gives: a tiny published checkpoint, made on the spot.

    def make(folder: Path) -> Made

The shared tests import it, chat with it, export it, and damage its `trained` file in every way they know.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtune import registry
from mmtune.checkpoint.convert import ROOM

KINDS = registry.names(ROOM)


@dataclass(frozen=True)
class Made:
    """A tiny published checkpoint."""

    paths: dict[str, Path]
    """Role to file or folder."""
    trained: Path
    """The file whose tensors the tests damage: safetensors, or pickled."""
    options: list[str] = field(default_factory=list)
    """NAME=VALUE for the importer."""
    changes: list[str] = field(default_factory=list)
    """KEY=VALUE for the recipe."""
    inside: tuple[str, ...] = ()
    """Keys that wrap the tensors of a pickled file."""
    config: Path | None = None
    """A JSON file whose `model_type` tells the architecture, where there is one."""
    export: list[str] | None = field(default_factory=list)
    """Options of the way out; none where the kind is read only."""
    written: str | None = None
    """File of the export to compare with `trained`; the same name when not given."""
    lossy: tuple[str, ...] = ()
    """Beginnings of names that do not come out again, such as parts the published code never reads."""

    @property
    def words(self) -> list[str]:
        """The paths as the command line takes them."""
        return [f"{role}={path}" for role, path in self.paths.items()]


def make(kind: str, folder: Path) -> Made:
    """The tiny checkpoint of a kind. Fails by name for an importer without a maker."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        maker = importlib.import_module(f"tests.checkpoint.foreign.makers.{kind}")
    except ModuleNotFoundError as error:
        raise AssertionError(f"importer {kind!r} has no tests/checkpoint/foreign/makers/{kind}.py") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return maker.make(folder)


def read(path: Path, inside: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Tensors of a file that this process may trust, because a test wrote it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    tree = torch.load(path, weights_only=True)
    for key in inside:
        tree = tree.get(key, tree)
    return {name: tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)}


def rewrite(path: Path, tensors: dict[str, Tensor], inside: tuple[str, ...] = ()) -> None:
    """Put tensors in the place of those of a file, wrapped as they were."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return
    tree = torch.load(path, weights_only=True)
    for key in inside:
        if key in tree:
            torch.save({**tree, key: tensors}, path)
            return
    torch.save(tensors, path)


def unpickled(made: Made) -> Made:
    """The same checkpoint with its pickled files as safetensors, which importers read as well.

    Reading a pickle takes a process of its own, some seconds on a busy machine; this is for tests of what comes after.
    """
    paths = {}
    for role, path in made.paths.items():
        paths[role] = path
        if path.is_file() and path.suffix != ".safetensors":
            tree = torch.load(path, weights_only=True)
            for key in made.inside:
                tree = tree.get(key, tree)
            tensors = {name: t.contiguous().clone() for name, t in tree.items() if isinstance(t, Tensor)}
            if len(tensors) < sum(1 for _ in tree):
                continue  # something lies beside the tensors, and the importer may want it
            paths[role] = path.with_suffix(".safetensors")
            save_file(tensors, paths[role])
            path.unlink()
    moved = dict(zip(made.paths.values(), paths.values(), strict=True))
    return replace(made, paths=paths, trained=moved.get(made.trained, made.trained))
