"""The process of one expert: `main` is started by `_process.py` and answers until its input ends.

Its standard output is taken away from the expert before the expert is imported: what libraries print goes to standard
error. When the program that answers goes away, however it ends, the guard of this process ends it and all that it
started.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, BinaryIO, NoReturn

from mmtune import config, media, registry
from mmtune.errors import MmtuneError
from mmtune.experts import _protocol
from mmtune.experts.base import Expert
from mmtune.types import MediaRef

Calls = queue.SimpleQueue[tuple[dict[str, Any], bytes]]


def main() -> None:
    """Serve calls: the first frames say which expert, each later pair is a question and a medium."""
    asked, answers = _own(0, "rb"), _own(1, "wb")
    calls: Calls = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, calls), daemon=True).start()
    setup, _ = calls.get()
    if not setup["network"]:
        sys.addaudithook(_offline)
    media.say(setup.get("limits", []))
    served = _Served(setup)
    while True:
        facts, data = calls.get()
        try:
            reply = getattr(served, facts["do"])(facts, data)
        except MmtuneError as error:
            reply = _error("; ".join(str(error).splitlines()))
        except Exception as error:  # every error of an expert is reported in one line
            reply = _error(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        _protocol.write(answers, reply)


class _Served:
    """The expert, imported and made when it is first asked for something; its weights are read for the first look."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._made: Expert | None = None
        self._started = False

    @property
    def _expert(self) -> Expert:
        if self._made is None:
            name = self._setup["name"]
            if code := self._setup["code"]:
                registry.allow([code])
            cls = registry.find("experts", code or name)
            options = {**self._setup["options"], "name": name}
            self._made = cls(config.validate(cls.Config, options, f"the expert {name}"))
        return self._made

    def describe(self, facts: dict[str, Any], data: bytes) -> bytes:
        """What the program that answers has to know: all options, kinds of media, and whether questions matter."""
        expert = self._expert
        options = expert.config.model_dump(mode="json")
        return json.dumps({"options": options, "kinds": [*expert.kinds], "asks": bool(expert.asks)}).encode()

    def version(self, facts: dict[str, Any], data: bytes) -> bytes:
        return json.dumps({"version": str(self._expert.version)}).encode()

    def look(self, facts: dict[str, Any], data: bytes) -> bytes:
        if not self._started:
            self._expert.start()
            self._started = True
        ref = MediaRef(facts["kind"], data, facts["origin"], facts["start"], facts["end"])
        return _protocol.pack(*_protocol.gather(self._expert.look(ref, facts["question"])))


def _own(number: int, mode: str) -> BinaryIO:
    """A standard stream for the talk with the parent; the expert gets nothing to read and writes to standard error."""
    file = os.fdopen(os.dup(number), mode)
    other = os.open(os.devnull, os.O_RDONLY) if number == 0 else 2
    os.dup2(other, number)
    return file  # type: ignore[return-value]


def _listen(asked: BinaryIO, calls: Calls) -> NoReturn:
    """Hand calls on; at the end of the input end, whatever the expert is doing."""
    try:
        while (head := _protocol.read(asked)) is not None:
            body = _protocol.read(asked)
            if body is None:
                break
            calls.put((json.loads(head), body))
    finally:
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
