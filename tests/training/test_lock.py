"""Who holds a run folder: told by process, start and boot; the dead do not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from mmtune.errors import UsageError
from mmtune.training import lock as locks
from mmtune.training.lock import lock


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


def test_what_a_run_forked_does_not_hold_its_lock(tmp_path) -> None:
    """A data worker that was stopped, and lives on after its run was killed, keeps nobody out."""
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from mmtune.training.lock import lock\n"
        "with lock(Path(sys.argv[1])):\n"
        "    worker = os.fork()\n"
        "    if worker == 0:\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        os._exit(0)\n"
        "    os.waitpid(worker, os.WUNTRACED)\n"
        "    print(worker, flush=True)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    try:
        with pytest.raises(UsageError, match="in use by another run"), lock(tmp_path):
            pass  # the run lives
        run.kill()
        run.wait()
        os.kill(worker, 0)
        said: list[str] = []
        with lock(tmp_path, said.append):
            assert "taken over" in said[0]
    finally:
        run.kill()
        os.kill(worker, signal.SIGKILL)


def test_who_holds_the_lock_of_a_run_that_is_gone_is_not_called_that_run(tmp_path, monkeypatch) -> None:
    (tmp_path / ".lock").write_text(json.dumps({**locks.me(), "process": dead()}))
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    monkeypatch.setattr(locks, "_flock", lambda file: False)
    with pytest.raises(UsageError, match="is gone, but a process that it left behind holds its lock"), lock(tmp_path):
        pass


def test_a_lock_that_is_a_link_leaves_its_target(tmp_path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(UsageError, match=r"run/\.lock"), lock(tmp_path / "run"):
        pass
    assert target.read_text() == "mine"
