"""The experts of a conversation: which are on, their findings about media, and how these enter a turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune import config, registry
from mmtune.errors import UsageError
from mmtune.experts import _cache
from mmtune.experts._runner import Finding, Runner
from mmtune.experts.base import ExpertConfig
from mmtune.serve.text import printable
from mmtune.types import MediaRef, Part, Quote, Sample, Turn

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.media import Limits

Spec = str | Mapping[str, Any] | ExpertConfig
"""An expert as it is named: NAME or NAME:key=value,..., the mapping of a recipe, or a config."""
Told = frozenset[tuple[str, MediaRef, str | None]]
"""Who has spoken about which medium, and to which question where that matters."""
EXAMPLE = "ocr:min_score=0.9,frames=8"


def parse(spec: Spec) -> ExpertConfig | config.Outside:
    """A named expert; nothing of it runs. Options are checked here, those of one from outside by its own process.

    Raises:
        UsageError: not of the form NAME[:key=value[,key=value...]].
        ConfigError: no such expert or option.
    """
    if isinstance(spec, ExpertConfig | config.Outside):
        return spec
    tree = dict(spec) if isinstance(spec, Mapping) else config.spec(spec, "expert", "experts", EXAMPLE)
    name = tree.get("name")
    if not isinstance(name, str):
        raise UsageError(seen=f"an expert without a name: {tree}", expected="a mapping with a name")
    if registry.source("experts", name) is not None:
        return config.validate(config.Outside, tree, f"the expert {name}")
    return config.validate(registry.find("experts", name).Config, tree, f"the expert {name}")


def brief(specs: Iterable[Mapping[str, Any]]) -> str:
    """Experts of a recipe as a person would name them, in one line."""
    return printable(", ".join(str(spec.get("name")) for spec in specs)[:400])


class Panel:
    """The experts that are on, in their order.

    Args:
        specs: which, as a person named them; a later one of the same name takes the place of an earlier.
        cache: folder for results; none takes the usual one, see `mmtune.experts._cache.default_folder`.
        of_run: those that a recipe names, before the others. Code from outside among them has to be allowed.
        limits: the most that an item may cost there; the usual ones when not given.

    Raises:
        UsageError, ConfigError, ModelError: one that cannot be had by this name.
    """

    def __init__(
        self,
        specs: Iterable[Spec] = (),
        cache: Path | None = None,
        of_run: Iterable[Mapping[str, Any]] = (),
        limits: Limits | None = None,
    ) -> None:
        self._cache = _cache.Cache(cache or _cache.default_folder())
        self._limits = limits
        self._runners: dict[str, Runner] = {}
        for one in of_run:
            self._switch_on(parse(one))
        for spec in specs:
            self.switch_on(spec)

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def names(self) -> list[str]:
        """Names of those that are on."""
        return list(self._runners)

    def switch_on(self, spec: Spec) -> str:
        """Add an expert, or give one other options; it starts when it is first needed. Returns its name.

        It is named by a person, which is their word that its code may run.
        """
        found = parse(spec)
        if registry.is_outside(found.name):
            registry.allow([found.name])
        return self._switch_on(found)

    def _switch_on(self, found: ExpertConfig | config.Outside) -> str:
        runner = Runner(found, self._cache, limits=self._limits)
        name = runner.name
        if name in self._runners:
            self._runners[name].close()
        self._runners[name] = runner
        return name

    def switch_off(self, name: str) -> None:
        """Take an expert away. Raises UsageError when it is not on."""
        if name not in self._runners:
            raise UsageError(seen=f"{name!r} is not on", expected="one of " + (", ".join(self.names) or "none"))
        self._runners.pop(name).close()

    def within(self, limits: Limits | None) -> None:
        """From now on items may cost so much: those of the recipe that is talked with."""
        self._limits = limits
        for runner in self._runners.values():
            runner.within(limits)

    def close(self) -> None:
        """End all processes; the next question starts them again."""
        for runner in self._runners.values():
            runner.close()

    def hear(self, refs: Sequence[MediaRef], question: str, told: Told = frozenset()) -> list[Finding]:
        """Ask every expert about every medium of its kinds, unless it has told before. Raises nothing."""
        unique = list(dict.fromkeys(refs))
        return [
            runner.look(ref, question)
            for ref in unique
            for name, runner in self._runners.items()
            if ref.kind in runner.kinds and (name, ref, question if runner.asks else None) not in told
        ]

    def told(self, findings: Iterable[Finding], question: str) -> Told:
        """What is not to be asked again after these findings; failures may be."""
        asks = {name: runner.asks for name, runner in self._runners.items()}
        known = [one for one in findings if one.status != "failed" and one.expert in asks]
        return frozenset((one.expert, one.ref, question if asks[one.expert] else None) for one in known)


class Adviser:
    """Adds the findings of a panel of experts about their media to samples, and counts the results.

    Args:
        panel: whom to ask.
        say: told each new way to fail, once.
    """

    def __init__(self, panel: Panel, say: Callable[[str], None]) -> None:
        self._panel = panel
        self._say = say
        self._counts: Counter[str] = Counter()
        self._notes: set[str] = set()

    def within(self, limits: Limits | None) -> None:
        """As `Panel.within`."""
        self._panel.within(limits)

    def advise(self, sample: Sample) -> Sample:
        """A sample with evidence about its media in the turns where they are shown."""
        turns = []
        for turn in sample.turns:
            findings = self._panel.hear(turn.media, turn.text)
            for finding in findings:
                self._counts[finding.status] += 1
                if finding.note and finding.note not in self._notes:
                    self._notes.add(finding.note)
                    self._say(finding.line())
            turns.append(with_quotes(turn, findings))
        return replace(sample, turns=tuple(turns))

    def record(self) -> dict[str, Any]:
        """Who was asked, and how often something was found, nothing was found, or the expert failed."""
        counts = {status: self._counts[status] for status in ("found", "nothing", "failed")}
        return {"asked": ", ".join(self._panel.names), **counts}


def with_quotes(turn: Turn, findings: Iterable[Finding]) -> Turn:
    """A turn with the findings: right after their medium, or first where that was shown in an earlier turn."""
    waiting: dict[MediaRef, list[Quote]] = {}
    for finding in findings:
        if finding.quote:
            waiting.setdefault(finding.ref, []).append(finding.quote)
    parts: list[Part] = []
    for part in turn.parts:
        parts.append(part)
        if isinstance(part, MediaRef):
            parts += waiting.pop(part, [])
    earlier = [quote for quotes in waiting.values() for quote in quotes]
    return replace(turn, parts=(*earlier, *parts))
