"""Asks experts: from the cache if it has the result, else in a child process; a failure becomes one plain line.

Nothing that an expert does, or fails to do, is raised here. An expert that fails several times in a row is left alone
for a while, so that a broken one costs its deadline a few times and not at every question.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

from mmtune import config as configs
from mmtune import media, registry
from mmtune.errors import ConfigError, MmtuneError
from mmtune.experts import _cache, _protocol
from mmtune.experts._cache import Cache
from mmtune.experts._process import Failure, Process
from mmtune.experts._quote import quote
from mmtune.experts.base import AFTERWARDS, Evidence, Expert, ExpertConfig
from mmtune.types import KINDS, MediaRef, Quote

PATIENCE = 3
"""Failures in a row after which an expert is left alone."""
REST = 300.0
"""For so long, seconds."""
DESCRIBE = 30.0
"""Seconds in which an expert from outside has to be imported and to report its kinds of media."""

Status = Literal["found", "nothing", "failed"]
Said = TypeVar("Said")


@dataclass(frozen=True)
class Finding:
    """The result of asking one expert about one medium."""

    expert: str
    ref: MediaRef
    status: Status
    evidence: tuple[Evidence, ...] = ()
    quote: Quote | None = None
    """What the model is to read; none unless something was found."""
    cached: bool = False
    cut: bool = False
    """Whether the expert found more than the limit allows."""
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


class _Described(ExpertConfig):
    """Options of an expert that was not imported here, as its process says them."""

    model_config = ConfigDict(extra="allow")


class Runner:
    """One expert with its child process, which is started by the first call that needs it and stays warm.

    An expert from outside is imported by its process only, which reports its kinds of media when the runner is made.

    Args:
        config: of the expert.
        cache: where results are kept.
        clock: seconds, for the rest after failures.
        limits: the most that an item may cost; the usual ones when not given.

    Raises:
        ConfigError, ModelError: the expert is unknown, was not allowed, or cannot be made. The caller made this
        mistake, so it is raised.

    Attributes:
        config: with every default written out.
        kinds: kinds of media that it looks at.
        asks: whether the question changes what it finds.
    """

    config: ExpertConfig
    kinds: tuple[str, ...]
    asks: bool

    def __init__(
        self,
        config: ExpertConfig | configs.Outside,
        cache: Cache,
        clock: Callable[[], float] = time.monotonic,
        limits: media.Limits | None = None,
    ) -> None:
        self.name = config.name
        self._cache = cache
        self._clock = clock
        self._limits = limits
        self._process: Process | None = None
        self._turn = threading.Lock()  # one call at a time
        self._failures = 0
        self._rests_until = 0.0
        self._code = registry.source("experts", config.name)
        options = config.model_dump(mode="json", exclude={"name"})
        try:
            if self._code is not None:
                if not registry.is_allowed(self._code):
                    registry.refuse([self._code])
                self._describe(options)
            else:
                assert isinstance(config, ExpertConfig)
                expert: Expert = registry.find("experts", config.name)(config)
                self.config, self.kinds, self.asks = config, tuple(expert.kinds), bool(expert.asks)
        except Exception as error:
            self.close()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the expert {config.name} cannot be made: {_plain(error)}") from error

    def _describe(self, options: dict[str, Any]) -> None:
        assert self._code is not None
        self._process = self._start(options, network=False)
        said = _protocol.answer(
            self._ask({"do": "describe"}, b"", time.monotonic() + DESCRIBE), "options", "kinds", "asks"
        )
        self.config = configs.validate(_Described, said["options"], f"what the expert {self.name} says of itself")
        if not isinstance(said["kinds"], list) or not set(map(str, said["kinds"])) <= set(KINDS):
            raise _protocol.WireError(f"it says that it takes {str(said['kinds'])[:80]}")
        self.kinds, self.asks = tuple(said["kinds"]), said["asks"] is True
        if self.config.network:
            self.close()  # the next one may connect

    def _start(self, options: Mapping[str, Any], network: bool) -> Process:
        setup = {"name": self.name, "options": dict(options), "code": self._code, "network": network}
        setup["limits"] = media.said(self._limits)
        folder = registry.folder_of(self._code) if self._code is not None else None
        return Process(setup, [folder] if folder else [])

    @property
    def process(self) -> int | None:
        """Process id of the child's guard, if there is a child."""
        return self._process.number if self._process else None

    def look(self, ref: MediaRef, question: str | None = None) -> Finding:
        """What it finds. Never raises for what an expert does; Ctrl-C passes."""
        start = time.monotonic()
        until = start + self.config.seconds
        question = question if self.asks else None
        try:
            data = ref.read()
            name = self._name(ref, data, question, until)
            known = self._cache.get(name) if name else None
            found, cut = known if known else self._call(ref, data, question, until)
            if not known and name:
                self._cache.put(name, found, cut)
        except Exception as error:
            return Finding(self.name, ref, "failed", seconds=time.monotonic() - start, note=_plain(error))
        said = quote(self.name.rpartition(":")[2], found, self.config, cut)
        status: Status = "found" if said else "nothing"
        return Finding(self.name, ref, status, found, said, known is not None, cut, time.monotonic() - start)

    def within(self, limits: media.Limits | None) -> None:
        """From now on items may cost so much."""
        if limits != self._limits:
            self._limits = limits
            self.close()

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _call(
        self, ref: MediaRef, data: bytes, question: str | None, until: float
    ) -> tuple[tuple[Evidence, ...], bool]:
        facts = {
            "do": "look", "kind": ref.kind, "origin": ref.origin, "start": ref.start, "end": ref.end,
            "question": question,
        }  # fmt: skip
        return self._talk(facts, data, until, _protocol.unpack)

    def _talk(self, facts: dict[str, Any], data: bytes, until: float, read: Callable[[bytes], Said]) -> Said:
        """One question to the child, and its answer."""
        if not self._turn.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Failure("it was busy until the time was over")
        try:
            if self._clock() < self._rests_until:
                raise Failure(f"it failed {self._failures} times in a row and is left alone for a while")
            try:
                if self._process is None:
                    options = self.config.model_dump(mode="json", exclude={"name"})
                    self._process = self._start(options, self.config.network)
                result = read(self._ask(facts, data, until))
            except (Failure, _protocol.WireError, OSError) as error:
                if not isinstance(error, _protocol.Told):
                    self.close()
                self._failures += 1
                if self._failures >= PATIENCE:
                    self._rests_until = self._clock() + REST
                raise
            if facts["do"] == "look":
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

    def _name(self, ref: MediaRef, data: bytes, question: str | None, until: float) -> str | None:
        """The key of a result in the cache; None without a cache."""
        if self._cache.folder is None:
            return None
        said = self._talk({"do": "version"}, b"", until, lambda reply: _protocol.answer(reply, "version"))
        return _cache.key(
            {
                "expert": self._code or f"mmtune.experts.{self.name}",
                "version": str(said["version"]),
                "options": self.config.model_dump(mode="json", exclude={*AFTERWARDS}),
                "kind": ref.kind,
                "content": hashlib.sha256(data).hexdigest() + ref.range,
                "question": question,
            }
        )


def _plain(error: Exception) -> str:
    if isinstance(error, MmtuneError):
        return " ".join("; ".join(str(error).splitlines()).split())[:400]
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, (Failure, _protocol.WireError)) else f"{type(error).__name__}: {text}"
