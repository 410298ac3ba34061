"""Media: encoded bytes to `Media`. Names are resolved on first use, so a decoder is imported only when needed."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = dict.fromkeys(("Sampling", "load", "frame_times", "sniff"), "base") | {
    "format_times": "_frames",
    "Limits": "_limits",
    "said": "_limits",
    "say": "_limits",
    "settled": "_limits",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
