"""docs/architecture.md tells of the code that is there: its floors, its files, and every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmtune import registry, types
from tests.test_floors import FLOORS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/architecture.md", "CONTRIBUTING.md", "README.md", "CHANGELOG.md")
PAGE = (ROOT / PAGES[0]).read_text(encoding="utf-8")


def drawn() -> dict[str, int]:
    """Name to floor, as the drawing of the page has them."""
    found: dict[str, int] = {}
    block = PAGE.split("```text\n")[1].split("```")[0]
    for line in block.splitlines():
        floor, names = re.match(r"(\d)  ((?:\w+/?  ?)*\w+/?)(?:   |$)", line).groups()
        found |= dict.fromkeys((name.strip("/") for name in names.split()), int(floor))
    return found


def test_the_drawing_has_the_floors_of_the_code() -> None:
    """Where this fails, a module moved or came: the first drawing of docs/architecture.md has to say so too."""
    assert drawn() == FLOORS


def test_every_room_has_its_row_and_every_type_its_place() -> None:
    rows = set(re.findall(r"^\| `mmtune/([\w/]+)` \|", PAGE, re.M))
    assert rows == set(registry.ROOMS)
    named = [name for name, item in vars(types).items() if isinstance(item, type) and item.__module__ == types.__name__]
    assert [name for name in named if not re.search(rf"\b{name}\b", PAGE)] == []


def test_letters_of_the_page_are_those_of_the_types() -> None:
    rows = re.search(r"\| letter \|.*?\n\n", PAGE, re.S)[0]
    told = set(re.findall(r"\| ([A-Z]) \|", rows)) | set(re.findall(r"^\| ([A-Z]) \|", rows, re.M))
    assert told >= set(re.findall(r"`([A-Z])`", types.__doc__))


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:mmtune|tests|tools|configs|data|docs)/[\w/.-]+)`", text))
    assert named
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert [path for path in missing if "/X." not in path] == []  # X stands for what somebody adds
