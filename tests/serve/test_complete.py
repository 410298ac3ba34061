"""What Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.serve.complete import complete

WORDS = {"image": None, "save": None, "set": lambda: ["temperature", "seed"]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my things").mkdir()
    for name in ("my things/my dog.png", "a.png", "it's.png", ".hidden"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    """Lines as they stand after Tab; readline cuts the line at blanks."""
    begin = max(line.rfind(blank) for blank in " \t") + 1
    return [line[:begin] + word for word in complete(line, begin, WORDS)]


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("/s", ["/save ", "/set "]),
        ("/set te", ["/set temperature "]),
        ("/image my", ["/image my\\ things/"]),
        ("/image my\\ ", ["/image my\\ things/"]),
        ("/image my\\ things/my\\ d", ["/image my\\ things/my\\ dog.png "]),
        ("/image my th", ["/image my things/"]),
        ("/image my things/my d", ["/image my things/my dog.png "]),
        ("/image 'my th", ["/image 'my things/"]),
        ("/image 'my things/my d", ["/image 'my things/my dog.png' "]),
        ('what is "my th', ['what is "my things/']),
        ("what is in ./my\\ things/m", ["what is in ./my\\ things/my\\ dog.png "]),
        ("what's in a", ["what's in a.png "]),
        ("it", ["it\\'s.png "]),
        ("/save ", ["/save a.png ", "/save it\\'s.png ", "/save my\\ things/"]),
        ("hello wor", []),
        ("'", ["'a.png' ", "'it's.png' ", "'my things/"]),
    ],
)
def test_names_are_completed_behind_blanks(line: str, after: list[str]) -> None:
    assert offered(line) == after


def test_folders_are_completed_from_the_root_and_from_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert offered("~/my") == ["~/my\\ things/"] and offered(f"{here}/my\\ th") == [f"{here}/my\\ things/"]
    assert offered(f"{here}/my things/my") == [f"{here}/my things/my dog.png "]
