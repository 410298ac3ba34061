"""Turns a pickled checkpoint into safetensors; run as a script in a child process of its own, see `_files`.

    python -I _unpickle.py FILE OUT KEY...

`torch.load(weights_only=True)` builds tensors and plain values and calls nothing that the file names. Allowed besides:
`argparse.Namespace` and numpy's numbers, which training scripts leave in their files and which only hold values. The
limits of memory and file size are set here, by the process that they bind, before the file is opened.

Leaves OUT/model.safetensors and OUT/plain.json, or prints one line that says why not. Exit code: 0 done, 3 refused
(something in the file would have run), 4 damaged, 5 too large for the limits. Imports nothing of mmtune.
"""

import argparse
import json
import os
import pickle
import pickletools
import resource
import sys
import zipfile
from typing import Any

DONE, REFUSED, DAMAGED, LIMITS = 0, 3, 4, 5
GIB = 1 << 30
SCANNED = 1 << 26
"""Most bytes that are looked through before."""
HARMLESS = ("torch", "collections ", "argparse ", "numpy", "_codecs ", "builtins ", "__builtin__ ")
"""Beginnings of names that `weights_only` is left to decide about."""


def limit(size: int) -> None:
    """Bind this process: a file of `size` bytes may take so much address space, disk and no core file."""
    space = int(os.environ.get("MMTUNE_UNPICKLE_BYTES", 0)) or 16 * GIB + 4 * size
    for what, most in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_FSIZE, GIB + 2 * size),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def stranger(path: str) -> str | None:
    """A name in the file that has nothing to do with tensors, found without running anything; none says nothing.

    Only spares the seconds of importing torch: what `weights_only` refuses is decided there.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    text = file.read(SCANNED)
        else:
            with open(path, "rb") as plain:
                text = plain.read(SCANNED)
        for code, argument, _ in pickletools.genops(text):
            if code.name == "GLOBAL" and not str(argument).startswith(HARMLESS):
                return f"GLOBAL {argument}"
    except (ValueError, StopIteration, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, IndexError):
        return None
    return None


def load(path: str) -> Any:
    """The content of a pickled file, tensors on the CPU."""
    import numpy as np
    import torch

    numbers = [np.dtype(kind) for kind in "?bhilqBHILQefd"]
    harmless = [argparse.Namespace, np.dtype, *{type(number) for number in numbers}]
    scalar = np.float64(0).__reduce__()[0]
    named = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    torch.serialization.add_safe_globals([*harmless, *named])
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # files older than torch 1.6 are no archives
            raise
    return torch.load(path, map_location="cpu", weights_only=True)


def flatten(tree: Any, inside: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name -> tensor, name -> plain value); names of nested mappings are joined by a slash."""
    import torch

    if isinstance(tree, dict):
        tree = next((tree[key] for key in inside if isinstance(tree.get(key), dict)), tree)
    tensors: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, argparse.Namespace):
            node = vars(node)
        if isinstance(node, torch.Tensor):
            if node.layout != torch.strided or node.is_quantized:
                raise ValueError(f"{path} is a {node.layout} tensor, not a plain one")
            # views of one storage (tied weights, slices of a large buffer) become tensors of their own
            tensors[path or "tensor"] = node.detach().contiguous().clone()
        elif isinstance(node, dict):
            stack += [(f"{path}/{key}" if path else str(key), value) for key, value in node.items()]
        elif isinstance(node, list | tuple) and any(isinstance(item, torch.Tensor | dict) for item in node):
            stack += [(f"{path}/{index}" if path else str(index), value) for index, value in enumerate(node)]
        else:
            plain[path] = node if isinstance(node, str | int | float | bool | list | None) else str(node)
    return tensors, plain


def main(path: str, out: str, inside: list[str]) -> tuple[int, str]:
    """Exit code, and why."""
    limit(os.path.getsize(path))
    if found := stranger(path):
        return REFUSED, found
    try:
        tensors, plain = flatten(load(path), inside)
        from safetensors.torch import save_file

        save_file(tensors, os.path.join(out, "model.safetensors"))
        with open(os.path.join(out, "plain.json"), "w", encoding="utf-8") as file:
            json.dump(plain, file, default=str)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "GLOBAL" in text or "nsupported" in text or "persistent" in text:
            return REFUSED, next((line.strip() for line in text.splitlines() if "GLOBAL" in line), text[:300])
        return DAMAGED, text.splitlines()[0][:300]
    except MemoryError as error:
        return LIMITS, str(error) or "out of memory"
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        large = "allocate memory" in text or getattr(error, "errno", None) in (12, 27)  # ENOMEM, EFBIG
        return (LIMITS if large else DAMAGED), text
    return DONE, ""


if __name__ == "__main__":
    code, why = main(sys.argv[1], sys.argv[2], sys.argv[3:])
    if why:
        print(why)
    sys.exit(code)
