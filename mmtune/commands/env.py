"""`mmtune env`: installed packages and devices, and which of them work."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata

from mmtune.version import __version__

PACKAGES = (
    "torch", "transformers", "open_clip_torch", "timm", "peft", "accelerate", "safetensors", "tokenizers", "pydantic",
    "typer", "decord", "eva-decord", "av", "webdataset", "pillow", "numpy", "tensorboard",
)  # fmt: skip
BORDERS = {
    "video": ("decord", "av", "torchcodec"),
    "images": ("PIL",),
    "letters": ("rapidocr", "onnxruntime"),
    "metrics": ("tensorboard", "wandb"),
}
"""Packages by purpose; each is imported to see whether it works, not only whether it is installed."""


def run() -> None:
    """Print everything."""
    print(f"mmtune {__version__}, Python {platform.python_version()} ({sys.executable})")
    print(f"{platform.system()} {platform.machine()}, {_cores()} cores usable")
    for package in PACKAGES:
        print(f"  {package:16} {_version(package)}")
    _devices()
    for job, modules in BORDERS.items():
        for module in modules:
            print(f"  {job:10} {module:12} {_works(lambda module=module: importlib.import_module(module))}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _devices() -> None:
    import torch

    print(f"  threads          {torch.get_num_threads()}")
    if not torch.cuda.is_available():
        print("  gpu              none that torch can use" + ("" if torch.version.cuda else " (torch built for CPU)"))
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        print(f"  gpu {number}            {card.name}, {card.total_memory / 2**30:.0f} GiB")


def _works(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ModuleNotFoundError as error:
        return f"not installed ({error.name})"
    except Exception as error:  # a broken package may raise anything; the reason is printed
        return f"installed but unusable: {type(error).__name__}: {error}".splitlines()[0]
    return "works"
