"""Settings of a published tower: checks that a tower can be built from them, and that they ask for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.errors import CheckpointError

STRANGE = (
    "dtype", "torch_dtype", "auto_map", "_attn_implementation", "attn_implementation", "_name_or_path",
    "_attn_implementation_internal", "quantization_config", "custom_pipelines",
)  # fmt: skip
"""What a folder says of its loader. A tower is built in float32 with the attention of PyTorch, from its numbers alone;
an attention that is named could be fetched."""
MOST: dict[str, int] = {
    "hidden_size": 65_536,
    "d_model": 65_536,
    "intermediate_size": 1_000_000,
    "num_hidden_layers": 2000,
    "encoder_layers": 2000,
    "decoder_layers": 2000,
    "num_attention_heads": 4096,
    "image_size": 16_384,
    "patch_size": 16_384,
    "num_channels": 64,
    "num_mel_bins": 16_384,
    "max_length": 1_000_000,
    "max_source_positions": 1_000_000,
}
"""Sizes by which memory is taken before a weight is read, and the most that each may be."""


def plain_config(kind: type, tree: Mapping[str, Any], origin: str) -> Any:
    """A config of transformers from the numbers of a folder.

    Raises CheckpointError for sizes that are no whole numbers, or absurd, and for settings that do not go together.
    """
    wrong = [
        f"{name}: {value!r}"
        for name, most in MOST.items()
        if (value := tree.get(name)) is not None and not _fits(value, most)
    ]
    if wrong:
        raise CheckpointError(
            f"{origin}: config.json with {', '.join(one[:80] for one in wrong)}",
            "; ".join(f"{one.split(':')[0]}: a whole number from 1 to {MOST[one.split(':')[0]]:,}" for one in wrong),
            "copy the folder again",
        )
    whole = {
        name: int(value) if name in MOST and isinstance(value, float) else value
        for name, value in tree.items()
        if name not in STRANGE
    }
    try:
        return kind.from_dict(whole)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises whatever a config that makes no sense leads to
        raise CheckpointError(
            f"{origin}: config.json: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "settings that go together",
            "copy the folder again",
        ) from error


def _fits(value: Any, most: int) -> bool:
    if isinstance(value, list):  # sizes of an axis each
        return bool(value) and all(_fits(one, most) for one in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value == value and 1 <= value <= most and value == int(value)
