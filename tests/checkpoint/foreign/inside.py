"""Pickled files read in this process, by the converter's own functions: the child takes seconds to import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file

from mmtune.checkpoint.foreign import _files, _unpickle

Convert = Callable[..., Path]


def converter(real: Convert = _files.convert) -> Convert:
    """What `_files.convert` does, without another process; what is wrong with a file the real one says."""

    def convert(path: Path, inside: Sequence[str], scratch: Path | None, seconds: float | None = None) -> Path:
        if scratch is None:
            return real(path, inside, scratch, seconds)
        try:
            tensors, _ = _unpickle.flatten(_unpickle.load(str(path)), list(inside))
        except Exception:  # the child says what is wrong with it
            return real(path, inside, scratch, seconds)
        scratch.mkdir(parents=True, exist_ok=True)
        out = scratch / f"{len(list(scratch.iterdir()))}.safetensors"
        save_file(tensors, out)
        return out

    return convert
