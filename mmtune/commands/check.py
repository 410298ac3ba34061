"""`mmtune data check`: how a recipe would read some data, before any training."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from mmtune import config
from mmtune.errors import DataError, MediaError, UsageError
from mmtune.types import IGNORE, Example, Slot

if TYPE_CHECKING:
    from mmtune.llm.base import Tokenizer

BINS = 8
"""Bars of the histogram of lengths."""


@dataclass
class Findings:
    """Findings over some records."""

    records: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    first: dict[str, str] = field(default_factory=dict)
    """Reason to the first message under it."""
    hints: dict[str, str] = field(default_factory=dict)
    """Reason to the hint of the first, if it has one."""
    lengths: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    media: Counter[str] = field(default_factory=Counter)
    """Items by branch."""
    notes: Counter[str] = field(default_factory=Counter)
    """Notes on unusual media that can be used, counted."""
    examples: list[Example] = field(default_factory=list)
    """The first few, to be shown in full."""

    def skip(self, error: DataError | MediaError) -> None:
        self.skipped[error.reason.value] += 1
        if error.reason.value not in self.first:
            self.first[error.reason.value] = error.seen
            if error.hint:
                self.hints[error.reason.value] = error.hint

    def take(self, example: Example, keep: int) -> None:
        self.lengths.append(len(example))
        self.learned.append(int((example.labels != IGNORE).sum()))
        self.media.update(slot.branch for slot in example.slots)
        self.notes.update(str(note) for note in example.notes)
        if len(self.examples) < keep:
            self.examples.append(example)


def run(
    patterns: Sequence[str],
    recipe: str,
    stream: str | None,
    limit: int,
    samples: int,
    overrides: Sequence[str] = (),
) -> int:
    """Look at the first `limit` records and print what was found.

    Returns:
        Exit code: 1 when not one record can be used, else 0.

    Raises:
        UsageError: no such stream, or several and none named.
        DataError: the data cannot be read at all.
    """
    from mmtune import model as models
    from mmtune import registry
    from mmtune.checkpoint import store
    from mmtune.data.shards import Corpus
    from mmtune.recipe import Recipe

    loaded = config.load(Recipe, recipe, overrides)
    name = _stream(list(loaded.streams), stream)
    chosen = loaded.streams[name]
    shards = chosen.model_copy(update={"data": tuple(patterns)}).patterns()  # names of cards stand for their shards
    corpus = Corpus(shards, say=lambda line: print(line, file=sys.stderr))
    spelled = chosen.format
    reader = registry.find("data/formats", spelled.name)(spelled)
    # No weights: only prepared media, slots and tokens are needed.
    model = models.build(loaded.model, weights=False, device="meta")
    processor = store.processor_for(loaded, model, chosen.prompt)
    loads = (partial(corpus.record, key) for key in islice(corpus.samples(), limit))
    found = look(loads, reader, processor, samples)
    print("\n".join(report(found, len(corpus), processor.tokenizer)))
    for reason, count in corpus.refused.items():
        print(f"{count} refused when the shards were indexed: {reason}")
    return 0 if found.lengths else 1


def look(loads: Iterable[Callable[[], Any]], reader: Any, processor: Any, samples: int) -> Findings:
    """Read every record by format and processor, as training would; each of `loads` reads one record."""
    found = Findings()
    for load in loads:
        found.records += 1
        try:
            for sample in _several(reader.read(load())):
                found.take(processor.example(sample), samples)
        except (DataError, MediaError) as error:
            found.skip(error)
    return found


def report(found: Findings, total: int, tokenizer: Tokenizer) -> list[str]:
    """The findings for people."""
    lines = [f"{found.records} of {total} records looked at: {len(found.lengths)} usable"]
    for reason, count in found.skipped.items():
        lines.append(f"  skipped {count}: {reason}, first: {found.first[reason]}")
        lines += [f"    try: {found.hints[reason]}"] if reason in found.hints else []
    if not found.lengths:
        return lines
    items = ", ".join(f"{branch} {count}" for branch, count in found.media.items()) or "none"
    total, learned = sum(found.lengths), sum(found.learned)
    lines += [
        f"media items: {items}",
        *(f"  unusual, and used: {count} {note}" for note, count in found.notes.items()),
        f"tokens: {total}, of them learned {learned} ({100 * learned / total:.1f} %)",
        "lengths in tokens:",
        *histogram(found.lengths),
    ]
    for example in found.examples:
        head = f"{example.id}: {len(example)} tokens; learned text between >> and <<"
        lines += ["", head, labelled(example, tokenizer)]
    return lines


def histogram(values: Sequence[int], bins: int = BINS) -> list[str]:
    """Bars of counts over equal ranges."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter((value - low) // width for value in values)
    most = max(counts.values())
    return [
        f"  {low + index * width:>6}..{low + (index + 1) * width - 1:<6} {counts[index]:>6} "
        f"{'#' * round(40 * counts[index] / most)}"
        for index in range((high - low) // width + 1)
    ]


def labelled(example: Example, tokenizer: Tokenizer) -> str:
    """Tokens of an example as text: media tokens as marks, control tokens as `<id>`, learned stretches marked.

    A token is learned if it is the label of the token before it. A stretch with another weight than 1 in the loss
    shows the weight: `>>0.5:`. Where there are several conversations, each begins a line.
    """
    slots = {slot.start: slot for slot in example.slots if slot.length}
    tokens = example.tokens.tolist()
    weights = (example.labels != IGNORE).float() if example.weights is None else example.weights
    counts = [0.0, *weights.tolist()]  # weight of each token, stored at the token before it
    starts = set(itertools.accumulate(example.sequences))  # further conversations begin on a new line
    words: list[str] = []
    stretch: list[int] = []
    learning, index = 0.0, 0

    def write() -> None:
        words.append(_plain(stretch, tokenizer))
        stretch.clear()

    while index < len(tokens):
        if counts[index] != learning:
            write()
            words.append("<<" if learning else "")
            learning = counts[index]
            words.append("" if not learning else ">>" if learning == 1 else f">>{learning:g}:")
        if index in starts:
            write()
            words.append("\n")
        slot: Slot | None = slots.get(index)
        if slot is not None:
            write()
            words.append(f"[{slot.branch}: {slot.length} tokens]")
            index += slot.length
            continue
        stretch.append(tokens[index])
        index += 1
    write()
    return "".join(words) + ("<<" if learning else "")


def _plain(ids: list[int], tokenizer: Tokenizer) -> str:
    text: list[str] = []
    plain: list[int] = []
    for token in ids:
        if token in tokenizer.special_ids:
            text += [tokenizer.decode(plain), f"<{token}>"]
            plain = []
        else:
            plain.append(token)
    return "".join([*text, tokenizer.decode(plain)])


def _several(samples: Any) -> list[Any]:
    """A format gives one sample of a record, or several."""
    return list(samples) if isinstance(samples, (list, tuple)) else [samples]


def _stream(known: list[str], name: str | None) -> str:
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        raise UsageError(
            seen=f"stream {name!r}" if name else "no --stream",
            expected="one of " + ", ".join(known),
            hint="--stream NAME",
        )
    return name
