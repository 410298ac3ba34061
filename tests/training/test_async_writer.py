"""Saves are written beside the training, one at a time, and a failed one is not lost."""

from __future__ import annotations

import threading

import pytest

from mmtune.errors import CheckpointError
from mmtune.training.async_writer import Saver


def full() -> None:
    raise CheckpointError("no room")


def test_training_does_not_wait() -> None:
    go, seen = threading.Event(), []
    with Saver(seen.append) as saver:
        saver.start(1, lambda: (go.wait(60), seen.append("written")))
        assert seen == [], "start has come back before the write was done"
        go.set()
        saver.wait()
        assert seen == ["written"]
    assert saver.waited == 0


def test_one_at_a_time_and_that_is_said() -> None:
    go, seen = threading.Event(), []
    threading.Timer(0.05, go.set).start()
    with Saver(seen.append) as saver:
        saver.start(1, lambda: (go.wait(60), seen.append("first")))
        saver.start(2, lambda: seen.append("second"))
    written = [text for text in seen if text in ("first", "second")]
    assert written == ["first", "second"] and "step 2 had to wait" in " ".join(seen) and saver.waited > 0


def test_a_failure_stops_the_run() -> None:
    seen: list[str] = []
    saver = Saver(seen.append)
    saver.start(4, full)
    with pytest.raises(CheckpointError, match="no room"):
        saver.wait()
    assert "the state of step 4 was not saved: no room" in seen[0] and not saver.failed
    saver.start(5, full)
    with pytest.raises(CheckpointError):
        saver.start(6, lambda: None)


def test_a_failure_is_counted_where_the_run_goes_on() -> None:
    seen: list[str] = []
    with Saver(seen.append, "go_on") as saver:
        saver.start(1, full)
        saver.start(2, full)
        saver.start(3, lambda: None)
    assert saver.failures == 2 and len([text for text in seen if "was not saved" in text]) == 2


def test_the_last_save_must_not_fail_even_where_the_run_goes_on() -> None:
    with pytest.raises(CheckpointError, match="no room"), Saver(lambda text: None, "go_on") as saver:
        saver.start(1, full)
        saver.start(2, full, last=True)
        saver.wait()
    assert saver.failures == 2


def test_a_failure_that_cannot_be_said_is_a_failure() -> None:
    def deaf(text: str) -> None:
        raise OSError("nobody is there")

    saver = Saver(deaf)
    saver.start(4, full)
    with pytest.raises(CheckpointError, match="no room"):
        saver.wait()


def test_an_error_of_the_training_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Saver(lambda text: None) as saver:
        saver.start(1, full)
        raise KeyError("of the training")
    assert "a save failed too: no room" in capsys.readouterr().err
