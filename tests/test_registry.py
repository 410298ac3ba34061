"""A name is a file; nothing is imported before it is asked for; what is not there is said."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mmtune import registry
from mmtune.errors import ConfigError, ModelError

MADE = """
from mmtune.{room}.base import Contract
class _Helper(Contract):
    pass
class Entry(_Helper):
    Config = Contract.Config
"""


@pytest.mark.parametrize("room", registry.ROOMS)
def test_every_entry_of_every_room_is_found(room: str) -> None:
    base = registry.contract(room) if (Path(registry.__file__).parent / room / "base.py").is_file() else None
    for name in registry.names(room):
        assert base is not None
        cls = registry.find(room, name)
        assert issubclass(cls, base)
        assert cls is not base
        assert issubclass(cls.Config, base.Config) if hasattr(base, "Config") else True


def test_names_leave_out_what_is_no_entry() -> None:
    names = registry.names("encoders")
    assert "clip" in names
    assert names == sorted(names)
    assert not {"base", "__init__"} & set(names)
    assert not any(name.startswith("_") for name in names)


def test_names_import_nothing() -> None:
    code = "import sys; from mmtune import registry; registry.names('encoders'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_name_shows_the_nearest_three_and_the_command_that_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.find("connectors", "linaer")
    assert "'linaer'" in caught.value.seen
    assert caught.value.expected.startswith("one of linear, ")
    shown = caught.value.expected.partition(" (")[0].removeprefix("one of ").split(", ")
    assert len(shown) == 3 and set(shown) < set(registry.names("connectors"))
    assert f"(all {len(registry.names('connectors'))}: mmtune list connectors)" in caught.value.expected


def test_a_short_list_is_shown_whole() -> None:
    assert registry.suggest("b", ["abc", "b2", "c"], "prompts") == "b2, abc, c"
    assert registry.suggest("b", [], "prompts") == "(none yet)"


@pytest.mark.parametrize("name", ["", "base", "_weights", "../llm/hf", "clip.py", "os:path", "a:b:c", "Clip", None, 3])
def test_names_that_are_none(name: object) -> None:
    with pytest.raises(ConfigError):
        registry.find("encoders", name)  # type: ignore[arg-type]


def test_an_unknown_room() -> None:
    with pytest.raises(ConfigError, match="'cellar'"):
        registry.names("cellar")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("their_package")
    exec(MADE.format(room="connectors"), module.__dict__)
    monkeypatch.setitem(sys.modules, "their_package", module)
    return module


def test_the_source_of_what_lies_outside_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs_on_disk.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs_on_disk", raising=False)
    tree = {"streams": {"a": {"objective": {"name": "theirs_on_disk:Entry"}}}, "list": [{"name": "clip"}], "name": None}
    assert registry.outside(tree) == {}  # what is not loaded did nothing
    importlib.import_module("theirs_on_disk")
    assert registry.outside(tree) == {"theirs_on_disk": hashlib.sha256(b"x = 1\n").hexdigest()}
    assert registry.outside({"prompt": "theirs_on_disk:Entry", "name": "clip"}) == {}


def test_a_class_outside(outside: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match="--allow-code their_package:Entry"):
        registry.find("connectors", "their_package:Entry")
    registry.allow(["their_package:Entry", "their_package:Other", "nobody_has_this:Entry"])
    assert registry.find("connectors", "their_package:Entry") is outside.Entry
    with pytest.raises(ConfigError, match="their_package:Entry"):
        registry.find("encoders", "their_package:Entry")
    with pytest.raises(ConfigError, match="None"):
        registry.find("connectors", "their_package:Other")
    with pytest.raises(ConfigError, match="no module nobody_has_this"):
        registry.find("connectors", "nobody_has_this:Entry")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package of the same build, whose rooms may be filled at will."""
    rooms = tmp_path / "hut" / "tuners"
    rooms.mkdir(parents=True)
    (rooms.parent / "__init__.py").write_text("")
    (rooms / "__init__.py").write_text("")
    (rooms / "base.py").write_text("class Tuner:\n    pass\nContract = Tuner\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "PACKAGE", "hut")
    monkeypatch.setattr(registry, "__file__", str(rooms.parent / "registry.py"))
    yield rooms
    for name in [name for name in sys.modules if name.split(".")[0] == "hut"]:
        del sys.modules[name]


def test_the_entry_of_a_file_is_its_one_public_class(house: Path) -> None:
    head = "from hut.tuners.base import Tuner\n"
    (house / "good.py").write_text(head + "class _Half(Tuner): pass\nclass Good(_Half): pass\nclass Other: pass\n")
    (house / "two.py").write_text(head + "class One(Tuner): pass\nclass Two(Tuner): pass\n")
    (house / "empty.py").write_text(head)
    assert registry.names("tuners") == ["empty", "good", "two"]
    assert registry.find("tuners", "good").__name__ == "Good"
    with pytest.raises(ConfigError, match="defines One, Two"):
        registry.find("tuners", "two")
    with pytest.raises(ConfigError, match=r"hut\.tuners\.empty"):
        registry.find("tuners", "empty")


def test_a_package_that_is_absent_is_named(house: Path) -> None:
    (house / "needy.py").write_text("import rapidocr.nothing\n")
    (house / "clumsy.py").write_text("import nobody_has_this\n")
    with pytest.raises(ModelError, match=r"'nobody_has_this'.*\n.*pip install nobody_has_this"):
        registry.find("tuners", "clumsy")
    with pytest.raises(ModelError, match=r"pip install 'mmtune\[ocr\]'"):
        registry.find("tuners", "needy")
