"""Writes tensors to a safetensors file one by one, without a second copy in memory, through `disk.put`.

Layout: eight bytes with the length of the header (little endian), a JSON header of name to dtype, shape and offsets,
then the values, as the description of the format says. The safetensors package reads such files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune import disk
from mmtune.sharded import whole

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_INTS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
_ALIGN = 8


def snapshot(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies in main memory, independent of the tensors that train.

    A tensor that is sharded over ranks is gathered, so every rank has to call this with the same names.

    Args:
        keep: false on a rank that only contributes its shard: it copies nothing.
    """
    copies = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if keep:
            copies[name] = together.to("cpu", copy=True).contiguous()
    return copies


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a file that `safetensors.torch.load_file` reads, one after the other.

    Args:
        dtype: dtype of floating tensors in the file; None keeps that of each tensor.
        metadata: texts for the header.

    Raises OSError.
    """

    def held(name: str) -> torch.dtype:
        own = tensors[name].dtype
        return dtype if dtype is not None and own.is_floating_point else own

    # wide types first, so that every tensor begins at a multiple of its width
    names = sorted(tensors, key=lambda name: (-held(name).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        size = tensors[name].numel() * held(name).itemsize
        header[name] = {
            "dtype": _TYPES[held(name)],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % _ALIGN)

    def chunks() -> Iterator[memoryview | bytes]:
        yield len(head).to_bytes(8, "little") + head
        for name in names:
            flat = tensors[name].detach().to("cpu", held(name)).contiguous().reshape(-1)
            if flat.numel():
                yield flat.view(torch.uint8).numpy().data

    disk.put(path, chunks())


def mark(tensors: Mapping[str, Tensor]) -> int:
    """A sum over the bits of tensors, computed on their device: quick, and different after any single change.

    A different sum proves a change; only a digest proves that there was none.
    """
    total = 0
    for tensor in tensors.values():
        tensor = tensor.detach()
        here = getattr(tensor, "to_local", None)
        flat = (here() if here else tensor).reshape(-1)
        if flat.is_floating_point():
            flat = flat.view(_INTS[flat.element_size()])
        total += int(flat.sum(dtype=torch.int64))
    return total
