"""Files are names: `find("encoders", "clip")` is the one encoder class written in `mmtune/encoders/clip.py`.

There is no list to edit and nothing is imported before it is asked for. A name may also be `package.module:Class`,
a class outside mmtune that keeps the room's contract. A recipe may come from anywhere, so a class that it names in this
way is imported only after the person who runs the program said so: see `allow`. Installed packages may add names to
some rooms (`OPEN`) by entry points; the group is the room behind `mmtune.`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mmtune import safe_path
from mmtune.errors import ConfigError, ModelError

PACKAGE = "mmtune"
ROOMS = (
    "encoders",
    "connectors",
    "llm",
    "fusion",
    "tuners",
    "objectives",
    "optimizers",
    "data/formats",
    "data/orders",
    "eval/tasks",
    "checkpoint/foreign",
    "experts",
)
OPEN = ("experts",)
"""Rooms to which installed packages may add names."""
Builtin = Literal["recipes", "prompts", "cards"]
BUILTINS: tuple[Builtin, ...] = ("recipes", "prompts", "cards")
"""Folders of YAML files that ship with mmtune."""
SUGGESTED = 3
"""Names that an error shows of a longer list."""
APART = ("experts",)
"""Rooms whose entries from outside are imported by a child process only."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_allowed: set[str] = set()
"""`package.module:Class` of what may be imported; of this process, and of no file."""


def allow(names: Iterable[str]) -> None:
    """Let classes outside mmtune be imported in this process, by their names: `package.module:Class`.

    To be called for what a person says, never for what a file says. Raises ConfigError for what is no such name.
    """
    for name in names:
        if not is_outside(name):
            raise ConfigError(f"code named {name!r}", "package.module:Class, as a recipe names it")
        _allowed.add(name)


def is_allowed(name: str) -> bool:
    """Whether a class outside mmtune may be imported: the user allowed it, or an installed package offers it."""
    return name in _allowed or any(name in plugins(room).values() for room in OPEN)


def allowances() -> tuple[str, ...]:
    """What was allowed, for a process that is to do a part of the work of this one."""
    return tuple(sorted(_allowed))


def is_outside(name: Any) -> bool:
    """Whether a name is that of a class outside mmtune, by its form."""
    return isinstance(name, str) and _OUTSIDE.fullmatch(name) is not None


def source(room: str, name: Any) -> str | None:
    """`package.module:Class` that a name stands for; none for a file of the room, and for what is no name at all."""
    if is_outside(name):
        return name
    return plugins(room).get(name) if isinstance(name, str) else None


def needs_word(tree: Any) -> list[str]:
    """Names of classes outside mmtune in a recipe, as plain data, that are not allowed; sorted."""
    if isinstance(tree, dict):
        name = tree.get("name")
        own = {name} if isinstance(name, str) and is_outside(name) and not is_allowed(name) else set()
        return sorted(own.union(*map(needs_word, tree.values())))
    return sorted(set().union(*map(needs_word, tree))) if isinstance(tree, list | tuple) else []


def refuse(names: Iterable[str]) -> None:
    """Raises ConfigError for classes outside mmtune that are not allowed, if there are any."""
    if listed := list(names):
        raise ConfigError(
            f"{', '.join(listed)}: code outside mmtune, which is not allowed to run here",
            "your permission, for code that you trust",
            " ".join(f"--allow-code {name}" for name in listed) + f", or allow_code={listed} in Python",
        )


def names(room: str) -> list[str]:
    """Names that can be used in a room, sorted. Reads the directory and, for an open room, what packages say of
    themselves; imports nothing.

    Raises ConfigError for a room that does not exist.
    """
    return sorted({*_files(room), *plugins(room)})


def plugins(room: str) -> dict[str, str]:
    """Name to `package.module:Class` of what installed packages add to a room. A file of the room goes before it.

    What is in the current folder is not installed, also where Python would look there.
    """
    if room not in OPEN:
        return {}
    from importlib import metadata

    group, own = f"{PACKAGE}.{room.replace('/', '.')}", _files(room)
    found: dict[str, str] = {}
    for package in metadata.distributions(path=safe_path.handed_on()):
        for point in package.entry_points.select(group=group):
            if _NAME.fullmatch(point.name) and _OUTSIDE.fullmatch(point.value) and point.name not in own:
                found.setdefault(point.name, point.value)  # the first is the one that Python imports
    return found


def _files(room: str) -> list[str]:
    if room not in ROOMS:
        raise ConfigError(f"no room {room!r}", f"one of {suggest(room, (*ROOMS, *BUILTINS))}")
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
        room: the room, or set of built-in files, that the names are of; without one, `known` are the rooms and sets of
            built-in files themselves.
    """
    alike = nearest(name, list(known))
    if len(alike) <= SUGGESTED + 1:
        return ", ".join(alike) or "(none yet)"
    command = " ".join(filter(None, ("mmtune list", room)))
    return f"{', '.join(alike[:SUGGESTED])} (all {len(alike)}: {command})"


def builtin_folder(room: Builtin) -> Path:
    """The folder of the shipped recipes, prompts or cards. Raises ConfigError when there is none."""
    package = Path(__file__).resolve().parent
    outside = package.parent / ("data/cards" if room == "cards" else f"configs/{room}")
    inside = package / "configs" / room
    # A folder called configs may be beside an installed package by accident; only a checkout has pyproject.toml there.
    if outside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return outside
    if inside.is_dir():
        return inside
    raise ConfigError(
        f"no folder of {room} at {outside} or {inside}", "mmtune with its configs", "install mmtune again"
    )


def shipped(room: Builtin) -> dict[str, Path]:
    """Name to file of every built-in file of a kind, sorted by name."""
    return {path.stem: path for path in sorted(builtin_folder(room).glob("*.yaml"))}


def contract(room: str) -> type:
    """The class that every entry of a room subclasses: `Contract` in the room's base.py."""
    names(room)
    return _load(f"{PACKAGE}.{room.replace('/', '.')}.base", f"the contract of {room}").Contract


def find(room: str, name: str) -> Any:
    """The entry class called `name`.

    Raises ConfigError for an unknown name (the known ones are listed, nearest first), a class outside mmtune that
    is not allowed, or one that does not keep the room's contract, and ModelError when a package that the entry
    needs is not installed.
    """
    if is_outside(name):
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
    if not is_allowed(name):
        refuse([name])
    base = contract(room)
    path, _, attribute = name.partition(":")
    module = _load(path, f"{name!r} of {room}")
    item = getattr(module, attribute, None)
    if not (inspect.isclass(item) and issubclass(item, base)):
        raise ConfigError(f"{name} is {item!r}", f"a subclass of {base.__module__}:{base.__name__}")
    return item


def outside(tree: Any) -> dict[str, str]:
    """SHA-256 of the source of every loaded module outside mmtune that a recipe, as plain data, names
    `package.module:Class`. Imports nothing.

    A package of one's own seldom has a version that says what changed.
    """
    if isinstance(tree, dict):
        found = {key: digest for item in tree.values() for key, digest in outside(item).items()}
        name = tree.get("name")
        if isinstance(name, str) and is_outside(name):
            path = name.partition(":")[0]
            file = getattr(sys.modules.get(path), "__file__", None)
            if file and Path(file).is_file():
                found[path] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return found
    if isinstance(tree, list | tuple):
        return {key: digest for item in tree for key, digest in outside(item).items()}
    return {}


def folder_of(name: str) -> str | None:
    """The folder in which the package of a class outside mmtune lies; None where there is none to be found.

    Imports nothing.
    """
    spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).absolute().parent)
    return str(Path(spec.origin).absolute().parent) if spec.has_location and spec.origin else None


def _load(path: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or "?"
        if missing == path or path.startswith(missing + "."):
            raise ConfigError(
                f"{what}: there is no module {path}",
                "a module that can be imported; the command does not look in the current folder",
                "PYTHONPATH=FOLDER for modules in a folder of your own",
            ) from error
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
    "wandb": "'mmtune[wandb]'",
}
