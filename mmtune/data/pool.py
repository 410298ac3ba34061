"""Worker processes that do numbered pieces of work, read back in any order.

Piece k goes to worker k mod n, so who does what is settled beforehand. Each worker has a pipe of its own: when a worker
dies, the piece it was at is known, and when the main process dies, the workers see the end of their pipe and leave.
Workers are forked, so they share the processor and the index with the main process instead of copying them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

from mmtune.errors import MmtuneError, UsageError
from mmtune.output import Output

Task = tuple[Any, ...]

AHEAD = 8
"""Pieces of work that each worker is given ahead of what is taken."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to end: of a terminal, of batch systems."""


class Readable(Protocol):
    """A result as bytes."""

    def __call__(self, *task: Any) -> bytes: ...


class Pool:
    """Workers for one function.

    Args:
        work: called with the values of a task, in a worker; gives bytes.
        count: workers, at least 1.
        name: says what a task is, for messages.
        patience: seconds after which a piece of work that is waited for is named on standard error, each time over.

    Raises:
        UsageError: a system that cannot fork processes.
    """

    def __init__(self, work: Readable, count: int, name: Callable[[Task], str] = str, patience: float = 60) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError(
                seen=f"{count} data workers", expected="0 on this system, which cannot fork", hint="run.workers=0"
            )
        context = multiprocessing.get_context("fork")
        self._name, self._patience, self._errors = name, patience, Output("stderr")
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._tasks: dict[int, Task] = {}
        self._results: dict[int, bytes | str] = {}
        self._dead: dict[int, str] = {}
        self._next = 0
        self._change = threading.Condition()
        for _ in range(count):
            ours, theirs = context.Pipe()
            # A worker must not hold the main end of any pipe, or it would never see the main process go.
            process = context.Process(target=_serve, args=(work, theirs, [*self._pipes, ours]), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        # at the end of this process, and before Python waits for its children
        self._end = Finalize(self, _end, (self._pipes, self._processes), exitpriority=1)
        self._reader = threading.Thread(target=self._read, name="mmtune-data", daemon=True)
        self._reader.start()

    def put(self, *task: Any) -> int:
        """Hand out a piece of work; returns its number."""
        number = self._next
        self._next += 1
        with self._change:
            self._tasks[number] = task
        worker = number % len(self._pipes)
        try:
            self._pipes[worker].send((number, task))
        except OSError:
            self._note_death(worker)
        return number

    def get(self, number: int) -> bytes:
        """The result of a piece of work; waits for it.

        Raises:
            MmtuneError: the worker died, or the work raised something that is not for this program to expect.
        """
        worker = number % len(self._pipes)
        while True:
            with self._change:
                if self._change.wait_for(lambda: number in self._results or worker in self._dead, self._patience):
                    break
            self._say_waiting(worker, number)
        with self._change:
            task = self._tasks.pop(number)
            if number not in self._results:
                raise MmtuneError(
                    f"{self._dead[worker]} before it was done with {self._name(task)}",
                    "data workers that live as long as the run",
                    "run.workers=0 shows the fault itself; a killed worker often means too little memory",
                )
            result = self._results.pop(number)
        if isinstance(result, str):
            raise MmtuneError(f"in data worker {worker}, at {self._name(task)}: {result}")
        return result

    def _say_waiting(self, worker: int, number: int) -> None:
        """Long work and work that hangs look the same from here: training waits for either, but not in silence."""
        who = f"data worker {worker} (process {self._processes[worker].pid})"
        what = f"for more than {self._patience:g} s; it has {self._name(self._tasks[number])}"
        self._errors.say(f"mmtune: waiting for {who} {what}")

    def _read(self) -> None:
        """Take results off the pipes as they come, so that no worker waits for the main process."""
        open_pipes = dict(enumerate(self._pipes))
        while open_pipes:
            ready = wait(list(open_pipes.values()))
            for worker, pipe in list(open_pipes.items()):
                if pipe not in ready:
                    continue
                try:
                    message = pipe.recv_bytes()
                except (EOFError, OSError):
                    del open_pipes[worker]
                    self._note_death(worker)
                    continue
                number, failed = int.from_bytes(message[:8], "little"), message[8]
                with self._change:
                    self._results[number] = message[9:].decode("utf-8", "replace") if failed else message[9:]
                    self._change.notify_all()

    def _note_death(self, worker: int) -> None:
        process = self._processes[worker]
        process.join(10)  # its pipe is shut, so it is all but gone; a busy machine may need a while for the rest
        code = process.exitcode
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        with self._change:
            self._dead[worker] = f"data worker {worker} (process {process.pid}) {how}"
            self._change.notify_all()

    def close(self) -> None:
        """End the workers."""
        self._end()
        self._reader.join(2)
        for pipe in self._pipes:
            pipe.close()


def mapped(work: Readable, tasks: Iterable[Task], workers: int, name: Callable[[Task], str] = str) -> Iterator[bytes]:
    """The results of tasks in their order; without workers the work is done here. Errors are those of `Pool`."""
    if not workers:
        yield from (work(*task) for task in tasks)
        return
    rest = iter(tasks)
    with closing(Pool(work, workers, name)) as pool:
        asked = deque(pool.put(*task) for task in islice(rest, workers * AHEAD))
        while asked:
            found = pool.get(asked.popleft())
            asked.extend(pool.put(*task) for task in islice(rest, 1))
            yield found


def _end(pipes: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
    """Ask the workers to leave, and end those that do not, stopped and stuck ones too."""
    for pipe in pipes:
        with suppress(OSError):
            pipe.send(None)
    for process in processes:
        process.join(0.5)
        if process.is_alive():
            process.kill()
            process.join(2)


def _serve(work: Readable, pipe: Connection, others: Sequence[Connection]) -> None:
    """The life of a worker."""
    for other in others:
        other.close()
    for number in ENDING:  # they go to the whole group; the main process decides, and may need its samples to save
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that the work imports later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        if message is None:
            os._exit(0)
        number, task = message
        head = number.to_bytes(8, "little")
        try:
            answer = head + b"\0" + work(*task)
        except Exception as error:
            text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            if isinstance(error, MmtuneError):
                text = str(error)
            answer = head + b"\1" + text.encode("utf-8", "replace")
        try:
            pipe.send_bytes(answer)
        except OSError:
            os._exit(0)
