from __future__ import annotations

import contextlib
import json
import os
import pty
import sys

import pytest

from mmtune.training import log, trackers
from mmtune.training.log import Metrics, Progress


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_event_files(tmp_path):
    metrics = Metrics(tmp_path, trackers=trackers.opened(["tensorboard"], tmp_path, 0, {}))
    metrics.write(1, {"loss": 2.5, "stream": "a", "norm": float("nan")})
    metrics.close()
    assert rows(tmp_path) == [{"step": 1, "loss": 2.5, "stream": "a", "norm": "nan"}]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_rows_after_the_saved_step_go(tmp_path):
    first = Metrics(tmp_path)
    for step in range(1, 6):
        first.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # torn by a kill
    again = Metrics(tmp_path, start=3)
    again.write(4, {"loss": 4.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_rows_are_put_in_order_in_one_step(tmp_path, monkeypatch, capsys):
    first = Metrics(tmp_path)
    for step in range(1, 4):
        first.write(step, {"loss": float(step)})

    def full(path, chunks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log.disk, "put", full)
    assert Metrics(tmp_path, start=3).lost == 0  # nothing to drop, nothing to write
    again = Metrics(tmp_path, start=2)
    assert again.lost == 1 and "training goes on" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_broken_tracker_costs_metrics_only(tmp_path, capsys):
    metrics = Metrics(tmp_path)
    metrics.path = tmp_path / "gone" / "metrics.jsonl"
    metrics.write(1, {"loss": 1.0})
    metrics.write(2, {"loss": 1.0})
    assert metrics.lost == 2
    assert capsys.readouterr().err.count("training goes on") == 1


def test_a_board_that_fails_costs_metrics_only(tmp_path, capsys):
    class Broken:
        def write(self, *_):
            raise RuntimeError("no server")

        def close(self):
            raise OSError("no disk")

    metrics = Metrics(tmp_path, trackers=[Broken()])
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1.0})
    metrics.close()
    assert metrics.lost == 4 and [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.count("training goes on") == 1 and "were not closed: no disk" in said


def test_a_warning_that_nobody_can_hear_stops_nothing(tmp_path, monkeypatch):
    class Deaf:
        def write(self, text):
            raise BrokenPipeError

        def isatty(self):
            return False

    monkeypatch.setattr(log.sys, "stderr", Deaf())
    monkeypatch.setattr(log.sys, "stdout", Deaf())
    (tmp_path / "metrics.jsonl").mkdir()
    metrics = Metrics(tmp_path)
    metrics.write(1, {"loss": 1.0})
    assert metrics.lost == 2
    Progress("lines").line("to nobody")
    monkeypatch.setattr(log.sys, "stdout", None)  # as in a process that was started without one
    Progress().line("to nobody")


@pytest.mark.parametrize("gone", ["before", "in between"])
def test_a_terminal_that_goes_away_takes_no_run_with_it(monkeypatch, gone):
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        progress = Progress("auto")
        assert progress.style == "bar"
        if gone == "before":
            os.close(ours)
        progress.start("training", 9)
        progress.at(1, "loss 1")
        if gone == "in between":
            os.close(ours)
        for done in range(2, 10):
            progress.line("a line")
            progress.at(done, "loss 1")
        progress.start("saving", 1)
        progress.stop()
        progress.line("the end")
        assert progress.style == "off"
    with contextlib.suppress(OSError):  # what nobody took
        terminal.close()


def test_plain_lines_are_few():
    said = []
    progress = Progress("lines", said.append)
    progress.start("training", 100)
    for done in range(1, 101):
        progress.at(done, "loss 1")
    assert said == ["training 1/100  loss 1", "training 100/100  loss 1"]
    quiet = Progress("off", said.append)
    quiet.start("x", 1)
    quiet.at(1)
    quiet.line("y")
    assert len(said) == 2
