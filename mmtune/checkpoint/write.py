"""Writes files of a base part, or of a published layout, into an existing empty folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune import dtypes
from mmtune.checkpoint import tensors as files_of
from mmtune.checkpoint.foreign.base import Exported, Part, is_file_name
from mmtune.errors import CheckpointError

FORMAT = {"format": "pt"}
"""Metadata that transformers expects in a safetensors file."""


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Trees as JSON, texts, and copies of files, by name. Raises CheckpointError unless each is a plain file name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _require_plain(name)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def write_part(folder: Path, part: Part, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors of a base part."""
    files_of.write(folder / "model.safetensors", tensors, dtypes.TYPES[part.dtype] if part.dtype else None, FORMAT)


def write_export(exported: Exported, folder: Path, dtype: str = "float32") -> None:
    """Write what an importer made.

    Args:
        dtype: the one type of all floating tensors.

    Raises CheckpointError for numbers that are not finite, or that are not finite in that dtype.
    """
    files, kind = dict(exported.files), dtypes.TYPES[dtype]
    if isinstance(hf_config := files.get("config.json"), dict):
        files["config.json"] = {**hf_config, "dtype": dtype}
    write_files(folder, files)
    for name, tensors in exported.tensors.items():
        _require_plain(name)
        dtypes.require_finite(_leaves(tensors), f"{name} in {dtype}", kind)
        if name.endswith(".safetensors"):
            files_of.write(folder / name, tensors, kind, FORMAT)
        else:
            torch.save(_plain(tensors, kind), folder / name)


def _require_plain(name: str) -> None:
    if not is_file_name(name):
        raise CheckpointError(f"a file called {name!r}", "a plain file name")


def _plain(tree: Any, dtype: torch.dtype) -> Any:
    """Independent tensors on the CPU, so that neither views nor ties make a pickled file larger."""
    if isinstance(tree, Mapping):
        return {key: _plain(value, dtype) for key, value in tree.items()}
    if not isinstance(tree, Tensor):
        return tree
    return tree.detach().to("cpu", dtype if tree.is_floating_point() else None).contiguous().clone()


def _leaves(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        found |= _leaves(value) if isinstance(value, Mapping) else {key: value} if isinstance(value, Tensor) else {}
    return found
