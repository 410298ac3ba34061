"""Experts that do as the bytes of a medium say, good and bad. They run in child processes, as real ones do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmtune import media
from mmtune.experts.base import Evidence, Expert, ExpertConfig
from mmtune.types import MediaRef


class Config(ExpertConfig):
    name: str = "tests.experts.fakes:Fake"
    text: str = "EXIT"
    """What it says."""
    ask: bool = False
    """Whether it heeds the question."""
    fail_at_start: bool = False
    """Whether loading fails."""


class Fake(Expert):
    """`kinds`, `version` and `asks` as a real one; what it does is written in the medium."""

    Config = Config
    version = "1"  # type: ignore[assignment]

    @property
    def asks(self) -> bool:
        return self.config.ask

    def start(self) -> None:
        if self.config.fail_at_start:
            raise RuntimeError("no\nweights")

    def look(self, ref: MediaRef, question: str | None) -> Iterable[Evidence]:
        word, _, rest = bytes(ref.source).decode(errors="replace").partition(" ")  # type: ignore[arg-type]
        return getattr(self, f"_{word}")(rest, question)

    def _say(self, rest: str, question: str | None) -> Any:
        return [Evidence(rest or self.config.text, 0.9), Evidence("dim", 0.1)]

    def _question(self, rest: str, question: str | None) -> Any:
        return [Evidence(str(question))]

    def _limit(self, rest: str, question: str | None) -> Any:
        return [Evidence(str(getattr(media.settled(), rest)))]

    def _nothing(self, rest: str, question: str | None) -> Any:
        return []

    def _process(self, rest: str, question: str | None) -> Any:
        return [Evidence(str(os.getpid()))]

    def _raise(self, rest: str, question: str | None) -> Any:
        raise ValueError("a bad\nday")

    def _leave(self, rest: str, question: str | None) -> Any:
        sys.exit(3)

    def _die(self, rest: str, question: str | None) -> Any:
        os._exit(4)

    def _crash(self, rest: str, question: str | None) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _hang(self, rest: str, question: str | None) -> Any:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Event().wait()

    def _grandchild(self, rest: str, question: str | None) -> Any:
        child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
        return [Evidence(str(child.pid))]

    def _numbers(self, rest: str, question: str | None) -> Any:
        return [1, 2, 3]

    def _none(self, rest: str, question: str | None) -> Any:
        return None

    def _flood(self, rest: str, question: str | None) -> Any:
        return [Evidence("x" * 50_000_000)]

    def _endless(self, rest: str, question: str | None) -> Any:
        number = 0
        while True:
            number += 1
            yield Evidence(f"line {number}")

    def _boxes(self, rest: str, question: str | None) -> Any:
        return [Evidence("box", 0.5, box=(0.0, 0.0, 1.0, 1.0))] * 100_000

    def _nan(self, rest: str, question: str | None) -> Any:
        return [Evidence("x", box=(0.0, 0.0, float("nan"), 1.0))]

    def _half(self, rest: str, question: str | None) -> Any:
        return [Evidence("half \ud83d a pair, \x1b[31mred\x00")]

    def _noise(self, rest: str, question: str | None) -> Any:
        print("noise")
        os.write(1, b"\xff" * 100_000)
        return [Evidence("clear")]

    def _lie(self, rest: str, question: str | None) -> Any:
        """Writes into the pipe to the parent, wherever that is."""
        for number in range(3, 20):
            try:
                os.write(number, bytes.fromhex(rest))
            except OSError:
                continue
        return []

    def _secret(self, rest: str, question: str | None) -> Any:
        return [Evidence(os.environ.get(rest, "unknown"))]

    def _call(self, rest: str, question: str | None) -> Any:
        socket.create_connection(("127.0.0.1", int(rest)), timeout=30).close()
        return [Evidence("got through")]


class Broken(Fake):
    """One whose very description fails."""

    @property
    def version(self) -> str:  # type: ignore[override]
        raise RuntimeError("no version")


class Unmade(Fake):
    """One that cannot even be made."""

    def __init__(self, config: ExpertConfig) -> None:
        raise OSError("no disk")


class Versioned(Fake):
    """One whose version stands in the file that `text` names."""

    @property
    def version(self) -> str:  # type: ignore[override]
        return Path(self.config.text).read_text()
