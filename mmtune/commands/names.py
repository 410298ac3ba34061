"""`mmtune list`: the names that a recipe may use."""

from __future__ import annotations

from mmtune import config, registry
from mmtune.errors import UsageError

SHELVES: tuple[config.Shelf, ...] = ("recipes", "prompts", "cards")


def run(room: str | None) -> None:
    """Print the names of one room or shelf, one a line; without a room, all of them.

    Raises:
        UsageError: no such room.
    """
    known = (*registry.ROOMS, *SHELVES)
    if room is None:
        for name in known:
            print(f"{name}: {', '.join(_names(name)) or '-'}")
        return
    if room not in known:
        raise UsageError(
            seen=f"no room {room!r}", expected="one of " + ", ".join(registry.nearest(room, list(known)))
        )
    for name in _names(room):
        print(name)


def _names(room: str) -> list[str]:
    if room in SHELVES:
        return list(config.shipped(room))  # type: ignore[arg-type]
    return registry.names(room)
