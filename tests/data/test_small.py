"""Streams, ledger, packing, collating."""

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.collate import collate
from mmtune.data.ledger import Ledger, read
from mmtune.data.pack import BatchSpec, Packer
from mmtune.data.streams import Schedule
from mmtune.errors import ConfigError, DataError, Reason, ShapeError
from mmtune.types import IGNORE, Example, Slot

# ----------------------------------------------------------------------------------------------------------- streams


def test_equal_shares_alternate_and_others_are_smooth():
    even = Schedule({"a": 1, "b": 1})
    assert [even.stream(step) for step in range(6)] == ["a", "b", "a", "b", "a", "b"]
    assert sorted("".join(Schedule({"a": 3, "b": 1}).pattern)) == list("aaab")
    assert [Schedule({"a": 1}).stream(step) for step in (0, 10**12)] == ["a", "a"]


@settings(max_examples=40, deadline=None)
@given(shares=st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1), seed=st.integers(0, 10**6))
def test_shares_are_kept_at_any_step(shares, seed):
    schedule = Schedule(shares, seed)
    total, taken = sum(shares.values()), Counter()
    for step in range(400):
        taken[schedule.stream(step)] += 1
    for name, share in shares.items():
        assert abs(taken[name] / 400 - share / total) < 0.02


def test_schedule_refuses_nonsense():
    for shares in ({}, {"a": 0}, {"a": -1.0, "b": 1}, {"a": float("inf")}):
        with pytest.raises(ConfigError):
            Schedule(shares)


# ------------------------------------------------------------------------------------------------------------ ledger


def test_ledger_lines_and_counts(tmp_path):
    ledger = Ledger(tmp_path / "skipped.jsonl")
    ledger.take(5)
    ledger.skip("s/1", "s", "1", Reason.bad_text, "a \u202e line\nof two", step=3, stream="talk")
    ledger.skip("s/2", "s", "2", "bad_json", "x", step=4)
    rows = list(read(ledger.path))
    assert [row["reason"] for row in rows] == ["bad_text", "bad_json"] and rows[0]["stream"] == "talk"
    assert ledger.summary() == "bad_text 1, bad_json 1"
    with pytest.raises(ValueError):
        ledger.skip("s/3", reason="because")


def test_ledger_forgets_steps_that_come_again(tmp_path):
    path = tmp_path / "skipped.jsonl"
    ledger = Ledger(path)
    for step in range(6):
        ledger.skip(f"s/{step}", reason=Reason.bad_text, step=step)
    with path.open("a") as file:
        file.write('{"step": 2, "tor')
    again = Ledger(path)
    again.rewind(4)
    assert [row["step"] for row in read(path)] == [0, 1, 2, 3] and again.counts["bad_text"] == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_ledger_stops_dirty_data():
    ledger = Ledger(max_in_a_row=10)
    with pytest.raises(DataError, match="11 samples in a row"):
        for number in range(100):
            ledger.skip(f"s/{number}", reason=Reason.bad_text)
    ledger = Ledger(max_bad_fraction=0.25, minimum=100)
    with pytest.raises(DataError, match="samples could not be used.*bad_json"):
        for number in range(1000):
            ledger.skip(f"s/{number}", reason=Reason.bad_json)
            ledger.take(2)
    ledger = Ledger(max_bad_fraction=0.25, minimum=100)
    for number in range(1000):
        ledger.skip(f"s/{number}", reason=Reason.bad_json)
        ledger.take(4)


# ------------------------------------------------------------------------------------------------------------- pack


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60), rows=st.integers(1, 4), micro=st.integers(1, 3))
def test_packing_keeps_to_its_rows(lengths, rows, micro):
    spec = BatchSpec(rows=rows, length=64, accumulate=micro)
    packer = Packer(spec)
    taken = list(itertools.takewhile(packer.add, lengths))
    packed = packer.rows()
    assert taken and sorted(place for row in packed for place in row) == list(range(len(taken)))
    assert len(packed) <= rows * micro
    assert all(sum(lengths[place] for place in row) <= 64 for row in packed)
    assert packed == sorted(packed)


def test_packing_lays_rows_anew_when_needed():
    packer = Packer(BatchSpec(rows=2, length=10))
    # 3 3 3 share a row and 7 has the other; only 7 3 and 4 3 3 hold the 4 as well
    assert [packer.add(size) for size in (3, 3, 3, 7, 4, 1)] == [True, True, True, True, True, False]
    assert packer.rows() == [[0, 3], [1, 2, 4]]
    assert Packer(BatchSpec(rows=1, length=10)).add(11) is False


def test_without_packing_and_with_a_count():
    packer = Packer(BatchSpec(rows=3, length=10, pack=False))
    assert [packer.add(1) for _ in range(4)] == [True, True, True, False]
    assert packer.rows() == [[0], [1], [2]]
    packer = Packer(BatchSpec(rows=3, length=10, examples=2))
    assert [packer.add(1) for _ in range(3)] == [True, True, False] and packer.rows() == [[0, 1]]
    with pytest.raises(ConfigError):
        BatchSpec(rows=0, length=10)


def test_plan_refuses_an_example_that_fits_no_row():
    with pytest.raises(DataError) as caught:
        BatchSpec(rows=1, length=10).check("s/1", 11)
    assert caught.value.reason == Reason.too_long


# ---------------------------------------------------------------------------------------------------------- collate


def example(name, size, frames=()):
    tokens = torch.arange(1, size + 1)
    slots = tuple(Slot("sight", place, 1, place) for place in range(len(frames)))
    media = {"sight": [torch.full((count, 2), float(count)) for count in frames]} if frames else {}
    return Example(name, tokens, tokens + 100, slots, media)


def test_collate_by_hand():
    batch = collate([[example("a", 3, (2,)), example("b", 2)], [example("c", 4, (1, 3))]], pad=9, stream="talk")
    assert batch.tokens.tolist() == [[1, 2, 3, 1, 2, 9, 9, 9], [1, 2, 3, 4, 9, 9, 9, 9]]
    assert batch.labels.tolist() == [[101, 102, 103, 101, 102, *[IGNORE] * 3], [101, 102, 103, 104, *[IGNORE] * 4]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch.slots["sight"].tolist() == [[0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
    assert batch.frame_mask["sight"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch.media["sight"][0].tolist() == [[2, 2], [2, 2], [0, 0]]
    assert batch.ids == ("a", "b", "c") and batch.stream == "talk"


def test_slots_of_a_later_segment_are_counted_from_the_row():
    batch = collate([[example("a", 5), example("b", 3, (1,))]])
    assert batch.slots["sight"].tolist() == [[0, 2, 5, 1]]


def test_no_rows_is_one_row_of_padding():
    batch = collate([], pad=7, width=8)
    assert batch.tokens.tolist() == [[7] * 8] and not batch.segments.any() and batch.ids == ()
    assert (batch.labels == IGNORE).all() and batch.media == {}


def test_items_that_do_not_go_together_are_refused():
    odd = example("b", 3, (1,))
    odd.media["sight"][0] = torch.zeros(1, 5)
    with pytest.raises(ShapeError, match="sight"):
        collate([[example("a", 3, (1,)), odd]])
