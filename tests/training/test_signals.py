"""The first signal is remembered, the second one leaves at once, and outside everything is as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mmtune.training.signals import Stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_is_remembered(number, code):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert stop.code == 0
        os.kill(os.getpid(), number)
        assert stop.code == code
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_leaves_at_once(number, code):
    text = (
        "import os, sys, time\nfrom mmtune.training import signals\nfrom mmtune.training.signals import Stop\n"
        "signals.TWICE = 60\n"  # however slow the machine
        "with Stop() as stop:\n    os.kill(os.getpid(), int(sys.argv[1]))\n    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), int(sys.argv[1]))\n    print('here, too', flush=True)\n    signals.TWICE = 0\n"
        "    os.kill(os.getpid(), int(sys.argv[1]))\n    time.sleep(300)\n    print('too long')\n"
    )
    done = subprocess.run([sys.executable, "-c", text, str(int(number))], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (code, "still here\nhere, too\n")
    assert "finishing this step" in done.stderr and "leaving at once" in done.stderr
