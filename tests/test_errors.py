"""Errors say three things, and survive the way from a worker to the main process."""

from __future__ import annotations

import pickle

import pytest

from mmtune import errors
from mmtune.errors import DataError, MediaError, MmtuneError, Reason

KINDS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, MmtuneError) and not value.__name__.startswith("_")
]


def test_a_message_has_up_to_three_lines() -> None:
    assert str(MmtuneError("two", "one", "less")) == "two\nexpected: one\ntry: less"
    assert str(MmtuneError("two")) == "two"
    assert str(MmtuneError("two", hint="less")) == "two\ntry: less"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_pickles(kind: type[MmtuneError]) -> None:
    reasoned = issubclass(kind, (MediaError, DataError))
    error = kind(Reason.too_long, "a", "b", "c") if reasoned else kind("a", "b", "c")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.seen, again.expected, again.hint) == (str(error), "a", "b", "c")
    if reasoned:
        assert again.reason is Reason.too_long


def test_a_reason_outside_the_list_is_refused() -> None:
    assert DataError("bad_json", "x").reason is Reason.bad_json  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bad_weather"):
        DataError("bad_weather", "x")  # type: ignore[arg-type]


def test_every_reason_is_its_own_name() -> None:
    assert [reason.value for reason in Reason] == list(Reason.__members__)
