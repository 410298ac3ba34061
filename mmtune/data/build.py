"""The loader of a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmtune import registry
from mmtune.data.exchange import Peers
from mmtune.data.ledger import Ledger
from mmtune.data.loader import Loader, ProcessorLike, Source, Stream
from mmtune.data.orders.base import TOKENS
from mmtune.data.pack import BatchSpec
from mmtune.data.streams import Interleave, Schedule
from mmtune.recipe import Recipe, StreamSection


def batch_spec_of(recipe: Recipe) -> BatchSpec:
    """What a step of a recipe holds: as many whole rows as `batch_tokens` has room for, in each micro-step."""
    run = recipe.run
    return BatchSpec(rows=run.batch_tokens // run.length, length=run.length, accumulate=run.accumulate)


def streams_of(
    recipe: Recipe,
    processors: Mapping[str, ProcessorLike],
    say: Callable[[str], None] | None = None,
    write: bool = True,
) -> list[Stream]:
    """The streams of a recipe, their shards indexed.

    Args:
        processors: by stream; they differ in the prompt.
        say: told of indexes being made and of damaged shards.
        write: lay indexes that are made now beside their shards.

    Raises ConfigError and DataError.
    """
    streams = []
    for name, section in recipe.streams.items():
        source = _source(section.patterns(), section.format)
        order = registry.find("data/orders", section.order.name)(section.order)
        options = {"say": say, "write": write, "held_out": _fraction(recipe, name), "row": recipe.run.length}
        if TOKENS in order.columns:
            options["made_by"] = _lengths(recipe, section, processors[name])
        if order.columns:
            options["workers"] = recipe.run.workers
        # encoders that draw nothing ask the generator for nothing
        streams.append(Stream(name, [source], processors[name], section.share, augment=True, order=order, **options))
    return streams


def _lengths(recipe: Recipe, section: StreamSection, processor: ProcessorLike) -> str:
    """Digest of what the lengths of a stream's samples depend on beside its shards."""
    parts = recipe.model_dump(mode="json", include={"model": {"branches", "fusion"}, "limits": True})
    parts |= {"run": [recipe.run.length, recipe.run.too_long], "format": section.format.model_dump(mode="json")}
    parts |= {"prompt": processor.template.model_dump(mode="json"), "tokenizer": processor.tokenizer.fingerprint()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def held_out_sections(recipe: Recipe) -> dict[str, str]:
    """Held-out stream to the stream whose prompt, format and objective it has."""
    split = {name: name for name in recipe.streams if _fraction(recipe, name)}
    return {**split, **{name: held.like or name for name, held in recipe.eval.streams.items()}}


def held_out_of(
    recipe: Recipe,
    processors: Mapping[str, ProcessorLike],
    say: Callable[[str], None] | None = None,
    write: bool = True,
) -> list[Stream]:
    """The held-out streams of a recipe: data of their own, or what `eval.fraction` keeps from a stream.

    Args:
        processors: by stream that is trained on.

    Raises ConfigError and DataError.
    """
    streams = []
    for name, like in held_out_sections(recipe).items():
        held, section = recipe.eval.streams.get(name), recipe.streams[like]
        options = {"say": say, "write": write}
        if held is None:
            options |= {"held_out": _fraction(recipe, name), "only_held_out": True}
            source = _source(section.patterns(), section.format)
        else:
            patterns = section.model_copy(update={"data": held.data}).patterns()
            source = _source(patterns, held.format or section.format)
        streams.append(Stream(name, [source], processors[like], **options))
    return streams


def _source(patterns: tuple[str, ...], spelled: Any) -> Source:
    return Source(patterns, registry.find("data/formats", spelled.name)(spelled))


def _fraction(recipe: Recipe, stream: str) -> float:
    """The part of a stream that is held out of it."""
    return 0.0 if stream in recipe.eval.streams else recipe.eval.fraction


def loader_of(
    recipe: Recipe,
    processors: Mapping[str, ProcessorLike],
    out: Path | None = None,
    rank: int = 0,
    world: int = 1,
    pad: int = 0,
    say: Callable[[str], None] | None = None,
    peers: Peers | None = None,
    write: bool = True,
) -> Loader:
    """The loader of a recipe.

    Args:
        processors: by stream.
        out: run folder; the first rank writes `skipped.jsonl` in it. None keeps counts only.
        peers: the other ranks, where there are any, to share the preparing with.
        write: lay indexes that are made now beside their shards.

    Raises ConfigError and DataError.
    """
    run = recipe.run
    path = out / "skipped.jsonl" if out is not None and rank == 0 else None
    ledger = Ledger(path, max_bad_fraction=run.max_bad_fraction, max_in_a_row=run.max_bad_in_a_row)
    streams = streams_of(recipe, processors, say, write)
    return Loader(
        streams, batch_spec_of(recipe), run.seed, run.workers, ledger, rank, world, pad, *_interleave(recipe), peers
    )


def schedule_of(recipe: Recipe) -> Schedule:
    """Which streams feed which step, without looking at the data."""
    shares = {name: stream.share for name, stream in recipe.streams.items()}
    interleave, stages = _interleave(recipe)
    return Schedule(shares, recipe.run.seed, interleave, recipe.run.accumulate, stages)


def _interleave(recipe: Recipe) -> tuple[Interleave, list[tuple[tuple[str, ...], int]]]:
    """How streams take turns, and the stages as (streams, steps)."""
    return recipe.schedule.interleave, [(stage.streams, stage.steps) for stage in recipe.schedule.stages]
