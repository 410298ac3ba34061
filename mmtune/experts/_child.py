"""The process of one expert: `main` is started by `_runner.py` and answers until its input ends.

Its standard output is taken away from the expert before the expert is imported: what libraries print goes to standard
error. When the program that answers goes away, however it ends, this process ends itself and all that it started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO, NoReturn

from mmtune import config, registry
from mmtune.errors import MmtuneError
from mmtune.experts import _wire
from mmtune.experts.base import Expert
from mmtune.types import MediaRef

Calls = queue.SimpleQueue[tuple[dict[str, Any], bytes]]


def main() -> None:
    """Serve calls: the first frames say which expert, each later pair is a medium to look at."""
    asked, answers = _own(0, "rb"), _own(1, "wb")
    calls: Calls = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, calls), daemon=True).start()
    setup, _ = calls.get()
    if not setup["network"]:
        sys.addaudithook(_offline)
    expert: Expert | None = None
    while True:
        facts, data = calls.get()
        try:
            expert = expert or _start(setup["config"])
            ref = MediaRef(facts["kind"], data, facts["origin"], facts.get("start"), facts.get("end"))
            reply = _wire.pack(*_wire.gather(expert.look(ref, facts["question"])))
        except MmtuneError as error:
            reply = _error("; ".join(str(error).splitlines()))
        except Exception as error:  # whatever an expert raises is told in one line
            reply = _error(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        _wire.write(answers, reply)


def _start(tree: dict[str, Any]) -> Expert:
    cls = registry.find("experts", tree["name"])
    expert = cls(config.validate(cls.Config, tree, f"the expert {tree['name']}"))
    expert.start()
    return expert


def _own(number: int, mode: str) -> BinaryIO:
    """A standard stream for the talk with the parent; the expert gets nothing to read and writes to standard error."""
    file = os.fdopen(os.dup(number), mode)
    other = os.open(os.devnull, os.O_RDONLY) if number == 0 else 2
    os.dup2(other, number)
    return file  # type: ignore[return-value]


def _listen(asked: BinaryIO, calls: Calls) -> NoReturn:
    """Hand calls on; at the end of the input end everything, whatever the expert is doing."""
    try:
        while (head := _wire.read(asked)) is not None:
            body = _wire.read(asked)
            if body is None:
                break
            calls.put((json.loads(head), body))
    finally:
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


def _offline(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook, which cannot be taken off again: no connections and no names looked up.

    It stops Python code that means no harm, such as a library that asks a server for a newer model. Code that means
    harm finds ways around it.
    """
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        raise PermissionError("an expert without `network` asked for the address of another machine")
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple):
        raise PermissionError("an expert without `network` tried to open a connection")


def _error(text: str) -> bytes:
    return json.dumps({"error": text[:300]}).encode()
