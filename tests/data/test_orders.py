"""What single orders promise beyond the contract."""

import json
import math

import numpy as np
import pytest

from mmtune import registry
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.orders.base import TOKENS, Samples
from mmtune.data.pack import BatchSpec, Packer
from mmtune.errors import ConfigError
from tests.data import tars

LLAVA = registry.find("data/formats", "llava")


def made(name, **options):
    cls = registry.find("data/orders", name)
    return cls(cls.Config(name=name, **options))


def drawn(n, lengths, row=64):
    hashes = np.random.default_rng(1).integers(0, 2**64, n, dtype=np.uint64)
    return Samples(hashes, {TOKENS: np.asarray(lengths, dtype=np.float64)}, row)


def filled(lengths, spec):
    """How full the steps are that take samples of these lengths."""
    packer, fill = Packer(spec), []
    for length in lengths:
        if not packer.add(int(length)):
            fill.append(sum(packer.lengths) / (spec.all_rows * spec.length))
            packer = Packer(spec)
            packer.add(int(length))
    return sum(fill) / len(fill)


def test_rows_are_fuller_than_at_random():
    """Lengths as those of text: many short ones, few that take most of a row."""
    lengths = np.clip(np.random.default_rng(0).lognormal(3.0, 0.7, 1500), 4, 64).astype(int)
    samples, spec = drawn(1500, lengths), BatchSpec(rows=2, length=64)
    orders = (made(name).sorted(samples, 0, 0) for name in ("shuffle", "length_grouped"))
    random, grouped = (filled(lengths[order], spec) for order in orders)
    assert grouped > 0.97 > 0.92 > random, (random, grouped)


def test_rows_come_at_random_and_what_cannot_be_used_stands_among_them():
    """A run of unusable samples would stop training."""
    lengths = np.random.default_rng(0).integers(4, 40, 1200).astype(float)
    lengths[:200] = np.nan
    order, samples = made("length_grouped"), drawn(1200, lengths)
    found = order.sorted(samples, 0, 0)
    gone = np.flatnonzero(found < 200)
    assert len(gone) == 200 and np.diff(gone).max() < 100, "they stand in one place"
    assert np.abs(np.nanmean(lengths[found[:400]]) - np.nanmean(lengths[found[-400:]])) < 3, "short ones come last"
    assert not np.array_equal(found, order.sorted(samples, 0, 1))


def test_without_a_row_it_is_as_long_as_the_longest_sample():
    lengths = [30, 10, 20, 25, 5]
    found = [lengths[i] for i in made("length_grouped").sorted(drawn(5, lengths, row=None), 0, 0)]
    rows = [[30], [25, 5], [20, 10]]
    assert any(found == [*a, *b, *c] for a in rows for b in rows for c in rows if len({id(a), id(b), id(c)}) == 3)


def test_what_the_model_is_able_for_comes_first():
    order = made("item_response", measure="qa/exact_match")
    difficulty = np.array([-2.0, 3.0, 1.0, np.nan, -1.0, 2.0])
    samples = Samples(np.arange(6, dtype=np.uint64), {"difficulty": difficulty})
    first = order.sorted(samples, 0, 0).tolist()
    assert sorted(first[:3]) == [0, 3, 4] and first[3:] == [2, 5, 1]
    order.begin_epoch(1, {"qa/exact_match": 0.8, "loss": 2.0})
    assert order.state() == {"ability": pytest.approx(math.log(4))}
    second = order.sorted(samples, 0, 1).tolist()
    assert sorted(second[:4]) == [0, 2, 3, 4] and second[4:] == [5, 1]
    order.begin_epoch(2, {"qa/exact_match": 1.0})
    assert sorted(order.sorted(samples, 0, 2).tolist()) == [*range(6)] and order.state()["ability"] > 6
    order.begin_epoch(3, {})
    assert order.state()["ability"] > 6, "without a validation it stays"
    with pytest.raises(ConfigError, match="'qa/exact_match'.*\n.*one of loss"):
        order.begin_epoch(4, {"loss": 1.0})


@pytest.mark.parametrize("workers", [0, 2])
def test_state_moves_between_epochs_and_is_taken_up(tmp_path, workers):
    """A measure that changes in the middle of an epoch changes nothing before the next one."""
    tars.shards(tmp_path / "talk", 2, 8, more=lambda key: {"difficulty": int(key) % 8 - 4})

    def loader():
        source = Source((tmp_path / "talk",), LLAVA(LLAVA.Config()))
        stream = Stream("talk", [source], tars.Letters(), order=made("item_response", measure="right"))
        return Loader([stream], BatchSpec(rows=1, length=4, pack=False), workers=workers)

    def take(feed, first, count):
        steps, got = feed.steps(first), []
        for step in range(first, first + count):
            next(steps)
            got += feed.ids
            feed.measures = {"right": 0.02 if step < 20 else 0.98}
        steps.close()
        return got

    straight = take(loader(), 0, 48)
    easy = [[int(name.rpartition("/")[2]) % 8 - 4 for name in straight[start : start + 16]] for start in (0, 16, 32)]
    assert all(sorted(row) == sorted([*range(-4, 4)] * 2) for row in easy)
    assert max(easy[0][:10]) == 0, "ability 0"
    assert easy[1] == sorted(easy[1]), "able for next to nothing, although the measure rose within the epoch"
    assert easy[2] != sorted(easy[2]) and max(easy[2][:12]) == 3, "able for all"
    for cut in (10, 16, 27, 40):
        begun = loader()
        head = take(begun, 0, cut)
        again = loader()
        again.restore(json.loads(json.dumps(begun.positions(cut))))
        assert head + take(again, cut, 48 - cut) == straight, cut
