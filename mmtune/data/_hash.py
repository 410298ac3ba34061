"""Numbers by name, the same in every process: what the order of samples and their draws come from."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_text(text: str) -> int:
    """A number below 2^64 for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mix(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one: the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
