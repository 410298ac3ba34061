"""Where named things lie: `mmtune:pocket/image` is a path inside the installed package.

A recipe stored beside weights must mean the same on another machine, so it may name what the package
ships (`mmtune:NAME`) without naming where the package is installed, and what is in its own run folder
(`here:NAME`) without saying where that is. This is the only file that turns such names into paths;
everything else (a plain path, a hub repository) passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.addresses import host, is_address
from mmtune.errors import ConfigError, UsageError

PREFIX = "mmtune:"
"""Marks a place inside the installed package."""

HERE = "here:"
"""Marks a place in the folder of the file that names it."""

PACKAGE = Path(__file__).resolve().parent


def resolve(text: str) -> Path | str:
    """`mmtune:NAME` -> the path of NAME inside the package; any other text comes back as it is.

    Raises:
        ConfigError: the name leaves the package, or nothing is there.
    """
    if not text.startswith(PREFIX):
        return text
    name = text[len(PREFIX) :]
    path = (PACKAGE / name).resolve()
    if path == PACKAGE or PACKAGE not in path.parents:
        raise ConfigError(seen=f"the place {text!r}", expected=f"a name inside the package, as {PREFIX}pocket/NAME")
    if not path.exists():
        shipped = PACKAGE / "pocket"
        known = sorted(f"{PREFIX}pocket/{entry.name}" for entry in shipped.iterdir()) if shipped.is_dir() else []
        raise ConfigError(
            seen=f"{text!r}, and nothing lies there",
            expected="one of " + ", ".join(known) if known else "a part that the package ships",
            hint="install the package again, or give a path",
        )
    return path


def portable(path: Path | str) -> str:
    """The way to write a place down: a path inside the package becomes `mmtune:NAME`, all else stays."""
    text = str(path)
    if text.startswith(PREFIX):
        return text
    try:
        return PREFIX + Path(text).resolve().relative_to(PACKAGE).as_posix()
    except ValueError:
        return text


def from_here(tree: Any, folder: Path) -> Any:
    """A tree of settings with every `here:NAME` in it as the absolute path of NAME inside `folder`.

    Raises:
        ConfigError: a name that leaves the folder.
    """
    if isinstance(tree, dict):
        return {key: from_here(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [from_here(value, folder) for value in tree]
    if not isinstance(tree, str) or not tree.startswith(HERE):
        return tree
    root = folder.resolve()
    path = (root / tree[len(HERE) :]).resolve()
    if root not in path.parents:
        raise ConfigError(seen=f"the place {tree!r}", expected=f"a name inside the folder, as {HERE}parts/NAME")
    return str(path)


def to_here(tree: Any, folder: Path) -> Any:
    """The other way: absolute paths of what is in `parts/` of `folder` become `here:parts/NAME`."""
    if isinstance(tree, dict):
        return {key: to_here(value, folder) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_here(value, folder) for value in tree]
    if isinstance(tree, str) and Path(tree).is_absolute():
        root = folder.resolve()
        path = Path(tree).resolve()
        if root / "parts" in path.parents:
            return HERE + path.relative_to(root).as_posix()
    return tree


def refuse_unasked(tree: Any, asked: Sequence[str] = ()) -> None:
    """Refuse the addresses in the recipe of a run folder, which may come from anybody.

    Args:
        tree: the recipe as plain data, or a part of it.
        asked: what the user typed; an address that stands there is asked for.

    Raises UsageError that names the hosts.
    """
    hosts = sorted({host(found) for found in _addresses(tree) if not any(found in typed for typed in asked)})
    if hosts:
        raise UsageError(
            seen=f"the recipe in the run folder names data at {', '.join(hosts[:5])}",
            expected="no contact with an address that only a run folder names",
            hint="--allow-remote where you trust it, or give the data again: --data, or streams.NAME.data=[...]",
        )


def _addresses(tree: Any) -> Iterator[str]:
    if isinstance(tree, str) and is_address(tree):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _addresses(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _addresses(value)
