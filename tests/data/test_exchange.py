"""Ranks that share the preparing make the steps of one rank, and each prepares about its part."""

from __future__ import annotations

import threading

import pytest
import torch

from mmtune import registry
from mmtune.data.ledger import Ledger
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.pack import BatchSpec
from tests.data import tars

LLAVA = registry.find("data/formats", "llava")


class Peers:
    """Ranks as threads."""

    def __init__(self, rank, world, room):
        self.rank, self.world, self._room = rank, world, room

    def all_gather(self, data):
        return self._swapped(data)

    def all_to_all(self, parts):
        return [row[self.rank] for row in self._swapped(parts)]

    def _swapped(self, mine):
        barrier, table = self._room
        table[self.rank] = mine
        barrier.wait()
        found = [table[rank] for rank in range(self.world)]
        barrier.wait()
        return found


def loader(folder, spec, rank=0, world=1, peers=None, workers=0):
    stream = Stream("talk", [Source((str(folder),), LLAVA(LLAVA.Config()))], tars.Letters())
    return Loader([stream], spec, seed=3, workers=workers, ledger=Ledger(), rank=rank, world=world, peers=peers)


def take(made, steps, first=0):
    """Ids of each step, its batches, and how many samples were prepared."""
    count, real = [0], made.make

    def make(name, position):
        count[0] += 1
        return real(name, position)

    made.make = make
    rows = []
    feed = made.steps(first)
    for _ in range(steps):
        _, batches = next(feed)
        rows.append((made.ids, batches))
    feed.close()
    return rows, count[0]


def together(folder, spec, world, steps, workers=0, positions=None):
    room = threading.Barrier(world), {}
    results, errors = {}, []

    def work(rank):
        try:
            made = loader(folder, spec, rank, world, Peers(rank, world, room), workers)
            if positions:
                made.restore(positions)
            rows, count = take(made, steps, positions["step"] if positions else 0)
            results[rank] = rows, count, made.positions((positions["step"] if positions else 0) + steps), made.ledger
        except BaseException as error:
            errors.append(error)
            room[0].abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(world)]


def answers(key):
    """Answers of many lengths, and some that cannot be used."""
    number = int(key)
    return {"answer": "bad" if number % 9 == 4 else "x" * (1 + number * 7 % 11)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("swap")
    for number in range(3):
        keys = [f"{number * 14 + i:06d}" for i in range(14)]
        tars.write(where / f"{number:05d}.tar", [member for key in keys for member in tars.talk(key, **answers(key))])
    return where


PLANS = [
    BatchSpec(4, 16),
    BatchSpec(3, 24, accumulate=2),
    BatchSpec(2, 40, examples=3),
    BatchSpec(4, 16, pack=False),
    BatchSpec(1, 16),
]


def items(batch):
    """Values and number of frames of the media of a batch."""
    pairs = zip(batch.media.get("sight", ()), batch.frame_mask.get("sight", ()), strict=True)
    return [(round(float(item.double().sum()), 6), int(frames.sum())) for item, frames in pairs]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("spec", PLANS, ids=str)
def test_steps_are_those_of_one_rank(folder, spec, world):
    alone, made = take(one := loader(folder, spec), 12)
    shared = together(folder, spec, world, 12)
    for rows, _, positions, ledger in shared:
        assert [ids for ids, _ in rows] == [ids for ids, _ in alone]
        assert positions == one.positions(12), "so a run may go on with another number of ranks"
        assert ledger.summary() == one.ledger.summary()
    for step, (_, whole) in enumerate(alone):
        parts = [shared[rank][0][step][1] for rank in range(world)]
        for number, batch in enumerate(whole):
            rows = len(batch.tokens)
            for rank in range(world):
                mine, part = list(range(rank, rows, world)), parts[rank][number]
                if mine:
                    assert torch.equal(part.tokens, batch.tokens[mine]) and torch.equal(part.labels, batch.labels[mine])
                    assert torch.equal(part.segments, batch.segments[mine])
                else:
                    assert not part.segments.any() and part.tokens.shape[1] == batch.tokens.shape[1]
            given = [item for part in parts for item in items(part[number])]
            assert sorted(given) == sorted(items(batch)), "each item is with the rank that has its row"
    counts = [count for _, count, _, _ in shared]
    assert max(counts) <= made / world + 2 * (spec.all_rows + world), (counts, made)
    assert sum(counts) >= made - spec.all_rows


def test_going_on_in_the_middle_with_another_number_of_ranks(folder):
    alone, _ = take(loader(folder, PLANS[0]), 10)
    first = together(folder, PLANS[0], 3, 4)
    rest = together(folder, PLANS[0], 2, 6, positions=first[0][2])
    assert [ids for ids, _ in first[0][0] + rest[1][0]] == [ids for ids, _ in alone]


def test_with_workers(folder):
    alone, _ = take(loader(folder, PLANS[0]), 6)
    rows, count, _, _ = together(folder, PLANS[0], 2, 6, workers=1)[1]
    assert [ids for ids, _ in rows] == [ids for ids, _ in alone] and count == 0, "workers do it"
