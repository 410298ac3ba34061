from __future__ import annotations

import json

import pytest

from mmtune.data.formats.base import Record
from mmtune.errors import DataError, Reason
from mmtune.eval.tasks.pocket_qa import PocketQA

ENTRY = {"type": "order", "temporal": True, "question": "which first?", "answer": "the circle"}
ENTRY["alternatives"] = ["circle"]


def record(files=None, **entry):
    body = json.dumps({"questions": [ENTRY, {**ENTRY, "temporal": False, **entry}]}).encode()
    return Record("shard/0001", {"mp4": b"film", "json": body, **(files or {})})


def task(**config):
    return PocketQA(PocketQA.Config(**config))


def test_questions_of_one_clip():
    first, second = task().questions([record(question="what colour?", answer="red")])
    assert (first.id, second.id) == ("shard/0001#0", "shard/0001#1")
    assert (first.type, first.temporal, second.temporal) == ("order", True, False)
    assert first.answers == ("the circle", "circle")
    (turn,) = first.sample.turns
    medium, text = turn.parts
    assert (medium.kind, medium.read(), text) == ("video", b"film", "which first?")
    assert medium is second.sample.turns[0].parts[0], "one reference, so that the clip is encoded once"
    assert len(list(task(per_clip=1).questions([record()]))) == 1


@pytest.mark.parametrize(
    ("facts", "kind", "content"),
    [
        ({"image": "0001.jpg"}, "image", b"still"),
        ({"video": "0001.mp4"}, "video", b"film"),
        ({"image": "pictures/0001.end.jpg"}, "image", b"last"),
        ({"image": "renamed since.png"}, "image", b"last"),
        ({}, "video", b"film"),
    ],
)
def test_the_record_says_what_it_is_about(facts, kind, content):
    files = {"mp4": b"film", "jpg": b"still", "end.jpg": b"last", "json": json.dumps({**facts, "questions": [ENTRY]})}
    (question,) = task().questions([Record("shard/0001", {**files, "json": files["json"].encode()})])
    medium = question.sample.turns[0].parts[0]
    assert (medium.kind, medium.read()) == (kind, content)


def test_what_a_record_names_must_be_there():
    body = json.dumps({"image": "0001.jpg", "questions": [ENTRY]}).encode()
    with pytest.raises(DataError, match="has the members json, mp4") as caught:
        list(task().questions([Record("shard/0001", {"mp4": b"film", "json": body})]))
    assert caught.value.reason == Reason.missing_key


def test_score():
    (question, _) = task().questions([record()])
    good = {"the circle", "The circle.", " circle "}
    assert {a: task().score(question, a)["accuracy"] for a in [*good, "square", ""]} == {
        **dict.fromkeys(good, 1.0),
        "square": 0.0,
        "": 0.0,
    }


def test_refusals():
    with pytest.raises(DataError) as caught:
        list(task().questions([Record("r", {"json": b'{"questions": []}'})]))
    assert caught.value.reason == Reason.missing_key
    for body in (b"{", b"{}", b'{"questions": [{"type": "a"}]}', b'{"questions": 3}', b"[" * 100_000):
        with pytest.raises(DataError) as caught:
            list(task().questions([record({"json": body})]))
        assert caught.value.reason == Reason.bad_json
    with pytest.raises(DataError, match="shard/0001"):
        list(task().questions([record(answer=3)]))
