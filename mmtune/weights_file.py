"""Files of weights from anywhere, read whole or refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mmtune.errors import CheckpointError


def read(path: Path, what: str = "a file of weights") -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        what: what the file is, for messages.

    Raises CheckpointError: no file, no plain file (a pipe would wait for a writer), a header that lies about what
    follows, or a type of number that PyTorch does not have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise CheckpointError(f"{path} does not exist", what, "check the path")
    try:
        if not path.is_file():
            raise ValueError("no plain file")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            f"{what}, an intact safetensors file",
            "copy it again",
        ) from error


def digest(named: Iterable[tuple[str, Tensor]], begin: str = "", end: str = "") -> str:
    """SHA-256 over `begin` and, of each tensor, name, type, shape, `end` and bytes, in hex."""
    total = hashlib.sha256(begin.encode())
    for name, tensor in named:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}{end}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
