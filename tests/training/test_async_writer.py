"""Saves are written beside the training, one at a time, and a failed one is not lost."""

from __future__ import annotations

import threading

import pytest

from mmtune.errors import CheckpointError
from mmtune.training.async_writer import AsyncWriter


def full() -> None:
    raise CheckpointError("no room")


def test_training_does_not_wait() -> None:
    go, seen = threading.Event(), []
    with AsyncWriter(seen.append) as writer:
        writer.start(1, lambda: (go.wait(60), seen.append("written")))
        assert seen == [], "start has come back before the write was done"
        go.set()
        writer.wait()
        assert seen == ["written"]
    assert writer.waited == 0


def test_one_at_a_time_and_that_is_said() -> None:
    go, seen = threading.Event(), []
    threading.Timer(0.05, go.set).start()
    with AsyncWriter(seen.append) as writer:
        writer.start(1, lambda: (go.wait(60), seen.append("first")))
        writer.start(2, lambda: seen.append("second"))
    written = [text for text in seen if text in ("first", "second")]
    assert written == ["first", "second"] and "step 2 had to wait" in " ".join(seen) and writer.waited > 0


def test_a_failure_stops_the_run() -> None:
    seen: list[str] = []
    writer = AsyncWriter(seen.append)
    writer.start(4, full)
    with pytest.raises(CheckpointError, match="no room"):
        writer.wait()
    assert "the state of step 4 was not saved: no room" in seen[0] and not writer.failed
    writer.start(5, full)
    with pytest.raises(CheckpointError):
        writer.start(6, lambda: None)


def test_a_failure_is_counted_where_the_run_goes_on() -> None:
    seen: list[str] = []
    with AsyncWriter(seen.append, "go_on") as writer:
        writer.start(1, full)
        writer.start(2, full)
        writer.start(3, lambda: None)
    assert writer.failures == 2 and len([text for text in seen if "was not saved" in text]) == 2


def test_the_last_save_must_not_fail_even_where_the_run_goes_on() -> None:
    with pytest.raises(CheckpointError, match="no room"), AsyncWriter(lambda text: None, "go_on") as writer:
        writer.start(1, full)
        writer.start(2, full, last=True)
        writer.wait()
    assert writer.failures == 2


def test_a_failure_that_cannot_be_said_is_a_failure() -> None:
    def deaf(text: str) -> None:
        raise OSError("nobody is there")

    writer = AsyncWriter(deaf)
    writer.start(4, full)
    with pytest.raises(CheckpointError, match="no room"):
        writer.wait()


def test_an_error_of_the_training_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), AsyncWriter(lambda text: None) as writer:
        writer.start(1, full)
        raise KeyError("of the training")
    assert "a save failed too: no room" in capsys.readouterr().err
