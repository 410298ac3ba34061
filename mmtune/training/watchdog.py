"""The watchdog of several ranks: every rank writes down its stage, and all stop when one hangs or dies.

A thread of each rank puts a beat into the store of the process group every few seconds: how far it is, in which stage,
since when. A rank that hangs goes on beating, but not on counting; one that is dead does neither. Either is named, with
its last stage and the samples of its step, and every rank that can still act ends its process: nothing waits for ever,
whatever the backend does.

The store is that of the rendezvous (MASTER_ADDR and MASTER_PORT), read through a connection of its own, for the process
group's own may be the one that waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

WATCHERS = 2
"""Ranks that read all beats; the others read those of these two, and their verdict."""
SILENCE = 120.0
"""Most seconds without a beat; less where the deadline is less."""
GRACE_PERIOD = 5.0
"""Seconds that a rank which stops waits for somebody to read why."""
CODE = 1
"""Exit code of a rank that stops because of another one."""


class Watchdog:
    """The heartbeat of one rank, and what it knows of the others.

    Args:
        deadline: seconds that a rank may stay where it is, or be silent.
        store: a connection of its own to the store of the group; one is opened when not given.
        leave: ends the process.
    """

    def __init__(
        self, rank: int, world: int, deadline: float, store: Any = None, leave: Callable[[int], None] = os._exit
    ) -> None:
        self.rank, self.world, self.deadline, self._leave = rank, world, deadline, leave
        self.every = min(2.0, max(0.2, deadline / 12))
        self._store = _open() if store is None else store
        self._run = f"mmtune/watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._lock = threading.Lock()
        self._count, self._since, self._undated = 0, time.monotonic(), 1
        self._stage, self._samples, self._state = "starting", [], "runs"
        self._main = threading.get_ident()
        self._number = 0
        self._heard: dict[int, tuple[int, float]] = {}
        self._known: dict[int, dict[str, Any]] = {}
        self._over = threading.Event()
        self._beat()
        self._store.wait([f"{self._run}/{rank}" for rank in range(world)], timedelta(seconds=max(60.0, deadline)))
        self._read(range(world))  # so that every process is known from the start
        self._thread = threading.Thread(target=self._live, name="mmtune-watchdog", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------------- where this rank is

    def enter_stage(self, stage: str, samples: Sequence[str] = ()) -> None:
        """Go on to a stage. Every rank calls this in the same order; samples are those at hand, for the message."""
        with self._lock:
            self._stage, self._samples, self._undated = stage, list(samples), 0
            self._count, self._since = self._count + 1, time.monotonic()
        self._tell()

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """Around something for which all ranks have to come together."""
        with self._lock:
            before, self._stage = self._stage, f"{self._stage}, {what}"
            self._count, self._since = self._count + 1, time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._stage = before
                self._count, self._since = self._count + 1, time.monotonic()

    @contextmanager
    def without_deadline(self, what: str) -> Iterator[None]:
        """Around something that may take any time, on this rank alone or on all."""
        with self._lock:
            before, self._stage = self._stage, what
            self._undated += 1
        self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._stage, self._since = before, time.monotonic()
                self._undated = max(0, self._undated - 1)

    def barrier(self, name: str) -> None:
        """Wait until all ranks are here, for as long as it takes: a rank that is gone or hangs ends the wait."""
        key = f"{self._run}/meet/{name}"
        self._store.add(key, 1)
        while self._store.add(key, 0) < self.world:
            time.sleep(0.02)

    def end(self, state: str, wait: float = 0.0) -> None:
        """The last beat: `done`, or what went wrong. The first rank, which may hold the store, waits for the others."""
        self._over.set()
        self._thread.join(5)
        self._state = state
        with contextlib.suppress(Exception):
            self._beat()
            until = time.monotonic() + wait
            while self.rank == 0 and time.monotonic() < until:
                if all(beat["state"] != "runs" or self._gone(rank) for rank, beat in self._read(range(self.world))):
                    break
                time.sleep(0.05)

    # ------------------------------------------------------------------------------------------------------- the others

    def dead_rank(self) -> str | None:
        """Who else is dead or failed, in words, for a rank whose call to the others broke; waits for signs of it."""
        until, silence = time.monotonic() + 4 * self.every + 5, 3 * self.every
        while True:
            try:
                if found := self._verdict() or self._lost(self._read(range(self.world)), silence):
                    return found
            except Exception:  # the store is gone, and with it, but for the launcher's, the first rank
                dead = [rank for rank in sorted(self._known) if rank != self.rank and self._gone(rank)]
                if dead:
                    return f"rank {dead[0]} (process {self._known[dead[0]]['pid']}) died; {self._last(dead[0])}"
            if time.monotonic() > until:
                return None
            time.sleep(self.every / 4)

    def _live(self) -> None:
        lost = None
        seen = range(self.world) if self.rank < WATCHERS else range(min(WATCHERS, self.world))
        while not self._over.wait(self.every):
            try:
                self._beat()
                beats = self._read(seen)
                found = self._verdict() or self._lost(beats, min(self.deadline, SILENCE)) or self._hang(beats)
                lost = None
            except Exception as error:  # the store's errors have several classes
                lost = lost or time.monotonic()
                patience = min(self.deadline, 3 * self.every + 2)
                found = None
                if time.monotonic() - lost > patience and not self._over.is_set():
                    found = f"rank 0, or the process with the run's store, cannot be reached ({error}); {self._last(0)}"
            if found and not self._over.is_set():
                self._stop(found)

    def _stop(self, found: str) -> None:
        # the main thread may be on its way out with an error of its own, which says more
        if self._over.wait(min(5.0, self.deadline / 4)):
            return
        with contextlib.suppress(Exception):
            self._store.set(f"{self._run}/verdict", found)
        # beside this thread: without a reader, a write may fail or block for ever, and this rank has to end
        words = threading.Thread(target=self._last_words, args=(found,), daemon=True)
        words.start()
        words.join(GRACE_PERIOD)
        self._leave(CODE)

    def _last_words(self, found: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"mmtune: {found}\nmmtune: rank {self.rank} stops; it was in: {self._stage}\n")
            if found.startswith(f"rank {self.rank} "):
                faulthandler.dump_traceback(sys.stderr)
            sys.stderr.flush()

    def _verdict(self) -> str | None:
        key = f"{self._run}/verdict"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _lost(self, beats: list[tuple[int, dict[str, Any]]], silence: float) -> str | None:
        """Who failed, died, or has been silent for more than `silence` seconds."""
        for rank, beat in beats:
            if rank != self.rank and beat["state"] not in ("runs", "done"):
                return f"rank {rank} failed in {self._last(rank)}: {beat['state']}"
        for rank, beat in beats:
            silent = time.monotonic() - self._heard[rank][1]
            if rank == self.rank or beat["state"] == "done":
                continue
            # read once more: between the beat and the look at its process it may have come to a good end
            if self._gone(rank) and dict(self._read([rank]))[rank]["state"] == "runs":
                return f"rank {rank} (process {beat['pid']}) died; {self._last(rank)}"
            if silent > silence:
                return f"rank {rank} on {beat['host']} has been silent for {silent:.0f} s; {self._last(rank)}"
        return None

    def _hang(self, beats: list[tuple[int, dict[str, Any]]]) -> str | None:
        """Who has stayed where it is for longer than the deadline while all others wait."""
        least = min(beat["count"] for _, beat in beats)
        behind = [(rank, beat) for rank, beat in beats if beat["count"] == least and beat["state"] == "runs"]
        if not behind or any(beat["patient"] or beat["age"] <= self.deadline for _, beat in behind):
            return None
        # of those that are equally far, the ones inside a collective wait for the others
        behind = [one for one in behind if not one[1]["waits"]] or behind
        return "; ".join(
            f"rank {rank} hangs: for {beat['age']:.0f} s in {self._last(rank)}, at {beat['where']}"
            for rank, beat in behind
        )

    def _last(self, rank: int) -> str:
        beat = self._known.get(rank)
        if beat is None:
            return "nothing is known of it"
        samples = f" with samples {', '.join(beat['samples'])}" if beat["samples"] else ""
        return f"its last stage: {beat['stage']}{samples}"

    def _gone(self, rank: int) -> bool:
        """Whether a rank on this machine has no process any more."""
        beat = self._known.get(rank)
        if beat is None or beat["host"] != _host():
            return False
        try:
            return Path(f"/proc/{beat['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return Path("/proc/self/stat").exists()

    def _read(self, ranks: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        keys = {rank: f"{self._run}/{rank}" for rank in ranks}
        there = [rank for rank, key in keys.items() if self._store.check([key])]
        for rank, data in zip(there, self._store.multi_get([keys[rank] for rank in there]), strict=True):
            beat = self._known[rank] = json.loads(data)
            if self._heard.get(rank, (-1, 0.0))[0] != beat["number"]:
                self._heard[rank] = beat["number"], time.monotonic()
        return [(rank, self._known[rank]) for rank in there]

    def _tell(self) -> None:
        """Say at once where this rank is, for it may be the last that is heard of it."""
        with contextlib.suppress(Exception):  # a store that is gone is the business of the thread
            self._beat()

    def _beat(self) -> None:
        where, waits = self._place()
        with self._lock:
            self._number += 1
            beat = {
                "number": self._number, "state": self._state, "stage": self._stage, "count": self._count,
                "age": time.monotonic() - self._since, "patient": self._undated, "samples": self._samples[:16],
                "pid": os.getpid(), "host": _host(), "where": where, "waits": waits,
            }  # fmt: skip
        self._store.set(f"{self._run}/{self.rank}", json.dumps(beat))

    def _place(self) -> tuple[str, bool]:
        """Where the main thread is, and whether that is inside a collective."""
        frame = first = sys._current_frames().get(self._main)
        waits = False
        while frame is not None:
            waits = waits or "/torch/distributed/" in frame.f_code.co_filename
            frame = frame.f_back
        if first is None:
            return "no place", False
        return f"{first.f_code.co_filename}:{first.f_lineno} ({first.f_code.co_name})", waits


def _open() -> Any:
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))


def _host() -> str:
    """This machine, until it is started again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}".strip()
