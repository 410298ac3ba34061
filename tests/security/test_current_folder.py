"""Modules that lie in the folder in which a command is started do not run, in it or in what it starts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mmtune import children, safe_path
from mmtune.experts import _protocol
from mmtune.experts._process import Process
from tests.security.hostile import Canary, mmtune


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, Canary]:
    """A folder full of traps, and what they leave."""
    canary = Canary(tmp_path / "canary")
    canary.traps(tmp_path / "handed over")
    return tmp_path / "handed over", canary


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (("list", "connectors"), {}),
        (("list", "connectors"), {"PYTHONPATH": ":/nowhere"}),
        (("list", "connectors"), {"PYTHONPATH": "/nowhere:"}),
    ],
    ids=["plain", "empty entry first", "empty entry last"],
)
def test_the_command_run_as_a_module(trapped, words: tuple[str, ...], env: dict[str, str]) -> None:
    folder, canary = trapped
    done = mmtune(*words, cwd=folder, **env)
    assert canary.sung == []
    assert done.returncode == 0, done.stderr


def test_workers_that_are_spawned(trapped, tmp_path: Path) -> None:
    folder, canary = trapped
    words = ("data", "make", "pocket", "--out", str(tmp_path / "out"), "--clips", "2", "--workers", "2")
    done = mmtune(*words, cwd=folder)
    assert canary.sung == []
    assert done.returncode == 0, done.stderr


def test_workers_that_a_program_of_somebody_else_spawns(trapped, tmp_path: Path) -> None:
    folder, canary = trapped
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\nfrom mmtune.data.world.make import make_shards\n"
        f"if __name__ == '__main__': make_shards(Path({str(tmp_path / 'out')!r}), 2, 0, 'easy', workers=2)\n"
    )
    done = mmtune(str(program), cwd=folder, how=())
    assert canary.sung == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("entry", ["", ".", "whole"])
def test_the_process_of_an_expert(trapped, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    folder, canary = trapped
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder) if entry == "whole" else entry, *sys.path])
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{folder}")
    process = Process({"name": "caption", "options": {"run": "x"}, "code": None, "network": False})
    try:
        reply = process.call({"do": "describe"}, b"", time.monotonic() + 60)
    finally:
        process.kill()
    assert canary.sung == []
    assert b"kinds" in reply, _protocol.unpack(reply)


def test_what_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.path.dirname(os.__file__)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), ".", "lib", "/elsewhere", own, str(tmp_path)])
    # behind Python's own library it was put by something that is installed, and shadows nothing
    assert safe_path.handed_on() == [str(tmp_path / "lib"), "/elsewhere", own, str(tmp_path)]


def test_lists_of_folders_lose_what_stands_for_the_current_one() -> None:
    given = {"PATH": "/bin::.:/usr/bin:", "LD_LIBRARY_PATH": ":/lib", "PYTHONPATH": "/x", "PYTHONHOME": "/y"}
    kept = {"PATH": "/bin:/usr/bin", "LD_LIBRARY_PATH": "/lib", "PYTHONSAFEPATH": "1"}
    assert children.environment(given) == kept


def test_a_program_that_imports_mmtune_keeps_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    done = mmtune("import mmtune, os, beside; print(os.environ.get('PYTHONSAFEPATH'))", cwd=tmp_path, how=("-c",))
    assert done.stdout == "None\n", done.stderr


def test_a_package_installed_from_the_current_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an editable install in a checkout, from which workers would not find mmtune otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for value in (None, ""):
        monkeypatch.delenv("PYTHONPATH", raising=False) if value is None else monkeypatch.setenv("PYTHONPATH", value)
        safe_path.guard()
        assert sys.path[-1] == str(tmp_path)
