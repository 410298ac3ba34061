"""Experts that do harm, as the bytes of a medium say."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from mmtune.experts._protocol import write
from mmtune.experts.base import Evidence, Expert
from mmtune.types import MediaRef

AWAY = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
print(os.getpid(), flush=True)
os.close(1)
time.sleep(600)
"""
"""A daemon: twice a child of its own, in a session of its own."""


class Harmful(Expert):
    """What it does is written in the medium."""

    version = "1"  # type: ignore[assignment]

    def look(self, ref: MediaRef, question: str | None) -> Any:
        return getattr(self, f"_{bytes(ref.source).decode()}")()  # type: ignore[arg-type]

    def _daemon(self) -> Any:
        done = subprocess.run([sys.executable, "-c", AWAY], stdout=subprocess.PIPE, check=True)
        return [Evidence(str(os.getpid())), Evidence(done.stdout.decode().strip())]

    def _daemon_and_crash(self) -> Any:
        [_, daemon] = self._daemon()
        with open(os.environ["TMPDIR"] + "/daemon", "w") as file:
            file.write(daemon.text)
        os.kill(os.getpid(), signal.SIGSEGV)

    def _stop_the_guard(self) -> Any:
        os.kill(os.getppid(), signal.SIGSTOP)
        return self._daemon()

    def _hold_everything(self) -> Any:
        """Never lets another thread of Python run."""

        def hold() -> None:
            time.sleep(0.3)
            ctypes.PyDLL(None).sleep(600)

        threading.Thread(target=hold, daemon=True).start()
        return self._daemon()

    def _flood(self) -> Any:
        """A good answer, and then answers without an end that nobody asked for."""

        def flood() -> None:
            time.sleep(0.3)
            for number in range(3, 20):
                try:
                    pipe = os.fdopen(os.dup(number), "wb")
                    while True:
                        write(pipe, b" " * (1 << 19))
                except OSError:
                    continue

        threading.Thread(target=flood, daemon=True).start()
        return [Evidence("good")]

    def _noise(self) -> Any:
        for _ in range(100):
            os.write(2, b"\x1b[31m noise " * 1000)
        return [Evidence("done")]


class Endless(Harmful):
    """Its version never comes."""

    @property
    def version(self) -> str:  # type: ignore[override]
        while True:
            time.sleep(1)


class EndlessToMake(Harmful):
    """It never is made."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        while True:
            time.sleep(1)
