"""Files are names: `find("encoders", "clip")` is the one encoder class written in `mmtune/encoders/clip.py`.

There is no list to edit and nothing is imported before it is asked for. A name may also be `package.module:Class`,
a class outside mmtune that keeps the room's contract; only code that is already installed can be reached this way.
Installed packages may add names to some rooms (`OPEN`) by entry points; the group is the room behind `mmtune.`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mmtune.errors import ConfigError, ModelError

PACKAGE = "mmtune"
ROOMS = (
    "encoders",
    "connectors",
    "llm",
    "fusion",
    "tuners",
    "objectives",
    "data/formats",
    "eval/tasks",
    "checkpoint/foreign",
    "experts",
)
OPEN = ("experts",)
"""Rooms to which installed packages may add names."""
Shelf = Literal["recipes", "prompts", "cards"]
SHELVES: tuple[Shelf, ...] = ("recipes", "prompts", "cards")
"""Folders of YAML files that ship with mmtune."""
SUGGESTED = 3
"""Names that an error shows of a longer list."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def names(room: str) -> list[str]:
    """Names that can be used in a room, sorted. Reads the directory and, for an open room, what packages say of
    themselves; imports nothing.

    Raises ConfigError for a room that does not exist.
    """
    return sorted({*_files(room), *plugins(room)})


def plugins(room: str) -> dict[str, str]:
    """Name to `package.module:Class` of what installed packages add to a room. A file of the room goes before it."""
    if room not in OPEN:
        return {}
    from importlib import metadata

    points = metadata.entry_points(group=f"{PACKAGE}.{room.replace('/', '.')}")
    own = _files(room)
    return {
        point.name: point.value
        for point in points
        if _NAME.fullmatch(point.name) and _OUTSIDE.fullmatch(point.value) and point.name not in own
    }


def _files(room: str) -> list[str]:
    if room not in ROOMS:
        raise ConfigError(f"no room {room!r}", f"one of {suggest(room, (*ROOMS, *SHELVES))}")
    folder = Path(__file__).parent / room
    files = (path.stem for path in folder.glob("*.py"))
    return sorted(name for name in files if not name.startswith("_") and name != "base")


def nearest(name: str, known: list[str]) -> list[str]:
    """The known names, most alike first."""
    alike = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.5)
    return alike + [other for other in known if other not in alike]


def suggest(name: str, known: Iterable[str], room: str | None = None) -> str:
    """The names most like a wrong one, for an error; of a long list three, and the command that prints all of it.

    Args:
        room: the room or shelf that the names are of; without one, `known` are the rooms and shelves themselves.
    """
    alike = nearest(name, list(known))
    if len(alike) <= SUGGESTED + 1:
        return ", ".join(alike) or "(none yet)"
    command = " ".join(filter(None, ("mmtune list", room)))
    return f"{', '.join(alike[:SUGGESTED])} (all {len(alike)}: {command})"


def shelf(kind: Shelf) -> Path:
    """The folder of the shipped recipes, prompts or cards. Raises ConfigError when there is none."""
    package = Path(__file__).resolve().parent
    outside = package.parent / ("data/cards" if kind == "cards" else f"configs/{kind}")
    inside = package / "configs" / kind
    # A folder called configs may lie beside an installed package by accident; only a checkout has pyproject.toml there.
    if outside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return outside
    if inside.is_dir():
        return inside
    raise ConfigError(
        f"no folder of {kind} at {outside} or {inside}", "mmtune with its configs", "install mmtune again"
    )


def shipped(kind: Shelf) -> dict[str, Path]:
    """Name to file of everything on a shelf, sorted by name."""
    return {path.stem: path for path in sorted(shelf(kind).glob("*.yaml"))}


def contract(room: str) -> type:
    """The class that every entry of a room subclasses: `Contract` in the room's base.py."""
    names(room)
    return _load(f"{PACKAGE}.{room.replace('/', '.')}.base", f"the contract of {room}").Contract


def find(room: str, name: str) -> Any:
    """The entry class called `name`.

    Raises ConfigError for an unknown name (the known ones are listed, nearest first) or a class that does not keep
    the room's contract, and ModelError when a package that the entry needs is not installed.
    """
    if isinstance(name, str) and _OUTSIDE.fullmatch(name):
        return _outside(room, name)
    known = names(room)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name not in known:
        raise ConfigError(
            f"{room} has no {name!r}", f"one of {suggest(str(name), known, room)}, or package.module:Class"
        )
    if name not in _files(room):
        return _outside(room, plugins(room)[name])
    base = contract(room)
    module = _load(f"{PACKAGE}.{room.replace('/', '.')}.{name}", f"{name!r} of {room}")
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and item.__module__ == module.__name__ and issubclass(item, base)
    ]
    # Helpers of an entry start with an underscore; the entry itself is the public one.
    public = [item for item in found if not item.__name__.startswith("_")]
    if len(public) != 1:
        listed = ", ".join(item.__name__ for item in public) or "none"
        raise ConfigError(f"{module.__name__} defines {listed}", f"exactly one public subclass of {base.__name__}")
    return public[0]


def _outside(room: str, name: str) -> type:
    base = contract(room)
    path, _, attribute = name.partition(":")
    module = _load(path, f"{name!r} of {room}")
    item = getattr(module, attribute, None)
    if not (inspect.isclass(item) and issubclass(item, base)):
        raise ConfigError(f"{name} is {item!r}", f"a subclass of {base.__module__}:{base.__name__}")
    return item


def outside(tree: Any) -> dict[str, str]:
    """SHA-256 of the source of every module outside mmtune that a recipe, as plain data, names `package.module:Class`.

    A package of one's own seldom has a version that says what changed.
    """
    if isinstance(tree, dict):
        found = {key: digest for item in tree.values() for key, digest in outside(item).items()}
        name = tree.get("name")
        if isinstance(name, str) and _OUTSIDE.fullmatch(name):
            path = name.partition(":")[0]
            source = getattr(_load(path, repr(name)), "__file__", None)
            if source and Path(source).is_file():
                found[path] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        return found
    if isinstance(tree, list | tuple):
        return {key: digest for item in tree for key, digest in outside(item).items()}
    return {}


def _load(path: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or "?"
        if missing == path or path.startswith(missing + "."):
            raise ConfigError(f"{what}: there is no module {path}", "a module that can be imported") from error
        raise ModelError(
            f"{what} needs the package {missing!r}, which is not installed",
            hint=f"pip install {_DISTRIBUTIONS.get(missing.partition('.')[0], missing.partition('.')[0])}",
        ) from error


_DISTRIBUTIONS = {
    "open_clip": "open_clip_torch",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "rapidocr": "'mmtune[ocr]'",
    "onnxruntime": "'mmtune[ocr]'",
    "gradio": "'mmtune[web]'",
    "fastapi": "'mmtune[serve]'",
    "uvicorn": "'mmtune[serve]'",
    "flash_attn": "'mmtune[flash]'",
}
