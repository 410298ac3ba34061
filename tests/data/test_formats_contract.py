"""Every format keeps the contract; a newcomer is tested by being there, and by records that it can read."""

import json

import pytest

from mmtune import registry, testing
from mmtune.data.formats.base import Format, FormatConfig, Record
from mmtune.errors import DataError, Reason
from mmtune.types import Sample, Turn


def record(facts, **members):
    return Record("shard/0007", {"json": json.dumps(facts).encode(), **members}, "0007")


TALK = [{"from": "human", "value": "<image> what is this"}, {"from": "gpt", "value": "a dog"}]
PARTS = [{"type": "image"}, {"type": "text", "text": "what is this"}]
TURNS = [{"role": "user", "content": PARTS}]
RECORDS = {
    "llava": [
        record({"image": "0007.jpg", "conversations": TALK}, jpg=b"a picture"),
        record({"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "a"}]}, jpg=b"p"),
    ],
    "alpaca": [record({"instruction": "count", "input": "to two", "output": "one two", "history": [["a", "b"]]})],
    "caption": [
        record({"caption": "a dog", "status": "success"}, jpg=b"a picture"),
        Record("shard/0008", {"txt": b"a cat", "mp4": b"a film"}, "0008"),
    ],
    "preference": [
        record({"image": "0007.jpg", "question": "what", "chosen": "a dog", "rejected": "a cat"}, jpg=b"a picture"),
        record({"messages": [*TURNS, {"role": "assistant", "content": "a"}], "rejected_response": "b"}, jpg=b"p"),
    ],
}
"""Records that a format reads."""


@pytest.mark.parametrize("check", testing.checks("data/formats"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("data/formats"))
def test_contract(name, check):
    assert name in RECORDS, f"format {name}: add records that it reads"
    check(testing.make("data/formats", name, records=RECORDS[name]))


class Careless(Format):
    """Takes for granted what a record may not have."""

    def sample(self, record):
        facts = json.loads(record.files["json"])
        turns = Turn("user", (facts["q"].strip(),)), Turn("assistant", (facts["a"][0],))
        return Sample(record.id, turns)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, Reason.missing_key),
        ({"json": b"{"}, Reason.bad_json),
        ({"json": b"[]"}, Reason.bad_json),
        ({"json": b'{"q": "x"}'}, Reason.missing_key),
        ({"json": b'{"q": 3, "a": ["y"]}'}, Reason.bad_json),
        ({"json": b'{"q": "x", "a": []}'}, Reason.bad_json),
        ({"json": b"[" * 100_000}, Reason.bad_json),
    ],
)
def test_what_a_format_stumbles_over_is_a_skipped_record(files, reason):
    """A format that checks nothing ends no run: the base class names the record."""
    careless = Careless(FormatConfig(name="mine"))
    assert careless.read(Record("s/1", {"json": b'{"q": "x", "a": ["y"]}'})).turns[1].text == "y"
    with pytest.raises(DataError) as caught:
        careless.read(Record("s/1", files))
    assert caught.value.reason is reason and caught.value.seen.startswith("s/1: ")
