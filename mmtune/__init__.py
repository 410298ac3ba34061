"""mmtune: add sight and sound to a language model, tune it, and talk with it.

Three verbs, `load`, `chat` and `train`, are resolved on first use: `import mmtune` itself imports nothing heavy.
"""

# The first import of the command decides where all others look, so nothing may come before it, `__future__` included.
from mmtune import safe_path

if safe_path.of_command():
    safe_path.guard()

import importlib
from typing import Any

from mmtune.version import __version__

_VERBS = {"load": "mmtune.serve.loaded", "chat": "mmtune.serve.loaded", "train": "mmtune.training.api"}

__all__ = ["__version__", "chat", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'mmtune' has no attribute {name!r}; the verbs are load, chat, train")


def __dir__() -> list[str]:
    return sorted(__all__)
