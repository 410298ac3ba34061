"""Checks of the contract of each room, which authors run on their own classes:

    from mmtune import registry, testing

    registry.allow(["my_package.sight:Sight"])
    testing.check("encoders", "my_package.sight:Sight", {"width": 32})

Under pytest, `@pytest.mark.parametrize("check", testing.checks("encoders"))` and `check(testing.make(...))` give one
test for each check. The entries of mmtune itself are held to the same checks. `check` raises AssertionError that says
which of them failed, what it wants, and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmtune import config, registry
from mmtune.errors import ConfigError
from mmtune.testing import (
    connectors,
    encoders,
    experts,
    formats,
    fusion,
    llm,
    objectives,
    optimizers,
    orders,
    tasks,
    tuners,
)

ROOMS: dict[str, Any] = {
    "encoders": encoders,
    "connectors": connectors,
    "fusion": fusion,
    "llm": llm,
    "tuners": tuners,
    "objectives": objectives,
    "optimizers": optimizers,
    "experts": experts,
    "data/formats": formats,
    "data/orders": orders,
    "eval/tasks": tasks,
}
"""Rooms that have checks, with the module of each."""

Check = Callable[[Any], None]


def checks(room: str) -> list[Check]:
    """The checks of a room; each takes what `make` gives. Raises ConfigError for a room that has none."""
    return [*_room(room).CHECKS, fields_are_explained, config_survives_yaml]


def make(room: str, name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """An entry of a room as its checks take it, small and with weights that are the same every time.

    Args:
        name: name of a file of the room, or package.module:Class that is allowed.
        options: its settings, as in a recipe; the smallest that make sense.
        more: `records`, `mmtune.data.formats.base.Record`s that a format or a task can read.

    Raises:
        ConfigError: no such entry, or settings that it does not have.
    """
    made = _room(room).make
    cls = registry.find(room, name)
    return made(cls, config.validate(cls.Config, {"name": name, **(options or {})}, f"{name} of {room}"), **more)


def check(room: str, name: str, options: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Hold one entry to all checks of its room, given as to `make`. Raises AssertionError at the first that fails."""
    made = make(room, name, options, **more)
    for one in checks(room):
        try:
            one(made)
        except Exception as error:
            wanted = " ".join((one.__doc__ or "").split())
            found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{name}, {one.__name__} ({wanted}): {found or 'see above'}") from error


def fields_are_explained(entry: Any) -> None:
    """A docstring stands under each field of the config: it is the help that users read."""
    fields = type(entry.config).model_fields.items()
    bare = [name for name, field in fields if name != "name" and not field.description]
    assert bare == [], f"no docstring under {', '.join(bare)} of {type(entry.config).__name__}"


def config_survives_yaml(entry: Any) -> None:
    """What a recipe in a run folder says is what was built."""
    tree = entry.config.model_dump(mode="json")
    text = config.dump({"entry": tree})
    again = config.validate(type(entry.config), config.parse(text, "test")["entry"])
    assert again == entry.config, f"{entry.config!r} comes back as {again!r}"


def _room(room: str) -> Any:
    if room not in ROOMS:
        raise ConfigError(f"no checks for the room {room!r}", f"one of {', '.join(ROOMS)}")
    return ROOMS[room]
