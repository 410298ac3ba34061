"""Several conversations in a sample: tokens, labels, media once, rows, parts of a batch, and what the model makes."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmtune import media
from mmtune.collate import collate
from mmtune.data import _serialize
from mmtune.errors import DataError, Reason, ShapeError
from mmtune.fusion import tokens as fusion_tokens
from mmtune.fusion.added_prompts import Config as AddedConfig
from mmtune.llm.hf import Config as HFConfig
from mmtune.model import build
from mmtune.processor import Processor
from mmtune.prompt import Template
from mmtune.training.split_batch import singles, split_batch
from mmtune.types import IGNORE, Example, Sample, Slot, Turn
from tests import toys
from tests.llm import tiny
from tests.test_model import TEMPLATE
from tests.toys import MARKS, WORDS, clip, picture


@pytest.fixture(autouse=True)
def _loading(monkeypatch):
    monkeypatch.setattr(media, "load", toys.fake_load, raising=False)


def pair(*parts, name="p", good="red", bad="blue cat"):
    asked = Turn("user", parts)
    return Sample(name, (asked, Turn("assistant", (good,))), "s", ((asked, Turn("assistant", (bad,))),))


def toy(**more):
    return Processor({"sight": toys.Pair()}, toys.Words(), toys.TEMPLATE, **more)


def ids(text):
    return [IGNORE if word == "." else (MARKS + WORDS).index(word) for word in text.split()]


# -------------------------------------------------------------------------------------------------------- the example


def test_conversations_stand_behind_each_other_and_share_a_picture():
    example = toy().example(pair(picture(), "what"))
    first = "<b> <u> <m> <pad> <pad> </m> what </s> <a> red </s>"
    assert example.tokens.tolist() == ids(f"{first} <b> <u> <m> <pad> <pad> </m> what </s> <a> blue cat </s>")
    assert example.labels.tolist() == ids(". . . . . . . . red </s> . . . . . . . . . blue cat </s> .")
    assert example.sequences == (11, 12)
    assert example.slots == (Slot("sight", 3, 2, 0), Slot("sight", 14, 2, 0))
    assert len(example.media["sight"]) == 1


def test_a_sample_without_alternatives_has_no_sequences():
    example = toy().example(replace(pair(picture(), "what"), alternatives=()))
    assert example.sequences == () and len(example) == 11


def test_media_of_one_conversation_alone_are_kept_beside_shared_ones():
    shared, own = picture(), picture((0, 255, 0), "c.png")
    turns = tuple((Turn("user", parts), Turn("assistant", ("red",))) for parts in ((shared,), (own, shared)))
    sample = Sample("p", turns[0], "", turns[1:])
    assert sample.media == (shared, own)
    example = toy().example(sample)
    assert [slot.item for slot in example.slots] == [0, 1, 0] and len(example.media["sight"]) == 2


def test_a_picture_shown_twice_in_a_conversation_is_two_items_as_ever():
    twice = picture()
    turns = (Turn("user", (twice, twice)), Turn("assistant", ("red",)))
    alone = toy().example(Sample("p", turns))
    assert [slot.item for slot in alone.slots] == [0, 1] and len(alone.media["sight"]) == 2
    both = toy().example(Sample("p", turns, "", (turns,)))
    assert [slot.item for slot in both.slots] == [0, 1, 0, 1] and len(both.media["sight"]) == 2


def test_an_open_answer_is_of_the_first_conversation():
    example = toy().example(pair(picture(), "what"), answer=True)
    assert example.tokens.tolist() == ids("<b> <u> <m> <pad> <pad> </m> what </s> <a>") and not example.sequences


def test_the_first_token_of_a_later_conversation_is_not_said_by_the_one_before():
    template = Template(assistant={"after": "</s>"}, stop=("</s>",))
    processor = Processor({}, toys.Words(), template)
    sample = Sample("p", (Turn("assistant", ("red",)),), "", ((Turn("assistant", ("blue cat",)),),))
    example = processor.example(sample)
    assert example.tokens.tolist() == ids("red </s> blue cat </s>")
    assert example.labels.tolist() == ids("</s> . cat </s> .")


@pytest.mark.parametrize("rule", ["drop", "turns", "cut"])
def test_what_is_compared_is_not_shortened(rule):
    more = (Turn("user", ("and",)), Turn("assistant", ("a cat",)))
    one = pair("what")
    sample = replace(one, turns=one.turns + more, alternatives=(one.turns + more,))
    assert toy(length=100, too_long=rule).example(sample)
    with pytest.raises(DataError) as caught:
        toy(length=20, too_long=rule).example(sample)
    assert caught.value.reason == Reason.too_long


def test_each_conversation_has_something_to_learn():
    one = pair("what")
    silent = tuple(replace(turn, weight=0.0) for turn in one.turns)
    for sample in (replace(one, alternatives=(silent,)), replace(one, turns=silent, alternatives=(one.turns,))):
        with pytest.raises(DataError) as caught:
            toy().example(sample)
        assert caught.value.reason == Reason.empty_target


def test_lengths_of_sequences_add_up():
    tokens = torch.arange(5)
    with pytest.raises(ShapeError):
        Example("x", tokens, tokens, sequences=(2, 2))
    with pytest.raises(ShapeError):
        Sample("x", (Turn("user", ("a",)),), "", ((),))


def test_there_and_back_as_bytes():
    example = toy().example(pair(picture(), "what"))
    back = _serialize.unpack(*_serialize.load(_serialize.dump(*_serialize.pack(example))))
    assert back.sequences == (11, 12) and back.slots == example.slots and len(back.media["sight"]) == 1


# ---------------------------------------------------------------------------------------------------------- the batch


def rows():
    """A pair with a picture and a text in the first row; two pairs, one with a clip, in the second."""
    text = Sample("t", (Turn("user", ("now",)), Turn("assistant", ("stop",))))
    samples = ((pair(picture(), "what", name="a"), text), (pair("is", name="b"), pair(clip(), name="c")))
    return [[toy().example(sample) for sample in row] for row in samples]


def test_a_pair_is_two_segments_of_a_row():
    batch = collate(rows())
    assert batch.ids == ("a", "t", "b", "c")
    assert batch.samples.tolist() == [[0, 1, 2], [0, 3, 1], [1, 1, 2], [1, 3, 2]]
    assert batch.segments.amax(1).tolist() == [3, 4]
    starts = [(batch.segments[0] == segment).nonzero()[0, 0].item() for segment in (1, 2, 3)]
    assert starts == [0, 11, 23] and all(batch.positions[0, start] == 0 for start in starts)
    assert batch.slots["sight"].tolist() == [[0, 1, 3, 2], [0, 2, 14, 2], [1, 3, 18, 4], [1, 4, 30, 4]]
    assert batch.items["sight"].tolist() == [0, 0, 1, 1] and len(batch.media["sight"]) == 2
    assert batch.to("cpu").items["sight"] is batch.items["sight"]


def test_a_batch_of_plain_samples_shares_nothing():
    plain = collate([[toy().example(replace(pair(picture(), "what"), alternatives=()))]])
    assert plain.items == {} and plain.samples.tolist() == [[0, 1, 1]]


def test_samples_alone_have_all_their_segments():
    a, t, b, c = singles(collate(rows()))
    assert [one.ids for one in (a, t, b, c)] == [("a",), ("t",), ("b",), ("c",)]
    assert [one.samples.tolist() for one in (a, t, b, c)] == [[[0, 1, count]] for count in (2, 1, 2, 2)]
    for one, example in zip((a, t, b, c), itertools.chain(*rows()), strict=True):
        own = collate([[example]], multiple=1)
        assert all(torch.equal(getattr(one, key), getattr(own, key)) for key in ("tokens", "labels", "positions"))
        assert torch.equal(one.segments, own.segments) and one.slots.keys() == own.slots.keys()
        for branch, slots in own.slots.items():
            assert torch.equal(one.slots[branch], slots) and torch.equal(one.items[branch], own.items[branch])
            assert torch.equal(one.media[branch][:, : own.media[branch].shape[1]], own.media[branch])


def test_rows_keep_their_pairs():
    first, second = split_batch(collate(rows()), 2)
    assert (first.ids, second.ids) == (("a", "t"), ("b", "c"))
    assert first.samples.tolist() == [[0, 1, 2], [0, 3, 1]] and second.samples.tolist() == [[0, 1, 2], [0, 3, 2]]
    assert second.items["sight"].tolist() == [0, 0] and len(second.media["sight"]) == 1
    assert second.slots["sight"].tolist() == [[0, 3, 18, 4], [0, 4, 30, 4]]


# ---------------------------------------------------------------------------------------------------------- the model


@pytest.fixture(scope="module", params=["tokens", "added_prompts"])
def model(request, tmp_path_factory):
    folder = tiny.folder(tmp_path_factory.mktemp("llm"))
    sight = SimpleNamespace(
        encoder=toys.ColourConfig(name="tests.toys:Colours"), connector=toys.FlatConfig(name="tests.toys:Flat"),
        kinds=None,
    )  # fmt: skip
    fusion = fusion_tokens.Config() if request.param == "tokens" else AddedConfig(length=2)
    made = build(SimpleNamespace(branches={"sight": sight}, llm=HFConfig(folder=str(folder)), fusion=fusion, tuners=[]))
    for gate in made.fusion.prompts.gates.values() if request.param == "added_prompts" else ():
        torch.nn.init.constant_(gate.weight, 0.7)
    return made


def test_each_conversation_is_read_as_if_alone_and_a_shared_picture_is_encoded_once(model, monkeypatch):
    template, placeholders = Template.model_validate(TEMPLATE), model.fusion.uses_placeholders
    processor = Processor(model.branches, model.llm.tokenizer, template, uses_placeholders=placeholders)
    samples = [pair(picture((250, 9, 9)), "what is this", name="a"), pair(picture((0, 9, 200)), "how many", name="b")]
    seen = []
    encoder = model.branches["sight"].encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x, frames: seen.append(len(x)) or forward(x, frames))
    with torch.no_grad():
        batch = collate([[processor.example(sample) for sample in samples]])
        together = model(batch)
        assert seen == [2]
        for segment, turns in enumerate([turns for sample in samples for turns in sample.conversations], start=1):
            alone = collate([[processor.example(Sample("one", turns))]], multiple=1)
            torch.testing.assert_close(together[batch.segments == segment], model(alone)[0], rtol=1e-4, atol=1e-5)
