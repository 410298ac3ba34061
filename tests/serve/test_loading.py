"""Weights that are read by a thread, and Ctrl-C meanwhile."""

from __future__ import annotations

import signal
import time

import pytest

from mmtune.errors import CheckpointError
from mmtune.serve.loading import Loading
from tests.serve.fake import FakeEngine


def test_ctrl_c_while_waiting_does_not_lose_the_weights() -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    engine = FakeEngine()
    loading = Loading(lambda: time.sleep(0.6) or engine)  # type: ignore[arg-type, return-value]
    before = signal.signal(signal.SIGALRM, press)
    try:
        for _ in range(3):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                loading.result()
            assert not loading.done()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert loading.result() is engine and loading.done()


def test_what_reading_raised_is_raised_by_whoever_waits() -> None:
    fault = CheckpointError("no weights")

    def load() -> FakeEngine:
        raise fault

    loading = Loading(load)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no weights"):
        loading.result()
    assert loading.failed(fault) and not loading.failed(CheckpointError("no weights"))
