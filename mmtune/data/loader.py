"""Steps of a run: which stream, which examples, in which rows. A function of seed, step and the data, of nothing else.

Each stream is an endless row of positions: position p is index p mod n of epoch p // n, n the number of samples. A step
takes the stream's next samples until its rows are full. A sample that cannot be used is written into the ledger, and
the next one takes its place, so a run with a bad sample is equal to one that never had it. Where a run stands is one
number for each stream, see `positions`.

All ranks make the same rows and each keeps its share, rows r, r + world, r + 2 * world, ... of every micro-step; so the
steps of a run are the same for any number of ranks and workers. Ranks that know each other share the preparing, see
`mmtune.data.exchange`; without that every rank prepares every sample.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmtune.collate import collate
from mmtune.data import _serialize, columns
from mmtune.data._hash import hash_text
from mmtune.data.exchange import Notice, Peers
from mmtune.data.feed import Feed, SharedFeed, Skip
from mmtune.data.formats.base import Format
from mmtune.data.ledger import Ledger
from mmtune.data.orders.base import TOKENS, Order
from mmtune.data.pack import BatchSpec, Packer
from mmtune.data.patterns import canonical_path, expand
from mmtune.data.pool import AHEAD, Pool
from mmtune.data.remote import Remote
from mmtune.data.sample_order import SampleKey, SampleOrder
from mmtune.data.shards import Corpus
from mmtune.data.streams import Interleave, Schedule
from mmtune.errors import ConfigError, DataError, MediaError, UsageError
from mmtune.types import Batch, Example, Sample

SCANNED = 100_000
"""Most records that are read to see whether media come in a stream."""


class ProcessorLike(Protocol):
    """What turns a conversation into an example."""

    def example(self, sample: Sample, answer: bool = False, rng: np.random.Generator | None = None) -> Example: ...


@dataclass(frozen=True)
class Source:
    """Shards in one spelling."""

    patterns: tuple[str | Path, ...]
    format: Format


class Stream:
    """One row of samples.

    Args:
        sources: where they come from. All are mixed in one order.
        share: part of the steps, in any unit common to all streams.
        augment: hand the processor a random generator, a function of (seed, epoch, sample).
        order: in which samples come; at random when not given.
        workers: processes that read what the order asks of samples.
        made_by: digest of what the lengths of samples depend on beside the data.
        options: for `Corpus`.

    Raises:
        ConfigError: a shard in two sources, or an order by a column that no sample has.
        DataError: what `Corpus` raises.
    """

    def __init__(
        self,
        name: str,
        sources: Iterable[Source],
        processor: ProcessorLike,
        share: float = 1.0,
        augment: bool = False,
        order: Order | None = None,
        workers: int = 0,
        made_by: str = "",
        **options: Any,
    ) -> None:
        self.name, self.processor, self.share, self.augment = name, processor, share, augment
        self.formats: list[Format] = []
        paths: list[Path | Remote] = []
        for source in sources:
            found = expand(source.patterns)
            known = {canonical_path(path) for path in paths}
            if twice := {path for path in found if canonical_path(path) in known}:
                raise ConfigError(
                    f"stream {name}: {min(twice)} in two places of its data", "each shard once", "make a second stream"
                )
            paths += found
            self.formats += [source.format] * len(found)
        self.corpus = Corpus(paths, order=order, **options)
        if not len(self.corpus):
            raise _nothing(name, len(paths), **options)
        if order is not None and order.columns:
            measured = {TOKENS: columns.Measure(lambda key: len(processor.example(self.sample(key))), made_by)}
            wanted = {one: measured.get(one) or columns.number_at(self.corpus, one) for one in order.columns}
            columns.fill(self.corpus, wanted, name, workers, options.get("say"), options.get("write", True))

    def sample(self, key: SampleKey, seed: int = 0, epoch: int = 0) -> Sample:
        """The conversation of a sample. Raises DataError."""
        sample = self.formats[key.shard].read(self.corpus.record(key, seed, epoch))
        return replace(sample, stream=self.name)

    def has_media(self, kinds: Collection[str]) -> bool | None:
        """Whether a record has a medium of one of these kinds, by its text alone; None when `SCANNED` records say
        nothing. Records that cannot be used are passed over."""
        for number, key in enumerate(self.corpus.samples()):
            if number == SCANNED:
                return None
            try:
                found = {ref.kind for ref in self.sample(key).media}
            except (DataError, MediaError):
                continue
            if found.intersection(kinds):
                return True
        return False


def _nothing(name: str, shards: int, held_out: float = 0.0, only_held_out: bool = False, **_: Any) -> ConfigError:
    where = f"{shards} shard{'' if shards == 1 else 's'}"
    if not held_out:
        return ConfigError(f"stream {name}: no samples in {where}", "at least one sample", "mmtune data check")
    side = "holds out none" if only_held_out else "leaves none to train on"
    return ConfigError(
        f"stream {name}: eval.fraction = {held_out:g} {side} of the samples in {where}",
        "at least one sample on either side; which ones, a hash of their names says",
        f"a {'larger' if only_held_out else 'smaller'} eval.fraction, or eval.streams with shards of their own",
    )


class Loader:
    """Steps for a training loop.

    Args:
        streams: see `Stream`.
        spec: what a step holds; for all streams, or by name of the stream.
        workers: processes that prepare samples; 0 does it here.
        ledger: takes what is skipped; one that keeps counts only when not given.
        rank, world: which rows to keep.
        pad: token written at padding.
        interleave, stages: see `Schedule`. With `mixed`, all specs have the same number of micro-steps.
        peers: the other ranks, to share the preparing with.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        spec: BatchSpec | Mapping[str, BatchSpec],
        seed: int = 0,
        workers: int = 0,
        ledger: Ledger | None = None,
        rank: int = 0,
        world: int = 1,
        pad: int = 0,
        interleave: Interleave = "share",
        stages: Sequence[tuple[Collection[str], int]] = (),
        peers: Peers | None = None,
    ) -> None:
        self.streams = {stream.name: stream for stream in streams}
        self.specs = dict(spec) if isinstance(spec, Mapping) else dict.fromkeys(self.streams, spec)
        if len(self.streams) != len(streams) or set(self.specs) != set(self.streams):
            names = [stream.name for stream in streams]
            raise ConfigError(f"streams {names} with specs {list(self.specs)}", "one spec for each stream")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world}", "a rank below the number of ranks")
        self.seed, self.workers, self.rank, self.world, self.pad = seed, workers, rank, world, pad
        self.peers = peers if world > 1 else None
        self.ledger = ledger or Ledger()
        parts = {one.accumulate for one in self.specs.values()}
        if interleave == "mixed" and len(parts) > 1:
            raise ConfigError(f"mixed steps with specs of {sorted(parts)} micro-steps", "one number for all streams")
        shares = {name: stream.share for name, stream in self.streams.items()}
        self.schedule = Schedule(shares, seed, interleave, max(parts, default=1), stages)
        self._seeds = {name: hash_text(f"{seed} {name}") for name in self.streams}
        self._history: dict[int, dict[str, int]] = {0: dict.fromkeys(self.streams, 0)}
        self._states: dict[int, dict[str, Any]] = {0: {}}
        """What orders that have a state remember, by step as in `_history`."""
        self.pool: Pool | None = None
        """Workers, while steps are given."""
        self.measures: dict[str, float] = {}
        """What the last validation found, for orders that ask when an epoch begins."""
        self.ids: tuple[str, ...] = ()
        """Samples of the step that was given last, those of all ranks."""
        self.held: dict[str, tuple[str, ...]] = {}
        """The same by stream."""

    def counts(self) -> dict[str, int]:
        """Samples of each stream, those that the index refuses included."""
        return {name: len(stream.corpus) for name, stream in self.streams.items()}

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the data of each stream; what must be equal for a run to go on as it began."""
        return {name: stream.corpus.fingerprint() for name, stream in self.streams.items()}

    # --------------------------------------------------------------------------------------------------- where we are

    def positions(self, step: int) -> dict[str, Any]:
        """Where the streams stand after `step` steps: plain values, to be saved and given to `restore`.

        Raises UsageError for a step that is not among the last that `steps` gave.
        """
        if step not in self._history:
            raise UsageError(
                seen=f"the position in the data after step {step}", expected=f"one of {list(self._history)}"
            )
        counts, at = self.counts(), self._history[step]
        streams = {
            name: {"epoch": at_position // counts[name], "position": at_position % counts[name]}
            for name, at_position in at.items()
        }
        for name, state in self._states[step].items():
            streams[name]["order"] = state
        return {"step": step, "streams": streams, **({"measures": self.measures} if self._states[step] else {})}

    def restore(self, positions: Mapping[str, Any]) -> None:
        """Go on where `positions` were taken. Raises UsageError when they are of other streams."""
        counts, streams = self.counts(), positions["streams"]
        if set(streams) != set(counts):
            raise UsageError(seen=f"positions of streams {', '.join(streams)}", expected=", ".join(counts))
        # In data that has become smaller since, a position beyond the end is the end of the epoch.
        at = {n: p["epoch"] * counts[n] + min(p["position"], counts[n]) for n, p in streams.items()}
        self._history = {int(positions["step"]): at}
        self.measures = dict(positions.get("measures", {}))
        for name, place in streams.items():
            if self._order(name).stateful and place.get("order"):
                self._order(name).load(place["order"])
        self._states = {int(positions["step"]): self._remembered()}

    def _order(self, name: str) -> SampleOrder:
        return self.streams[name].corpus.sample_order

    def _remembered(self) -> dict[str, Any]:
        """What orders remember, by stream, of those that have a state."""
        return {name: self._order(name).state() for name in self.streams if self._order(name).stateful}

    def until(self, name: str, position: int) -> int:
        """The position before which samples may be prepared from `position` on: the end of the epoch, which begins now
        if it has not begun, where the order is settled no further."""
        if not self._order(name).stateful:
            return sys.maxsize
        count = len(self.streams[name].corpus)
        self._order(name).begin(position // count, self.measures)
        return (position // count + 1) * count

    def put(self, name: str, position: int) -> int:
        """Have a worker prepare the sample at a position; the number of the work."""
        state = [self._order(name).state()] if self._order(name).stateful else []
        return self.pool.put(name, position, *state)

    # --------------------------------------------------------------------------------------------------------- steps

    def steps(self, first: int = 0) -> Iterator[tuple[str, list[Batch]]]:
        """The steps from `first` on, without end: stream, and the micro-batches of this rank.

        A mixed step has its streams joined by "+", and their micro-batches one stream after another.

        Raises:
            UsageError: `first` is neither 0 nor where `restore` put the loader.
            DataError: too much of the data cannot be used.
            MmtuneError: a worker died.
        """
        if first not in self._history:
            raise UsageError(
                seen=f"steps from {first} on", expected=f"from {list(self._history)[-1]} on", hint="call restore first"
            )
        self.ledger.rewind(first)
        self.close()
        if self.workers:
            self.pool = Pool(self.work, self.workers, self.task)
        start = self._history[first]
        kind = Feed if self.peers is None else SharedFeed
        feeds = {name: kind(self, name, start[name], self._depth(name)) for name in self.streams}
        try:
            for step in itertools.count(first):
                taking, batches, self.held = self.schedule.streams(step), [], {}
                names = [name for name in self.streams if name in taking]
                for name in names:
                    examples, rows = self._fill(feeds[name], self._spec(name, taking.count(name), len(taking)), step)
                    batches += self._batches(feeds[name], examples, rows)
                    self.held[name] = tuple(example.id for example in examples)
                self._history[step + 1] = {stream: feed.position for stream, feed in feeds.items()}
                self._states[step + 1] = self._remembered()
                if len(self._history) > 64:
                    del self._states[min(self._history)], self._history[min(self._history)]
                self.ids = tuple(itertools.chain.from_iterable(self.held.values()))
                yield "+".join(names), batches
        finally:
            self.close()

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def _depth(self, name: str) -> int:
        total = sum(stream.share for stream in self.streams.values())
        return max(2, round(self.workers * AHEAD * self.streams[name].share / total)) if self.workers else 0

    def _spec(self, name: str, micro_steps: int, of: int) -> BatchSpec:
        """What a step holds of a stream that has so many of its micro-steps; all of them where `of` is one."""
        spec = self.specs[name]
        if of == 1:
            return spec
        examples = None if spec.examples is None else max(1, spec.examples * micro_steps // of)
        return replace(spec, accumulate=micro_steps, examples=examples)

    def _fill(
        self, feed: Feed | SharedFeed, spec: BatchSpec, step: int
    ) -> tuple[list[Example | Notice], list[list[int]]]:
        """Examples of a step, and which go into which row."""
        packer = Packer(spec)
        examples: list[Example | Notice] = []
        while not packer.full:
            found = feed.peek()
            if isinstance(found, Skip):
                self.ledger.skip(**vars(found), step=step, stream=feed.name, epoch=feed.epoch)
                feed.advance()
                continue
            if not packer.add(len(found)):
                break
            examples.append(found)
            feed.advance()
            self.ledger.take(notes=found.notes)
        return examples, packer.rows()

    def _batches(self, feed: Feed | SharedFeed, found: list[Example | Notice], rows: list[list[int]]) -> list[Batch]:
        """This rank's part of each micro-step; rows of a micro-step have the same width on all ranks."""
        size = self.specs[feed.name].rows
        owner = {index: number % size % self.world for number, row in enumerate(rows) for index in row}
        examples = feed.collect(found, [owner[index] for index in range(len(found))])
        batches = []
        for start in range(0, len(rows), size):
            micro = rows[start : start + size]
            width = max(sum(len(found[index]) for index in row) for row in micro)
            mine = [[examples[index] for index in row] for row in micro[self.rank :: self.world]]
            batches.append(collate(mine, self.pad, feed.name, width=-(-width // 8) * 8))
        return batches

    # ------------------------------------------------------------------------------------------------- one sample

    def make(self, name: str, position: int) -> Example | Skip:
        """The sample of a stream at a position, prepared, or why it cannot be used."""
        epoch, index = divmod(position, len(self.streams[name].corpus))
        return self.prepare(name, self.streams[name].corpus.order(self._seeds[name], epoch, index), epoch)

    def prepare(self, name: str, key: SampleKey, epoch: int = 0) -> Example | Skip:
        """A sample of a stream as it is in an epoch, prepared, or why it cannot be used."""
        stream, seed = self.streams[name], self._seeds[name]
        try:
            sample = stream.sample(key, seed, epoch)
            rng = np.random.default_rng([seed, epoch, hash_text(sample.id)]) if stream.augment else None
            example = stream.processor.example(sample, rng=rng) if stream.augment else stream.processor.example(sample)
            self.specs[name].check(example.id, len(example))
        except (DataError, MediaError) as error:
            id, shard = stream.corpus.id(key), stream.corpus.label(key)
            return Skip(id, shard, id.removeprefix(f"{shard}/"), str(error.reason), error.seen)
        return example

    def work(self, name: str, position: int, *state: dict[str, Any]) -> bytes:
        """What a worker does: the sample of `make` as bytes, for `made` to read. `state` is that of the order."""
        for one in state:
            self._order(name).load(one)
        found = self.make(name, position)
        if isinstance(found, Skip):
            return _serialize.dump({"skip": vars(found)}, [])
        return _serialize.dump(*_serialize.pack(found))

    def task(self, task: tuple[Any, ...]) -> str:
        """What a worker is at, in words."""
        name, position = task[:2]
        corpus = self.streams[name].corpus
        epoch, index = divmod(position, len(corpus))
        return f"sample {corpus.id(corpus.order(self._seeds[name], epoch, index))} of stream {name}"
