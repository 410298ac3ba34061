"""Examples as bytes, for the way from a worker to the main process: a JSON head and the raw numbers of the tensors.

Nothing is pickled, and no shared memory or descriptor is left behind.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtune.errors import Note
from mmtune.types import Example, Slot

_ALIGN = 16


def pack(example: Example) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Head and arrays of an example."""
    tensors = [example.tokens, example.labels, *(item for items in example.media.values() for item in items)]
    if example.weights is not None:
        tensors.append(example.weights)
    head = {
        "id": example.id,
        "stream": example.stream,
        "notes": [str(note) for note in example.notes],
        "sequences": example.sequences,
        "weighted": example.weights is not None,
        "slots": [[slot.branch, slot.start, slot.length, slot.item] for slot in example.slots],
        "media": {branch: len(items) for branch, items in example.media.items()},
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors],
    }
    return head, [tensor.detach().contiguous().flatten().view(torch.uint8).numpy() for tensor in tensors]


def dump(head: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """One message."""
    text = json.dumps(head).encode()
    parts = [len(text).to_bytes(8, "little"), text]
    size = 8 + len(text)
    for array in arrays:
        gap = -size % _ALIGN
        parts += [bytes(gap), memoryview(array)]
        size += gap + array.nbytes
    return b"".join(parts)


def load(message: bytes) -> tuple[dict[str, Any], bytearray, int]:
    """Head, the whole message, and where its head ends."""
    size = int.from_bytes(message[:8], "little")
    return json.loads(message[8 : 8 + size]), bytearray(message), 8 + size


def unpack(head: dict[str, Any], data: bytearray, start: int) -> Example:
    """The example of a message."""
    tensors: list[Tensor] = []
    for name, shape in head["tensors"]:
        dtype = getattr(torch, name)
        count = int(np.prod(shape, dtype=np.int64))
        start += -start % _ALIGN
        if count:
            tensors.append(torch.frombuffer(data, dtype=dtype, count=count, offset=start).view(shape))
        else:
            tensors.append(torch.empty(shape, dtype=dtype))
        start += count * dtype.itemsize
    rest = iter(tensors[2:])
    media = {branch: [next(rest) for _ in range(count)] for branch, count in head["media"].items()}
    weights = next(rest) if head["weighted"] else None
    slots = tuple(Slot(*slot) for slot in head["slots"])
    notes = tuple(map(Note, head["notes"]))
    more = (head["stream"], weights, notes, tuple(head["sequences"]))
    return Example(head["id"], tensors[0], tensors[1], slots, media, *more)
