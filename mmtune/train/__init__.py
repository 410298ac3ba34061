"""Training. The room itself can be called: `mmtune.train(recipe, out)` is `mmtune.train.loop.train(recipe, out)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that is also the verb it is named after; nothing is imported before it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from mmtune.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
