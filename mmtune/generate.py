"""Decoding: the prompt is read once into a cache, then one token at a time.

It knows token numbers only; text, templates and stop strings are its callers' business. Greedy unless asked otherwise,
and repeatable: what is drawn depends on the seed and on nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune.collate import collate
from mmtune.errors import UsageError
from mmtune.types import IGNORE, Batch, Embeds, Example

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits."""

    temperature: float = 0.0
    """0 takes the likeliest; otherwise logits are divided by it."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together reach this probability."""
    repetition: float = 1.0
    """Above 1, what was already said becomes less likely: positive logits are divided by it, negative multiplied."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.repetition <= 0:
            raise UsageError(seen=f"{self}", expected="temperature >= 0, 0 < top_p <= 1, repetition > 0")

    def choose(self, logits: Tensor, said: Tensor, generator: torch.Generator) -> Tensor:
        """logits [B,V], ids already said int64 [B,n] -> ids int64 [B]. At equal logits the lowest id wins."""
        logits = logits.float()
        if self.repetition != 1 and said.numel():
            old = logits.gather(1, said)
            logits = logits.scatter(1, said, torch.where(old > 0, old / self.repetition, old * self.repetition))
        if self.temperature == 0:
            return logits.argmax(-1)
        chances = self.chances(logits)
        return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)

    def chances(self, logits: Tensor) -> Tensor:
        """logits [B,V] -> the distribution that is drawn from at a temperature above zero, [B,V]."""
        chances = (logits.float() / self.temperature).softmax(-1).cpu()
        if self.top_p < 1:
            ordered, ids = chances.sort(dim=-1, descending=True, stable=True)
            # A token stays if those before it do not reach top_p yet, so the likeliest always stays.
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0)
            chances = torch.zeros_like(chances).scatter(1, ids, ordered / ordered.sum(-1, keepdim=True))
        return chances


Stop = int | tuple[int, ...]
"""A token that ends an answer, or tokens that do so in a row."""


class _Ends:
    """What ends an answer, asked with every token of it."""

    def __init__(self, stops: Collection[Stop]) -> None:
        self.rows = [(stop,) if isinstance(stop, int) else tuple(stop) for stop in stops]

    def cut(self, said: Sequence[int]) -> int:
        """How many tokens at the end of `said` are a stop; 0 while the answer goes on."""
        return max((len(row) for row in self.rows if row and row == tuple(said[-len(row) :])), default=0)

    def held(self, said: Sequence[int]) -> int:
        """How many tokens at the end of `said` may yet become part of a stop."""
        most = min(len(said), max(map(len, self.rows), default=0))
        for length in range(most, 0, -1):
            if any(len(row) > length and row[:length] == tuple(said[-length:]) for row in self.rows):
                return length
        return 0


def stream(
    model: MultimodalModel,
    example: Example,
    stops: Collection[Stop],
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition: float = 1.0,
    seed: int = 0,
    embeds: dict[str, Embeds] | None = None,
) -> Iterator[int]:
    """The answer to one prompt, token by token; the stop is not given. Close the iterator to stop early.

    Args:
        stops: what ends the answer, `Processor.stops`. A token that may begin a row of several waits for the next.
        embeds: what `model.connect` gave for this example's media; none to compute it here.

    Raises:
        UsageError: settings out of range, an empty prompt.
    """
    choice = Sampling(temperature, top_p, repetition, seed)
    if max_tokens < 1:
        raise UsageError(seen=f"max_tokens = {max_tokens}", expected="at least 1")
    return _stream(model, example, _Ends(stops), max_tokens, choice, embeds)


def _stream(
    model: MultimodalModel,
    example: Example,
    ends: _Ends,
    max_tokens: int,
    choice: Sampling,
    embeds: dict[str, Embeds] | None,
) -> Iterator[int]:
    with torch.inference_mode():
        reader = _Reader(model, [example], embeds)
    generator = torch.Generator().manual_seed(choice.seed)
    said = torch.empty(1, 0, dtype=torch.int64, device=model.device)
    waiting: list[int] = []
    for number in range(max_tokens):
        # Entered again for each token: a mode held over a yield would leak into the caller.
        with torch.inference_mode():
            ids = choice.choose(reader.logits, said, generator)
            waiting.append(int(ids))
        if ends.cut(waiting):
            yield from waiting[: -ends.cut(waiting)]
            return
        ready = len(waiting) - ends.held(waiting)
        yield from waiting[:ready]
        del waiting[:ready]
        if number + 1 < max_tokens:
            with torch.inference_mode():
                said = torch.cat([said, ids[:, None]], dim=1)
                reader.read(ids)
    yield from waiting


@torch.inference_mode()
def answer_batch(
    model: MultimodalModel, examples: Sequence[Example], stops: Collection[Stop], max_tokens: int = 32, rows: int = 32
) -> list[list[int]]:
    """Greedy answers to many prompts, as `stream` would give one by one; in the order of the prompts.

    Prompts of like length share a batch. Shorter rows are padded at the end; padding has segment 0 and is seen by
    no token, also not by those decoded after it, and positions continue from each prompt's own end. A row that has
    ended leaves the batch.

    Args:
        rows: most prompts at once.
    """
    ends = _Ends(stops)
    answers: list[list[int]] = [[] for _ in examples]
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]))
    for start in range(0, len(order), rows):
        _answer(model, examples, order[start : start + rows], ends, max_tokens, answers)
    return answers


def _answer(
    model: MultimodalModel,
    examples: Sequence[Example],
    numbers: list[int],
    ends: _Ends,
    max_tokens: int,
    answers: list[list[int]],
) -> None:
    reader = _Reader(model, [examples[number] for number in numbers])
    for step in range(max_tokens):
        ids = reader.logits.float().argmax(-1)
        going = []
        for row, token in enumerate(ids.tolist()):
            answer = answers[numbers[row]]
            answer.append(token)
            if cut := ends.cut(answer):
                del answer[-cut:]
            else:
                going.append(row)
        if not going or step + 1 == max_tokens:
            return
        if len(going) < len(numbers):
            numbers = [numbers[row] for row in going]
            keep = torch.tensor(going, device=ids.device)
            reader.keep(keep)
            ids = ids[keep]
        reader.read(ids)


class _Reader:
    """Some prompts, one in each row, read into a cache; `logits` [B,V] are for the next token of each."""

    def __init__(
        self, model: MultimodalModel, examples: Sequence[Example], embeds: dict[str, Embeds] | None = None
    ) -> None:
        if not all(len(example) for example in examples):
            raise UsageError(seen="an empty prompt", expected="at least one token", hint="use a template with a begin")
        self.model = model
        texts = [[example] for example in examples]
        self.batch = collate(texts, model.llm.tokenizer.pad, multiple=1).to(model.device)
        self.lengths = torch.tensor([len(example) for example in examples], device=model.device)
        self.embeds = model.connect(model.encode(self.batch)) if embeds is None else embeds
        self.cache = model.llm.new_cache()
        hidden = model.fuse(self.batch, self.embeds, self.cache)
        self.logits = model.llm.head(hidden[torch.arange(len(examples), device=model.device), self.lengths - 1])

    def read(self, ids: Tensor) -> None:
        """One more token in each row, int64 [B]."""
        hidden = self.model.fuse(self._next(ids), self._going(), self.cache)
        self.logits = self.model.llm.head(hidden[:, -1])
        self.lengths = self.lengths + 1

    def _next(self, ids: Tensor) -> Batch:
        tokens = ids[:, None]
        media, frames, slots = self.batch.media, self.batch.frame_mask, self.batch.slots
        if self.model.fusion.uses_placeholders:
            media = frames = slots = {}
        labels, segments = torch.full_like(tokens, -100), torch.ones_like(tokens, dtype=torch.int32)
        return Batch(tokens, labels, self.lengths[:, None], segments, media, frames, slots, ids=self.batch.ids)

    def _going(self) -> dict[str, Embeds]:
        """What the fusion needs in every step: nothing where media took places, which are in the cache."""
        return {} if self.model.fusion.uses_placeholders else self.embeds

    def keep(self, kept: Tensor) -> None:
        """Keep these rows, int64 [B'], and drop the others, with their media."""
        self.cache.keep(kept)
        self.lengths, self.logits = self.lengths[kept], self.logits[kept]
        if self.model.fusion.uses_placeholders:
            return
        new_row = torch.full((len(self.batch.tokens),), -1, device=kept.device)
        new_row[kept] = torch.arange(len(kept), device=kept.device)
        batch, embeds = self.batch, {}
        media, frames, slots = {}, {}, {}
        for branch, lines in batch.slots.items():
            stay = new_row[lines[:, 0]] >= 0
            media[branch], frames[branch] = batch.media[branch][stay], batch.frame_mask[branch][stay]
            slots[branch] = torch.cat([new_row[lines[stay, :1]], lines[stay, 1:]], dim=1)
            given = self.embeds[branch]
            embeds[branch] = Embeds(given.tokens[stay], given.mask[stay])
        self.embeds = embeds
        texts = (batch.tokens, batch.labels, batch.positions, batch.segments)
        self.batch = Batch(*(text[kept] for text in texts), media, frames, slots)


def score(model: MultimodalModel, examples: Sequence[Example | None], rows: int = 16) -> list[tuple[float, int]]:
    """Log-likelihood of the labelled tokens of each example, nats, summed; and their number. (0, 0) for None.

    Args:
        rows: examples at once.
    """
    found = [(0.0, 0)] * len(examples)
    there = [index for index, example in enumerate(examples) if example is not None]
    there.sort(key=lambda index: len(examples[index]))  # type: ignore[arg-type]
    for start in range(0, len(there), rows):
        indexes = there[start : start + rows]
        texts = [[examples[index]] for index in indexes]
        batch = collate(texts, model.llm.tokenizer.pad, multiple=1).to(model.device)  # type: ignore[arg-type]
        hidden, wanted = model(batch), batch.labels != IGNORE
        likely = model.token_log_probs(hidden[wanted], batch.labels[wanted])
        counts = wanted.sum(1).tolist()
        for index, part, count in zip(indexes, likely.double().cpu().split(counts), counts, strict=True):
            found[index] = (float(part.sum()), count)
    return found
