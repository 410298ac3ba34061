"""The same samples in the same global batches, for any number of ranks and data workers, and after every switch."""

from __future__ import annotations

import itertools
import json
from typing import Any

from mmtune import registry
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.pack import BatchSpec
from tests.data import tars

from . import _fork
from ._base import Guard, Verdict
from ._stage import room

LAYOUTS = tuple(itertools.product((1, 2), (0, 1, 2, 4)))
"""Ranks and workers of each rank."""
STEPS = 12
PLAN = BatchSpec(rows=4, length=24, accumulate=2)


def _answer(key: str) -> dict[str, Any]:
    """Answers of many lengths; every ninth sample cannot be used."""
    said = "bad" if int(key) % 9 == 4 else "x" * (3 + int(key) * 7 % 18)
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": said}]
    return {"conversations": turns, "difficulty": int(key) * 5 % 11 - 5}


def _loader(seed: int, rank: int, world: int, workers: int) -> Loader:
    llava = registry.find("data/formats", "llava")
    source = llava(llava.Config())
    streams = []
    for name, share, order in (("talk", 2, "shuffle"), ("tell", 1, "length_grouped"), ("test", 1, "item_response")):
        cls = registry.find("data/orders", order)
        config = {"name": order, **({"measure": "right"} if order == "item_response" else {})}
        # each layout reads what an order asks for itself
        options = {"order": cls(cls.Config(**config)), "workers": workers, "write": False, "window": 2, "row": 24}
        where = Source((room() / "order" / name,), source)
        streams.append(Stream(name, [where], tars.Letters(), share, **options))
    return Loader(streams, PLAN, seed, workers, rank=rank, world=world)


def _part(seed: int, layout: tuple[int, int], first: int, count: int, positions: Any) -> tuple[list[Any], Any]:
    """Global batches of some steps, put together from all ranks; and where the loader then stands."""
    world, workers = layout
    ranks, stands = [], []
    for rank in range(world):
        loader = _loader(seed, rank, world, workers)
        if positions is not None:
            loader.restore(positions)
        steps = loader.steps(first)
        got = []
        for step in range(first, first + count):
            got.append(next(steps))
            loader.measures = {"right": (step * 5 % 12) / 12}  # as a validation after each step
        stands.append(loader.positions(first + count))
        steps.close()
        rows = [(name, [[list(row) for row in _rows(batch)] for batch in batches]) for name, batches in got]
        ranks.append(rows)
    merged = []
    for parts in zip(*ranks, strict=True):
        name = parts[0][0]
        micro = [_woven([batches[i] for _, batches in parts]) for i in range(len(parts[0][1]))]
        merged.append([name, micro])
    if any(stand != stands[0] for stand in stands):
        raise ValueError(f"ranks stand at {stands}")
    return merged, stands[0]


def _rows(batch: Any) -> list[list[int]]:
    """Tokens of each row, without padding."""
    return [tokens[segments > 0].tolist() for tokens, segments in zip(batch.tokens, batch.segments, strict=True)]


def _woven(parts: list[list[list[int]]]) -> list[list[int]]:
    """Rows of all ranks in their global order: rank r holds r, r + world, ..."""
    rows = [row for group in itertools.zip_longest(*parts) for row in group if row is not None]
    return [row for row in rows if row]


def prove(short: bool) -> Verdict:
    verdict = Verdict("order", "layouts and switches of layout with the same global batches")
    tars.shards(room() / "order/talk", 5, 8, more=_answer)
    tars.shards(room() / "order/tell", 3, 7, first=500, more=_answer)
    tars.shards(room() / "order/test", 2, 5, first=700, more=_answer)
    layouts = [(1, 0), (1, 2), (2, 1)] if short else LAYOUTS
    plan = {0: (5,)} if short else {0: (1, 5, 10), 1: (3,), 2: (8,)}

    def work(seed: int) -> list[str]:
        wrong, seen = [], 0
        straight, _ = _part(seed, (1, 0), 0, STEPS, None)
        for layout in layouts:
            got, _ = _part(seed, layout, 0, STEPS, None)
            seen += 1
            if got != straight:
                wrong.append(f"seed {seed}, {layout}: other batches")
        for cut in plan[seed]:
            begun = {layout: _part(seed, layout, 0, cut, None) for layout in layouts}
            for one, two in itertools.product(layouts, layouts):
                first, positions = begun[one]
                # through JSON, as a checkpoint takes it
                rest, _ = _part(seed, two, cut, STEPS - cut, json.loads(json.dumps(positions)))
                seen += 1
                if first + rest != straight:
                    wrong.append(f"seed {seed}, {one} to {two} after step {cut}: other batches")
        tokens = [json.dumps(row) for _, micro in straight for rows in micro for row in rows]
        if len(set(tokens)) < 20 or len({name for name, _ in straight}) != 3:
            wrong.append(f"seed {seed}: too little to tell batches apart")
        return [str(seen), json.dumps(straight), *wrong]

    orders = set()
    for seed in plan:
        ended = _fork.run(lambda: work(seed), seconds=600)  # noqa: B023
        if ended.value is None:
            verdict.check(False, f"seed {seed}: {ended.said[-500:]}")
            continue
        seen, straight, *wrong = ended.value
        orders.add(straight)
        verdict.total += int(seen)
        verdict.held += int(seen) - len(wrong)
        verdict.broken += wrong
    verdict.need(len(orders) == len(plan), "seeds do not change the order")
    pairs = len(layouts) ** 2
    cuts = sum(map(len, plan.values()))
    verdict.notes = [f"{len(layouts)} layouts, {pairs} switches at each of {cuts} cuts, {len(plan)} seeds"]
    return verdict


GUARDS = (
    Guard(
        "each rank has its rows",
        "mmtune.data.loader",
        "Loader._batches",
        "micro[self.rank :: self.world]",
        "micro[self.rank :]",
    ),
    Guard("the epoch is part of the place", "mmtune.data.loader", "Loader.restore", 'p["epoch"] * counts[n] + ', ""),
    Guard(
        "no sample of an epoch is prepared before it begins",
        "mmtune.data.loader",
        "Loader.until",
        "return (position // count + 1) * count",
        "return sys.maxsize",
    ),
    Guard(
        "what an order remembers is taken up",
        "mmtune.data.loader",
        "Loader.restore",
        'self._order(name).load(place["order"])',
        "pass",
    ),
    Guard("the place is taken up", "mmtune.data.loader", "Loader.restore", 'min(p["position"], counts[n])', "0"),
    Guard(
        "lengths are those of their samples", "mmtune.data.pool", "mapped", "asked.popleft()", "asked.pop()"
    ),
    Guard(
        "results come in their order", "mmtune.data.feed", "Feed.peek", "self._asked.popleft()", "self._asked.pop()"
    ),
)
