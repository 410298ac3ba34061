"""JSON files beside weights: read whole or refused, never endless, never half understood."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.errors import CheckpointError

MOST = 256 << 20
"""Bytes of the largest; tokenizers of large vocabularies take 20 MB."""
MOST_VALUES = 20_000_000
"""Values in all, counted by their commas."""


SIZES = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "embed_dim", "layers",
    "width", "dim", "n_layers", "n_heads",
})  # fmt: skip
"""Settings of a model that are whole numbers from 1."""
WHOLE = SIZES | frozenset({
    "intermediate_size", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "num_channels",
    "projection_dim", "num_local_experts", "num_experts", "n_kv_heads", "multiple_of", "head_width", "heads",
    "context_length",
})  # fmt: skip
"""Settings that are whole numbers, and may be null."""
LISTS = frozenset({"image_size", "patch_size", "layers", "num_attention_heads", "intermediate_size"})
"""Of these, those that may be several: height and width, or one for each stage."""
REAL = frozenset({"rope_theta", "rms_norm_eps", "layer_norm_eps", "norm_eps", "ffn_dim_multiplier"})
"""Settings that are numbers above zero."""
TEXT = frozenset({"model_type", "hidden_act", "rope_type"})
"""Settings that are words."""


def settings(path: Path) -> dict[str, Any]:
    """The settings of a model, from a file: `sizes` of what is read. Raises CheckpointError."""
    return sizes(read(path), str(path))


def sizes(tree: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The settings of a model with whole numbers that are whole: 16.0 becomes 16, at any depth.

    A setting that is absent, or null where it may be, is left to its reader.

    Args:
        origin: for messages.

    Raises CheckpointError: sizes, numbers and words of another kind, all of them.
    """
    wrong: list[str] = []
    found = _sizes(tree, wrong)
    if wrong:
        raise CheckpointError(
            f"{origin}: {', '.join(wrong[:8])}",
            "a whole number for a size, a number above zero for a scale, a word for a name",
            "compare the file with the one that was published",
        )
    return found


def _sizes(tree: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        fits = True
        if isinstance(value, Mapping) and key not in WHOLE | REAL | TEXT:
            value = _sizes(value, wrong)
        elif value is None:
            fits = key not in SIZES
        elif key in WHOLE:
            several = value if key in LISTS and isinstance(value, list) and len(value) > 1 else [value]
            fits = all(_is_number(one) and one == math.floor(one) for one in several)
            fits = fits and (key not in SIZES or min(several) >= 1)
            if fits:
                value = [int(one) for one in several] if several is value else int(value)
        elif key in REAL:
            fits = _is_number(value) and value > 0
        elif key in TEXT:
            fits = isinstance(value, str)
        if not fits:
            wrong.append(f"{key} {value!r}"[:80])
        found[key] = value
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def names(tree: Mapping[str, Any], value: Any) -> Iterator[str]:
    """The settings that have a value, at any depth: what a library meant that said no more than it."""
    for key, one in tree.items():
        if isinstance(one, Mapping):
            yield from names(one, value)
        elif type(one) is type(value) and one == value:
            yield key


def told(error: Exception, tree: Mapping[str, Any]) -> str:
    """What a library says of settings that it cannot use, in one line; with their names where it gives the value."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    meant = [name for one in error.args for name in names(tree, one)] if isinstance(error, KeyError) else []
    return line + (f", which is {' and '.join(meant)}" if meant else "")


@contextmanager
def understood(origin: str) -> Iterator[None]:
    """Make sense of settings within: what a reader stumbles over, because a list stands where a table should or a name
    is absent, comes as a CheckpointError that says where it was read."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{origin}: {told(error, {})}", "settings as they are published", "compare the file with the published one"
        ) from error


def read(path: Path, most: int = MOST) -> dict[str, Any]:
    """A JSON object from a plain file.

    Raises CheckpointError: no file, a device or an endless one, one that is too large or nested too deep, no object, a
    key that comes twice, or NaN.
    """
    try:
        text = disk.read_text(path, most)
        if text.count(",") > MOST_VALUES:
            raise ValueError(f"{text.count(','):,} values, and at most {MOST_VALUES:,} are read")
        tree = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}", "a JSON file", "check that the folder is complete") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}", "a JSON object", "copy the file again")
    return tree


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN, which is no setting")
    return float(name.replace("Infinity", "inf"))
