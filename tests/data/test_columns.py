"""Numbers that an order sorts by: read once, kept beside the index, the same for everybody."""

import json
import math

import numpy as np
import pytest

from mmtune import registry
from mmtune.data import columns
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.orders.base import TOKENS, Order, OrderConfig
from mmtune.data.pack import BatchSpec
from mmtune.data.shards import Corpus
from mmtune.errors import ConfigError
from tests.data import tars

LLAVA = registry.find("data/formats", "llava")


class By(Order):
    """Small numbers first."""

    whole = True
    path = "meta.difficulty"

    @property
    def columns(self):
        return (self.path,)

    def keys(self, samples, seed, epoch):
        return (samples.columns[self.path],)


class Short(By):
    path = TOKENS


class Wrong(By):
    path = "meta.dificulty"


def facts(key):
    """A difficulty that is not in the order of the shards; none for every seventh; an answer of its own length."""
    number = int(key)
    said = "bad" if number == 9 else "x" * (1 + number * 5 % 17)
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": said}]
    return {"conversations": turns, **({} if number % 7 == 3 else {"meta": {"difficulty": number * 11 % 24}})}


@pytest.fixture
def folder(tmp_path):
    tars.shards(tmp_path / "talk", 3, 8, more=facts)
    return tmp_path / "talk"


def stream(folder, order=By, **options):
    source = Source((folder,), LLAVA(LLAVA.Config()))
    return Stream("talk", [source], tars.Letters(), order=order(OrderConfig(name="mine")), **options)


def numbers(one, seed=0, epoch=0):
    """Numbers of the samples of an epoch in their order."""
    corpus = one.corpus
    return [int(corpus.id(corpus.order(seed, epoch, p)).rpartition("/")[2]) for p in range(len(corpus))]


def test_a_column_of_the_records_is_what_samples_are_sorted_by(folder):
    said = []
    found = numbers(stream(folder, say=said.append))
    known = sorted((n for n in range(24) if n % 7 != 3), key=lambda n: n * 11 % 24)
    assert found[: len(known)] == known
    assert sorted(found[len(known) :]) == [3, 10, 17]
    (warned,) = [line for line in said if "3 of 24 samples have no meta.difficulty" in line]
    assert "last" not in warned, "an order may put them first, as item_response does"
    assert sum("reading meta.difficulty" in line for line in said) == 1


def test_lengths_are_those_of_the_examples(folder):
    one = stream(folder, Short)
    lengths = [len(one.processor.example(one.sample(one.corpus.order(0, 0, p)))) for p in range(23)]
    assert lengths == sorted(lengths)
    assert numbers(one)[-1] == 9, "what cannot be used has no length"


def test_a_table_is_read_once_and_kept_beside_the_index(folder, monkeypatch):
    first = numbers(stream(folder))
    table = json.loads((folder / "00001.tar.columns.json").read_text())
    assert table["columns"]["meta.difficulty"][:3] == [8 * 11 % 24, 9 * 11 % 24, None]
    monkeypatch.setattr(Corpus, "read", lambda *_: pytest.fail("a sample was read again"))
    assert numbers(stream(folder)) == first


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, workers):
    assert numbers(stream(folder, Short, workers=workers, write=False)) == numbers(stream(folder, Short, write=False))
    assert not list(folder.glob("*.columns.json")), "nothing is written where nothing is to be written"


def test_what_was_measured_with_something_else_is_measured_again(folder):
    stream(folder, Short, made_by="one")
    table = folder / "00000.tar.columns.json"
    tree = json.loads(table.read_text())
    tree["columns"]["tokens one"] = [float(n) for n in range(8)]
    table.write_text(json.dumps(tree))
    assert stream(folder, Short, made_by="one").corpus.columns[TOKENS][0].tolist() == [*range(8)]
    assert stream(folder, Short, made_by="two").corpus.columns[TOKENS][0].tolist() != [*range(8)]
    assert {*json.loads(table.read_text())["columns"]} == {"tokens one", "tokens two"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: {**tree, "sha256": "0" * 64},
        lambda tree: {**tree, "columns": {"meta.difficulty": [1.0]}},
        lambda tree: {**tree, "columns": {"meta.difficulty": ["1"] * 8}},
        lambda tree: {**tree, "columns": {"meta.difficulty": [math.inf] * 8}},
        lambda tree: {**tree, "version": 2},
        lambda tree: [],
    ],
    ids=["another shard", "too few", "texts", "endless", "another version", "no object"],
)
def test_a_table_that_does_not_fit_is_made_again(folder, spoil):
    first = numbers(stream(folder))
    table = folder / "00000.tar.columns.json"
    good = table.read_text()
    table.write_text(json.dumps(spoil(json.loads(good))))
    assert numbers(stream(folder)) == first
    assert json.loads(table.read_text()) == json.loads(good)


def test_a_shard_that_is_cut_for_now_leaves_no_table(folder):
    """Its lost samples may be back another day, with their numbers."""
    whole = numbers(stream(folder, write=False))
    Corpus(folder)  # lays indexes
    path = folder / "00002.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert sorted(numbers(stream(folder))) == [*range(24)]
    assert not (folder / "00002.tar.columns.json").exists() and (folder / "00000.tar.columns.json").exists()
    path.write_bytes(data)
    assert numbers(stream(folder)) == whole


def test_a_column_that_nobody_has_is_an_error(folder):
    with pytest.raises(ConfigError, match=r"stream talk.*'meta.dificulty'.*24 samples"):
        stream(folder, Wrong)


@pytest.mark.parametrize("value", ["3", True, None, [1], {"a": 1}, math.nan, 10**400])
def test_what_is_no_number_is_none(tmp_path, value):
    tars.shards(tmp_path, 1, 2, more=lambda key: {"rank": value if key.endswith("1") else 2})
    corpus = Corpus(tmp_path)
    columns.fill(corpus, {"rank": columns.number_at(corpus, "rank")})
    assert np.array_equal(corpus.columns["rank"][0], [2, np.nan], equal_nan=True)


def test_numbers_are_part_of_the_data(folder):
    """A run goes on only with the numbers that it began with."""
    before = stream(folder).corpus.fingerprint()
    assert before == stream(folder).corpus.fingerprint()
    assert before != Corpus(folder).fingerprint()
    table = folder / "00000.tar.columns.json"
    tree = json.loads(table.read_text())
    tree["columns"]["meta.difficulty"][0] = 99.0
    table.write_text(json.dumps(tree))
    assert stream(folder).corpus.fingerprint() != before


def test_ranks_and_resume_see_the_same_order(folder):
    def loader(**options):
        return Loader([stream(folder)], BatchSpec(rows=2, length=24), **options)

    def take(loader, first, count):
        steps = loader.steps(first)
        got = [next(steps) and loader.ids for _ in range(count)]
        steps.close()
        return got

    straight = take(loader(), 0, 9)
    assert take(loader(rank=1, world=2), 0, 9) == straight
    begun = loader(workers=2)
    head = take(begun, 0, 4)
    again = loader(workers=1)
    again.restore(json.loads(json.dumps(begun.positions(4))))
    assert head + take(again, 4, 5) == straight
