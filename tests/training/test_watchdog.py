"""Who holds up the others is named: from the beats alone, with a clock that the test turns."""

from __future__ import annotations

import json
import os
import threading

import pytest

from mmtune.training import watchdog
from mmtune.training.watchdog import Watchdog


class Store:
    """A store of one process."""

    def __init__(self):
        self.held = {}

    def set(self, key, value):
        self.held[key] = value.encode() if isinstance(value, str) else value

    def get(self, key):
        return self.held[key]

    def multi_get(self, keys):
        return [self.held[key] for key in keys]

    def check(self, keys):
        return all(key in self.held for key in keys)

    def wait(self, keys, limit):
        pass

    def add(self, key, by):
        self.held[key] = self.held.get(key, 0) + by
        return self.held[key]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    real = watchdog.threading.Thread.start
    monkeypatch.setattr(watchdog.threading.Thread, "start", lambda self: self.name == "mmtune-watchdog" or real(self))
    return now


def ranks(world, deadline=30.0):
    """The pulses of all ranks, on one store, without threads."""
    store = Store()
    return [Watchdog(rank, world, deadline, store) for rank in range(world)]


def look(watchdogs, rank=0):
    """All beat; what one of them finds."""
    for one in watchdogs:
        one._beat()
    beats = watchdogs[rank]._read(range(len(watchdogs)))
    return watchdogs[rank]._lost(beats, 30.0) or watchdogs[rank]._hang(beats)


def pretend(one, **changes):
    """A rank whose last beat says something else."""
    key = f"{one._run}/{one.rank}"
    one._store.set(key, json.dumps({**json.loads(one._store.get(key)), **changes}))


def test_nobody_is_blamed_while_all_go_on(clock):
    watchdogs = ranks(3)
    for step in range(5):
        for one in watchdogs:
            one.enter_stage(f"step {step}")
        clock[0] += 25
        assert look(watchdogs) is None


def test_the_one_that_is_behind_hangs(clock):
    watchdogs = ranks(3)
    for one in watchdogs:
        one.enter_stage("step 7: data", [f"shard/{one.rank}"])
    for one in (watchdogs[0], watchdogs[2]):
        with one.collective("sum of gradients"):
            pass
    clock[0] += 29
    assert look(watchdogs) is None
    clock[0] += 2
    for seen_by in range(3):
        found = look(watchdogs, seen_by)
        assert found.startswith("rank 1 hangs: for 31 s in its last stage: step 7: data with samples shard/1, at ")
        assert "rank 0" not in found and "rank 2" not in found


def test_of_two_that_are_equally_far_the_one_inside_a_collective_waits(clock):
    watchdogs = ranks(2)
    for one in watchdogs:
        one.enter_stage("step 1: forward and backward")
    clock[0] += 31
    for one in watchdogs:
        one._beat()
    pretend(watchdogs[0], waits=True)
    found = watchdogs[0]._hang(watchdogs[0]._read(range(2)))
    assert found.startswith("rank 1 hangs") and "rank 0" not in found


def test_what_may_take_long_is_waited_for(clock):
    watchdogs = ranks(2)
    clock[0] += 1000
    assert look(watchdogs) is None, "before the first step"
    for one in watchdogs:
        one.enter_stage("step 0")
    with watchdogs[0].without_deadline("saving"), watchdogs[1].collective("sum"):
        clock[0] += 1000
        assert look(watchdogs) is None
    assert look(watchdogs) is None, "and the deadline begins anew behind it"


def test_one_that_failed_is_told_with_its_words(clock):
    watchdogs = ranks(2)
    watchdogs[1].enter_stage("step 3: data")
    watchdogs[1]._state = "DataError: nothing left"
    assert look(watchdogs) == "rank 1 failed in its last stage: step 3: data: DataError: nothing left"


def test_one_that_is_done_is_not_missed(clock):
    watchdogs = ranks(2)
    watchdogs[1]._state = "done"
    watchdogs[1]._beat()
    clock[0] += 1000
    watchdogs[0].enter_stage("step 3")
    assert watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0) is None


def test_one_that_is_silent(clock):
    watchdogs = ranks(2)
    watchdogs[0]._read(range(2))
    clock[0] += 31
    watchdogs[0]._beat()
    assert "rank 1 on" in watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0)
    assert "silent for 31 s" in watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0)


def test_one_whose_process_is_gone(clock):
    watchdogs = ranks(2)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    watchdogs[1].enter_stage("step 2: data")
    pretend(watchdogs[1], pid=child)
    found = watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0)
    assert found == f"rank 1 (process {child}) died; its last stage: step 2: data"
    pretend(watchdogs[1], pid=child, host="elsewhere")
    assert watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0) is None, (
        "of another machine a silence is all that tells"
    )
    pretend(watchdogs[1], pid=child, state="done")
    assert watchdogs[0]._lost(watchdogs[0]._read(range(2)), 30.0) is None


def test_a_rank_that_sees_it_leaves_and_tells_the_others(clock, capsys):
    left = []
    store = Store()
    watchdogs = [Watchdog(rank, 2, 30.0, store, leave=left.append) for rank in range(2)]
    watchdogs[0]._over.wait = lambda timeout=None: False
    watchdogs[0]._stop("rank 1 hangs: for 31 s in its last stage: step 0")
    assert left == [watchdog.CODE] and watchdog.CODE != 0
    assert "mmtune: rank 1 hangs" in capsys.readouterr().err
    assert watchdogs[1]._verdict() == "rank 1 hangs: for 31 s in its last stage: step 0"


@pytest.mark.parametrize("kind", ["gone", "full"])
def test_a_rank_leaves_also_where_nobody_reads_its_words(clock, monkeypatch, kind):
    left, tried, over = [], [], threading.Event()

    class Deaf:
        def write(self, text):
            tried.append(text)
            if kind == "full":
                over.wait(30)
            raise BrokenPipeError

    one = Watchdog(0, 2, 30.0, Store(), leave=left.append)
    one._over.wait = lambda timeout=None: False
    monkeypatch.setattr(watchdog, "GRACE_PERIOD", 0.1)
    monkeypatch.setattr(watchdog.sys, "stderr", Deaf())
    one._stop("rank 1 hangs: for 31 s in its last stage: step 0")
    over.set()
    assert left == [watchdog.CODE] and len(tried) == 1
