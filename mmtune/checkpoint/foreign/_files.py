"""Reads published files: JSON, safetensors with or without an index of shards, and pickles through a child process.

A pickle is a program. It is never opened here: `_unpickle.py` converts it to safetensors in a separate process with
limits of memory, disk and time, and the result is read like any other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmtune import jsons, weights_file
from mmtune.checkpoint.foreign import _unpickle
from mmtune.errors import CheckpointError

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
UNUSED = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth")
"""Files that training scripts leave beside weights and that hold no weights."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")

SECONDS = 120.0
"""Time for a pickle, besides one second for each 10 MB of it."""
BYTES_PER_SECOND = 10_000_000


def read_tensors(path: Path, inside: Sequence[str], pattern: str | None, scratch: Path | None) -> dict[str, Tensor]:
    """All tensors of a file or folder; see `Source.tensors`."""
    if not path.is_file() and not path.is_dir():
        what = "is no plain file" if os.path.lexists(path) else "is not there"
        raise CheckpointError(f"{path} {what}", "a file or a folder", "check the path")
    files, index = ([path], None) if path.is_file() else _choose(path, pattern)
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = read_file(file, inside, scratch)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(
                f"{path}: in more than one file: {', '.join(twice[:8])}",
                "every tensor in one file",
                "give the one file, or a folder with the files of one model only",
            )
        tensors |= found
    if index is not None and index != tensors.keys():
        gone = [f"missing {name}" for name in sorted(index - tensors.keys())]
        more = [f"unexpected {name}" for name in sorted(tensors.keys() - index)]
        raise CheckpointError(
            f"{path}: the shards are not those of its index: " + "; ".join(gone + more),
            "the tensors that the index names",
            "copy the whole folder again",
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", "weights", "check the path")
    return tensors


def _choose(folder: Path, pattern: str | None) -> tuple[list[Path], set[str] | None]:
    """The files that hold a folder's weights, and the names of its index, if it has one."""
    if pattern is not None:
        files = sorted(folder.glob(pattern))
        if not files:
            raise CheckpointError(f"{folder} has no {pattern}", "the whole folder as it was published")
        return files, None
    for name in INDEXES:
        if (folder / name).is_file():
            return _shards(folder, name)
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name], None
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(f for f in folder.iterdir() if f.suffix in PICKLED and f.name not in UNUSED)
    if not files:
        raise CheckpointError(
            f"{folder} holds no weights", "*.safetensors, *.bin, *.pth or *.pt", "check that the folder is complete"
        )
    return files, None


def _shards(folder: Path, name: str) -> tuple[list[Path], set[str]]:
    table = jsons.read(folder / name).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) and v == Path(v).name for v in table.values()):
        raise CheckpointError(f"{folder / name} has no table of names to files", "`weight_map`", "copy the file again")
    files = [folder / shard for shard in sorted(set(table.values()))]
    if gone := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{folder}: of {len(files)} shards these are missing: {', '.join(gone)}",
            "every file that the index names",
            "copy the whole folder again",
        )
    return files, set(table)


def read_file(path: Path, inside: Sequence[str] = (), scratch: Path | None = None) -> dict[str, Tensor]:
    """All tensors of one file. Raises CheckpointError."""
    if path.suffix in PICKLED:
        path = convert(path, inside, scratch)
    elif path.suffix != ".safetensors":
        raise CheckpointError(f"{path}", f"a file that ends in .safetensors, {', '.join(PICKLED)}")
    return weights_file.read(path)


def convert(path: Path, inside: Sequence[str], scratch: Path | None, seconds: float | None = None) -> Path:
    """Turn a pickled file into safetensors in `scratch`, in a child process.

    Raises:
        CheckpointError: something in the file would run code; a damaged file; more time or memory than allowed.
    """
    if scratch is None:
        raise CheckpointError(
            f"{path} is a pickled file", "safetensors", "mmtune import turns pickled files into safetensors first"
        )
    size = path.stat().st_size
    seconds = SECONDS + size / BYTES_PER_SECOND if seconds is None else seconds
    key = hashlib.sha256(json.dumps([str(path.resolve()), list(inside)]).encode()).hexdigest()[:16]
    out = scratch / f"{path.stem}-{key}"
    if (out / "plain.json").is_file():  # written last
        return out / "model.safetensors"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [sys.executable, "-I", _unpickle.__file__, str(path.resolve()), str(out.resolve()), *inside]
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "MMTUNE_UNPICKLE_BYTES")
    env = {name: os.environ[name] for name in kept if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=out, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{path}: not read after {seconds:.0f} seconds", "a checkpoint of tensors", "the file may be damaged"
        ) from error
    if done.returncode == _unpickle.DONE:
        return out / "model.safetensors"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == _unpickle.REFUSED:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it would run code: {lines[0]}",
            "a pickled file of tensors and plain values",
            "do not use the file unless you know who made it; ask them for safetensors",
        )
    if done.returncode == _unpickle.LIMITS:
        raise CheckpointError(
            f"{path}: reading it takes more memory or disk than a file of {size:,} bytes should: {lines[0]}",
            "a checkpoint of tensors, and room for it",
            "the file may be damaged or made to fill a disk; else convert it on a machine with more memory",
        )
    raise CheckpointError(f"{path} is damaged: {lines[-1]}", "an intact checkpoint", "copy it again")
