"""Checks of data formats: conversations out of good records; others are skipped by name and end nothing."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.data.formats.base import Format, FormatConfig, Record
from mmtune.errors import DataError
from mmtune.testing._records import Case, case, spoilt
from mmtune.types import Sample


def make(cls: type[Format], settings: FormatConfig, records: Sequence[Record] = ()) -> Case:
    """A format with records that it can read."""
    return case(cls(settings), records)


def good_records_are_read(given: Case) -> None:
    """Each is a conversation in which somebody answers; its id is that of the record, and it is the same each time."""
    for record in given.records:
        sample = given.entry.read(record)
        assert isinstance(sample, Sample), f"{record.id}: {type(sample).__name__}"
        assert sample.id == record.id, f"the record {record.id} becomes a sample called {sample.id}"
        assert any(turn.role == "assistant" and turn.text.strip() for turn in sample.turns), f"{record.id}: no answer"
        again = given.entry.read(record)
        assert repr(again.turns) == repr(sample.turns), f"{record.id}: another conversation the second time"


def records_that_miss_something_are_skipped_by_name(given: Case) -> None:
    """Whatever is left out or odd, a record is read or refused with a reason and its id; a member that is not there is
    missed where the format needs it."""
    refused = 0
    for what, record in spoilt(given.records):
        try:
            given.entry.read(record)
        except DataError as error:
            refused += 1
            assert record.id in error.seen, f"{what}: the error does not name {record.id}: {error.seen}"
    assert refused, "whatever was missing, every record was read"


CHECKS = (good_records_are_read, records_that_miss_something_are_skipped_by_name)
