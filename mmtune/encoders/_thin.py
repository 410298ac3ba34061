"""Importing a part of a package without the rest of it.

`import a.b` runs `a/__init__.py` first, and some packages import everything there: for an image tower, open_clip's
brings text towers, tokenizers and downloads, and torchvision's its models and data sets. That is a second before the
first answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


@contextmanager
def thin(*packages: str) -> Iterator[None]:
    """Inside the block, submodules of these packages are imported alone; parents are named before their children.

    An empty package stands in for the real one meanwhile. After the block the real one is not imported yet; code that
    imports it gets it as ever, and the submodules that are there already are the ones in it. A package that was
    imported before, or is not installed, is left as it is.
    """
    stand_ins: dict[str, ModuleType] = {}
    try:
        for package in packages:
            spec = None if package in sys.modules else find_spec(package)
            if spec is not None and spec.submodule_search_locations is not None:
                stand_ins[package] = sys.modules[package] = module_from_spec(spec)
        yield
    finally:
        for package, module in stand_ins.items():
            if sys.modules.get(package) is module:
                del sys.modules[package]
        if stand_ins and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        _EARLY.update(stand_ins)


_EARLY: set[str] = set()
"""Packages of which submodules may have been imported alone."""


class _Finder(MetaPathFinder):
    """Finds those packages where they are, and has their early submodules put into them."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _EARLY else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Does what an import does after each submodule, for those that were imported without their package."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.real
        for name, part in list(sys.modules.items()):
            parent, _, last = name.rpartition(".")
            if parent == module.__name__:
                setattr(module, last, part)
        self.real.exec_module(module)
