"""Where named things lie: `mmtune:pocket/image` is a path inside the installed package.

A recipe stored beside weights must mean the same on another machine, so it may name what the package
ships without saying where the package is installed. This is the only file that turns such a name into
a path; everything else (a plain path, a hub repository) passes through unchanged.
"""

from __future__ import annotations

from pathlib import Path

from mmtune.errors import ConfigError

PREFIX = "mmtune:"
"""Marks a place inside the installed package."""

PACKAGE = Path(__file__).resolve().parent


def resolve(text: str) -> Path | str:
    """`mmtune:NAME` -> the path of NAME inside the package; any other text comes back as it is.

    Raises:
        ConfigError: the name leaves the package, or nothing lies there.
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
