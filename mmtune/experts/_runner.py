"""Asks experts: out of the cache when it knows, else in a child process; whatever goes wrong becomes one plain line.

Nothing that an expert does, or fails to do, is raised here. An expert that fails several times in a row is left alone
for a while, so that a broken one costs its deadline a few times and not at every question.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmtune import registry
from mmtune.errors import ConfigError, MmtuneError
from mmtune.experts import _cache, _wire
from mmtune.experts._cache import Cache
from mmtune.experts._process import Failure, Process
from mmtune.experts._quote import quote
from mmtune.experts.base import AFTERWARDS, Evidence, Expert, ExpertConfig
from mmtune.types import MediaRef, Quote

PATIENCE = 3
"""Failures in a row after which an expert is left alone."""
REST = 300.0
"""For so long, seconds."""

Status = Literal["found", "nothing", "failed"]


@dataclass(frozen=True)
class Finding:
    """What came of asking one expert about one medium."""

    expert: str
    ref: MediaRef
    status: Status
    evidence: tuple[Evidence, ...] = ()
    quote: Quote | None = None
    """What the model is to read; none unless something was found."""
    cached: bool = False
    cut: bool = False
    """Whether the expert had more to say than was listened to."""
    seconds: float = 0.0
    note: str = ""
    """Why it failed, or why what it said was left out: one plain line."""

    def line(self) -> str:
        """One line for people."""
        head = f"expert {self.expert}, {self.ref.origin}"
        if self.note:
            return f"{head}: {self.note}; going on without it"
        said = f'"{self.quote.text}"' if self.quote else "found nothing"
        return f"{head}: {said} ({'kept from before' if self.cached else f'{self.seconds:.2f} s'})"

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "expert": self.expert,
            "kind": self.ref.kind,
            "origin": self.ref.origin,
            "status": self.status,
            "text": self.quote.text if self.quote else "",
            "evidence": [one.record() for one in self.evidence],
            "cut": self.cut,
            "cached": self.cached,
            "seconds": round(self.seconds, 4),
            "note": self.note,
        }

    def left_out(self, note: str) -> Finding:
        """The same, with what it said not given to the model."""
        return replace(self, quote=None, note=note)


class Runner:
    """One expert with its child process, which is started by the first call that needs it and stays warm.

    Args:
        config: of the expert.
        cache: where results are kept.
        clock: seconds, for the rest after failures.

    Raises:
        ConfigError, ModelError: there is no such expert, or it cannot be made. This is a mistake of whoever named it,
            so it is raised.

    Attributes:
        kinds: kinds of media that it looks at.
        asks: whether the question changes what it finds.
    """

    def __init__(self, config: ExpertConfig, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        cls = registry.find("experts", config.name)
        try:
            self._expert: Expert = cls(config)
            self.kinds: tuple[str, ...] = tuple(self._expert.kinds)
            self.asks = bool(self._expert.asks)
        except Exception as error:
            raise ConfigError(f"the expert {config.name} cannot be made: {_plain(error)}") from error
        self._cache = cache
        self._clock = clock
        self._process: Process | None = None
        self._turn = threading.Lock()  # one call at a time
        self._failures = 0
        self._rests_until = 0.0

    @property
    def process(self) -> int | None:
        """Process id of the child, if there is one."""
        return self._process.number if self._process else None

    def look(self, ref: MediaRef, question: str | None = None) -> Finding:
        """What it finds. Never raises for what an expert does; Ctrl-C passes."""
        start = time.monotonic()
        question = question if self.asks else None
        try:
            data = ref.read()
            name = self._name(ref, data, question)
            known = self._cache.get(name)
            found, cut = known if known else self._call(ref, data, question, start + self.config.seconds)
            if not known:
                self._cache.put(name, found, cut)
        except Exception as error:  # its version is asked here, and that may be anybody's code
            return Finding(self.config.name, ref, "failed", seconds=time.monotonic() - start, note=_plain(error))
        said = quote(self.config.name.rpartition(":")[2], found, self.config, cut)
        status: Status = "found" if said else "nothing"
        return Finding(self.config.name, ref, status, found, said, known is not None, cut, time.monotonic() - start)

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _call(
        self, ref: MediaRef, data: bytes, question: str | None, until: float
    ) -> tuple[tuple[Evidence, ...], bool]:
        if not self._turn.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Failure("it was busy until the time was over")
        try:
            if self._clock() < self._rests_until:
                raise Failure(f"it failed {self._failures} times in a row and is left alone for a while")
            try:
                if self._process is None:
                    setup = {"config": self.config.model_dump(mode="json"), "network": self.config.network}
                    self._process = Process(setup)
                facts = {
                    "kind": ref.kind, "origin": ref.origin, "start": ref.start, "end": ref.end, "question": question,
                }  # fmt: skip
                result = _wire.unpack(self._ask(facts, data, until))
            except (Failure, _wire.WireError, OSError) as error:
                if not isinstance(error, _wire.Told):
                    self.close()
                self._failures += 1
                if self._failures >= PATIENCE:
                    self._rests_until = self._clock() + REST
                raise
            self._failures = 0
            return result
        finally:
            self._turn.release()

    def _ask(self, facts: dict[str, Any], data: bytes, until: float) -> bytes:
        process, self._process = self._process, None  # it is ours again only after it has answered as it should
        assert process is not None
        reply = process.call(facts, data, until)
        self._process = process
        return reply

    def _name(self, ref: MediaRef, data: bytes, question: str | None) -> str:
        cls = type(self._expert)
        return _cache.key(
            {
                "expert": f"{cls.__module__}:{cls.__qualname__}",
                "version": str(self._expert.version),
                "options": self.config.model_dump(mode="json", exclude=set(AFTERWARDS)),
                "kind": ref.kind,
                "content": hashlib.sha256(data).hexdigest() + ref.range,
                "question": question,
            }
        )


def _plain(error: Exception) -> str:
    if isinstance(error, MmtuneError):
        return " ".join("; ".join(str(error).splitlines()).split())[:400]
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, (Failure, _wire.WireError)) else f"{type(error).__name__}: {text}"
