"""Shared by encoders: finds weights, and fills a module from safetensors, strictly.

Only safetensors are read, because reading them runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtune import dtypes, weights_file
from mmtune.encoders.base import weights_path
from mmtune.errors import CheckpointError
from mmtune.paths import resolve

LISTED = 20


def locate(text: str, revision: str | None = None, patterns: tuple[str, ...] = ("*.json", "*.safetensors")) -> Path:
    """A weights setting as an existing file or folder.

    `text` is a path, `mmtune:NAME` inside the package, or a hub repository `owner/name`, which is fetched (or found in
    the cache) when no such path exists. Raises CheckpointError.
    """
    path = weights_path(str(resolve(text)))
    if path.exists():
        return path
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no file or folder {path}", "weights in safetensors", "give a path, or a hub repository as owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{text}: neither a path here nor a repository that can be fetched ({type(error).__name__})",
            "a folder, a file, or a hub repository",
            f"fetch it with `hf download {text}` where there is a network, then give the folder",
        ) from error


def read_tensors(path: Path, preferred: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a folder: the first preferred name that exists, else every shard.

    Raises CheckpointError when there is none or one is damaged.
    """
    if path.is_dir():
        chosen = [path / name for name in preferred if (path / name).is_file()][:1]
        files = chosen or sorted(path.glob("*.safetensors"))
    else:
        files = [path] if path.suffix == ".safetensors" else []
    if not files:
        raise CheckpointError(
            f"no *.safetensors at {path}",
            "weights in safetensors; other formats can run code when they are read and are refused",
            "convert them with the library that wrote them",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= weights_file.read(file)
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load `tensors` into `module`; every missing, unexpected and misshapen name is listed in one CheckpointError.

    Values take the module's dtype; a module on the meta device takes the tensors themselves.
    """
    own = module.state_dict()
    problems = [f"missing {name} {list(own[name].shape)}" for name in own.keys() - tensors.keys()]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors.keys() - own.keys()]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            problems.append(f"{name} is {list(tensors[name].shape)}, the model has {list(own[name].shape)}")
    if problems:
        shown = sorted(problems)[:LISTED]
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise CheckpointError(
            "\n".join([f"{origin} does not fit:", *(f"  {line}" for line in shown + more)]),
            "exactly the model's names and shapes",
            "check that the architecture (`model`) is the one the weights were made for",
        )
    dtypes.require_finite(tensors, origin)
    meta = any(tensor.is_meta for tensor in own.values())
    with torch.no_grad():
        module.load_state_dict(dict(tensors), strict=True, assign=meta)
