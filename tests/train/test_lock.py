"""Who holds a run folder: told by process, start and boot; the dead do not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from mmtune.errors import UsageError
from mmtune.train import lock as locks
from mmtune.train.lock import lock


def dead() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("changes", "lives"),
    [
        ({}, True),
        ({"process": "dead"}, False),
        ({"boot": "another"}, False),
        ({"started": "1"}, False),
        ({"machine": "elsewhere", "boot": "another"}, True),
    ],
)
def test_who_lives(changes: dict[str, str], lives: bool) -> None:
    changes = {**changes, **({"process": dead()} if "process" in changes else {})}
    if locks._boot() is None:
        pytest.skip("a system that does not tell its boots apart")
    assert locks.alive({**locks.me(), **changes}) is lives


def test_a_lock_is_left_clean(tmp_path) -> None:
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_holder_that_was_killed_is_named(tmp_path) -> None:
    (tmp_path / ".lock").write_text(json.dumps({**locks.me(), "process": dead()}))
    said: list[str] = []
    with lock(tmp_path, said.append):
        assert "left" in said[0] and "taken over" in said[0]


@pytest.mark.parametrize(("holder", "taken"), [({}, False), ({"boot": "another"}, True), ({"machine": "x"}, False)])
def test_where_files_have_no_locks_the_holder_decides(tmp_path, monkeypatch, holder, taken) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    (tmp_path / ".lock").write_text(json.dumps({**locks.me(), "process": os.getppid(), "started": None, **holder}))
    if taken:
        with lock(tmp_path):
            pass
        return
    with pytest.raises(UsageError, match="is in use by another run"), lock(tmp_path):
        pass


def test_workers_of_a_killed_run_get_time_to_leave(tmp_path, monkeypatch) -> None:
    """The lock of a dead process may live on in its children; they leave when they see that it is gone."""
    (tmp_path / ".lock").write_text(json.dumps({**locks.me(), "process": dead()}))
    answers = iter([False, False, True])
    monkeypatch.setattr(locks, "_flock", lambda file: next(answers))
    with lock(tmp_path):
        pass
    assert next(answers, None) is None
