"""Preferences between two answers in the spellings that are about: read from shards, and converted into them."""

import json

import pytest

from mmtune import registry
from mmtune.data.formats.base import Record
from mmtune.errors import DataError, Reason
from mmtune.types import MediaRef
from tests.data import sources, tars

PREFERENCE = registry.find("data/formats", "preference")
ASKED = {"role": "user", "content": "What?"}
GOOD, BAD = {"role": "assistant", "content": "A cat."}, {"role": "assistant", "content": "Two dogs."}
SHOWN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
HUMAN = {"from": "human", "value": "<image>\nWhat?"}

SPELLINGS = {
    "TRL": {"prompt": "What?", "chosen": "A cat.", "rejected": "Two dogs."},
    "TRL, messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit prompt": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "TRL, picture": {"images": ["a/1.png"], "prompt": [SHOWN], "chosen": [GOOD], "rejected": [BAD]},
    "UltraFeedback": {"prompt": "What?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": 8.0},
    "RLAIF-V": {"image": "a/1.png", "question": "What?", "chosen": "A cat.", "rejected": "Two dogs.", "idx": 3},
    "LLaVA-RLHF": {
        "id": "1", "image": "a/1.png", "conversations": [HUMAN], "output_1": {"from": "llava", "value": "Two dogs."},
        "output_2": {"from": "llava", "value": "A cat."}, "preference": 2, "hallucination": True,
    },
    "LLaMA-Factory": {
        "images": ["a/1.png"], "conversations": [HUMAN], "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "Two dogs."},
    },
    "LLaMA-Factory, alpaca": {"instruction": "What?", "input": "", "chosen": "A cat.", "rejected": "Two dogs."},
    "ms-swift": {"images": ["a/1.png"], "messages": [SHOWN, GOOD], "rejected_response": "Two dogs."},
    "ms-swift, messages": {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]},
    "POVID": {
        "image": "a/1.png", "conversations": [HUMAN, {"from": "gpt", "value": "A cat."}],
        "rejected_conversations": [HUMAN, {"from": "gpt", "value": "Two dogs."}],
    },
    "PKU-SafeRLHF": {"prompt": "What?", "response_0": "A cat.", "response_1": "Two dogs.", "better_response_id": 0},
    "hh-rlhf": {
        "chosen": "\n\nHuman: What?\n\nAssistant: A cat.", "rejected": "\n\nHuman: What?\n\nAssistant: Two dogs.",
    },
    "OpenAI": {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
}  # fmt: skip


def record(facts, **members):
    return Record("shard/0007", {"json": json.dumps(facts).encode(), **members}, "0007")


def said(turns):
    return [(turn.role, turn.text.strip(), turn.weight) for turn in turns]


def read(facts, **members):
    return PREFERENCE(PREFERENCE.Config()).read(record(facts, **members))


QUESTION = ("user", "What?", 1.0)


def is_the_pair(sample, pictures):
    """The question once, without loss, and the answers behind it."""
    (other,) = sample.alternatives
    assert [(role, text) for role, text, _ in said(sample.turns)] == [("user", "What?"), ("assistant", "A cat.")]
    assert said(other)[1:] == [("assistant", "Two dogs.", 1.0)] and other[0] is sample.turns[0]
    assert [ref.kind for ref in sample.media] == ["image"] * pictures


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_in_a_shard(name):
    pictures = "a/1.png" in json.dumps(SPELLINGS[name])
    is_the_pair(read(SPELLINGS[name], **({"png": b"a picture"} if pictures else {})), pictures)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_are_converted_as_they_are_recognised(tmp_path, name):
    facts = SPELLINGS[name]
    media = sources.folder(tmp_path / "media")
    report, refused = sources.said([facts], tmp_path, media=[media])
    assert (report.format, report.written, refused) == ("preference", 1, [])
    (sample,) = sources.samples(tmp_path / "out", "preference")
    pictures = "a/1.png" in json.dumps(facts)
    is_the_pair(sample, pictures)
    assert not pictures or sample.media[0].read() == tars.PNG


def test_turns_that_a_table_holds_as_text_and_the_text_of_rlhf_v(tmp_path):
    rows = [
        {"prompt": json.dumps([ASKED]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
        {"image": "a/1.png", "text": json.dumps(SPELLINGS["TRL"] | {"question": "What?"}), "origin": "x"},
        {"prompt": "What?", "chosen": '[{"x": 1}]', "rejected": "[]x"},
    ]
    report, _ = sources.said(rows, tmp_path, media=[sources.folder(tmp_path / "media")])
    first, second, third = sources.samples(tmp_path / "out", "preference")
    is_the_pair(first, 0)
    is_the_pair(second, 1)
    assert third.turns[1].text == '[{"x": 1}]' and report.written == 3


def test_what_both_answers_have_before_is_one_and_carries_no_loss():
    past = [ASKED, {"role": "assistant", "content": "A pet."}, {"role": "user", "content": "Which?"}]
    sample = read({"chosen": [*past, GOOD], "rejected": [*past, BAD], "system": "Be short."})
    assert said(sample.turns) == [
        ("system", "Be short.", 0.0), ("user", "What?", 0.0), ("assistant", "A pet.", 0.0), ("user", "Which?", 0.0),
        ("assistant", "A cat.", 1.0),
    ]  # fmt: skip
    assert sample.alternatives[0][:4] == sample.turns[:4] and sample.alternatives[0][4].text == "Two dogs."
    with_history = read({"question": "Which?", "history": [["What?", "A pet."]], "chosen": "A cat.", "rejected": "No."})
    assert [turn.text for turn in with_history.turns] == ["What?", "A pet.", "Which?", "A cat."]


def test_what_else_a_record_notes_of_a_turn_makes_no_difference():
    asked = [{**ASKED, "id": number} for number in range(2)]
    is_the_pair(read({"chosen": [asked[0], GOOD], "rejected": [asked[1], BAD]}), 0)


def test_both_answers_show_the_same_picture_object():
    sample = read(SPELLINGS["RLAIF-V"], png=b"a picture")
    one, other = (turns[0].parts[0] for turns in sample.conversations)
    assert isinstance(one, MediaRef) and one is other


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"question": "What?", "chosen": "A cat."}, Reason.missing_key),
        ({"question": "What?", "chosen": "A cat.", "rejected": None}, Reason.missing_key),
        ({"question": "What?", "chosen": "A cat.", "rejected": ""}, Reason.missing_key),
        ({"chosen": "A cat.", "rejected": "Two dogs."}, Reason.missing_key),
        ({"chosen": [GOOD], "rejected": [BAD]}, Reason.missing_key),
        ({"question": "What?", "chosen": "A cat.", "rejected": "A cat."}, Reason.empty_target),
        ({"question": "What?", "chosen": "A cat.\n", "rejected": " A cat."}, Reason.empty_target),
        ({"chosen": [ASKED, {**GOOD, "score": 8}], "rejected": [ASKED, {**GOOD, "score": 3}]}, Reason.empty_target),
        ({"question": "What?", "chosen": "A cat.", "rejected": " "}, Reason.empty_target),
        ({**SPELLINGS["LLaVA-RLHF"], "image": None, "preference": 0}, Reason.empty_target),
        ({**SPELLINGS["PKU-SafeRLHF"], "better_response_id": True}, Reason.empty_target),
        ({"question": "What?", "chosen": 3, "rejected": "B"}, Reason.bad_json),
        ({"question": 3, "chosen": "A", "rejected": "B"}, Reason.bad_json),
        ({"question": "What?", "chosen": ["A"], "rejected": ["B"]}, Reason.bad_json),
        ({"question": "What?", "history": ["A"], "chosen": "A", "rejected": "B"}, Reason.bad_json),
        ({"question": "<image>\nWhat?", "chosen": "A", "rejected": "B"}, Reason.placeholder_mismatch),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD, SHOWN, GOOD]}, Reason.placeholder_mismatch),
        ({**SPELLINGS["TRL"], "rejected_images": ["b.png"]}, Reason.unused_field),
        ({**SPELLINGS["TRL"], "label": False}, Reason.unused_field),
        ({**SPELLINGS["TRL"], "loss_weight": -1}, Reason.bad_weight),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "A cat."}]}, Reason.missing_key),
    ],
)
def test_what_is_no_pair_is_refused_by_name(facts, reason):
    with pytest.raises(DataError) as caught:
        read(facts)
    assert caught.value.reason is reason and "shard/0007" in caught.value.seen


def test_the_format_of_conversations_says_which_format_reads_pairs():
    llava = registry.find("data/formats", "llava")
    facts = {"messages": [ASKED, GOOD], "rejected_response": "Two dogs."}
    with pytest.raises(DataError, match="format: preference"):
        llava(llava.Config()).read(record(facts))


def test_fields_that_are_ignored_make_no_pair(tmp_path):
    rows = [{"messages": [ASKED, GOOD], "rejected_response": "Two dogs."}]
    report, refused = sources.said(rows, tmp_path, ignore=("rejected_response",))
    assert (report.format, report.written, refused) == ("llava", 1, [])
