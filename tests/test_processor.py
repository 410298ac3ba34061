"""Exact tokens, labels and slots, written out by hand; the rules for what is too long; what is refused."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune import media, prompt
from mmtune.errors import ConfigError, DataError, UsageError
from mmtune.llm._tokenizer import FastTokenizer
from mmtune.processor import Processor
from mmtune.prompt import Template
from mmtune.types import IGNORE, Quote, Sample, Turn
from tests import toys
from tests.llm import tiny
from tests.toys import MARKS, WORDS, clip, picture


@pytest.fixture(autouse=True)
def _loading(monkeypatch):
    monkeypatch.setattr(media, "load", toys.fake_load, raising=False)


def processor(**more):
    given = {"branches": {"sight": toys.Pair()}, "tokenizer": toys.Words(), "template": toys.TEMPLATE, **more}
    return Processor(**given)


def ids(text):
    return [(MARKS + WORDS).index(word) for word in text.split()]


def labels(text):
    return [IGNORE if word == "." else (MARKS + WORDS).index(word) for word in text.split()]


TWO_TURNS = Sample(
    "two",
    (
        Turn("user", (picture(), "what is this")),
        Turn("assistant", ("a red cat",)),
        Turn("user", ("and", clip(), Quote("ocr", "stop"), "now")),
        Turn("assistant", ("blue",)),
    ),
    stream="s",
)


def test_two_turns_written_out():
    example = processor().example(TWO_TURNS)
    assert example.tokens.tolist() == ids(
        "<b> <u> <m> <pad> <pad> </m> what is this </s> <a> a red cat </s> "
        "<u> and <m> <pad> <pad> <pad> <pad> </m> <q> ocr: stop </q> now </s> <a> blue </s>"
    )
    assert example.labels.tolist() == labels(
        ". . . . . . . . . . a red cat </s> . . . . . . . . . . . . . . . blue </s> ."
    )
    assert [(slot.branch, slot.start, slot.length, slot.item) for slot in example.slots] == [
        ("sight", 3, 2, 0),
        ("sight", 18, 4, 1),
    ]
    assert [tuple(item.shape) for item in example.media["sight"]] == [(1, 2, 3), (2, 2, 3)]
    assert torch.equal(example.media["sight"][0][0, 0], torch.tensor([1.0, 0, 0]))
    assert (example.id, example.stream) == ("two", "s")


def test_every_label_is_the_next_token():
    example = processor().example(TWO_TURNS)
    for place, label in enumerate(example.labels.tolist()):
        assert label in (IGNORE, example.tokens.tolist()[place + 1] if place + 1 < len(example) else IGNORE)


def test_open_answer_written_out():
    example = processor().example(TWO_TURNS, answer=True)
    assert example.tokens.tolist() == ids(
        "<b> <u> <m> <pad> <pad> </m> what is this </s> <a> a red cat </s> "
        "<u> and <m> <pad> <pad> <pad> <pad> </m> <q> ocr: stop </q> now </s> <a>"
    )
    assert example.labels.tolist() == [IGNORE] * len(example)
    assert example.tokens.tolist() == processor().example(TWO_TURNS).tokens.tolist()[: len(example)]


def test_system_turn_and_a_turn_that_is_not_learned():
    turns = (
        Turn("system", ("be brief",)),
        Turn("user", ("what",)),
        Turn("assistant", ("a cat",), weight=0),
        Turn("user", ("and now",)),
        Turn("assistant", ("red",)),
    )
    example = processor().example(Sample("s", turns))
    assert example.tokens.tolist() == ids(
        "<b> <y> be brief </s> <u> what </s> <a> a cat </s> <u> and now </s> <a> red </s>"
    )
    assert example.labels.tolist() == labels(". . . . . . . . . . . . . . . . red </s> .")


def test_the_last_label_of_an_answer_is_a_stop():
    one = processor()
    learned = [label for label in one.example(TWO_TURNS).labels.tolist() if label != IGNORE]
    assert learned[-1] in one.stops and one.stops == {4}


def test_fusions_without_places_leave_no_trace_in_the_text():
    example = processor(uses_placeholders=False).example(TWO_TURNS)
    assert example.tokens.tolist() == ids(
        "<b> <u> what is this </s> <a> a red cat </s> <u> and <q> ocr: stop </q> now </s> <a> blue </s>"
    )
    assert [(slot.start, slot.length, slot.item) for slot in example.slots] == [(2, 0, 0), (13, 0, 1)]
    assert len(example.media["sight"]) == 2


# -------------------------------------------------------------------------------------------------------- too long


def exchanges(n, system=False):
    head = (Turn("system", ("be",)),) if system else ()
    turns = [
        (Turn("user", (*((picture(),) if i == 0 else ()), WORDS[i])), Turn("assistant", ("cat",))) for i in range(n)
    ]
    return Sample("long", head + tuple(turn for pair in turns for turn in pair))


def test_drop_refuses_and_says_how_long():
    with pytest.raises(DataError, match="long: 17 tokens") as caught:
        processor(length=16).example(exchanges(2))
    assert caught.value.reason == "too_long"
    assert len(processor(length=17).example(exchanges(2))) == 17


def test_error_stops_the_run():
    with pytest.raises(UsageError, match="17 tokens"):
        processor(length=16, too_long="error").example(exchanges(2))


def test_turns_leaves_out_the_last_exchanges_in_training():
    example = processor(length=17, too_long="turns").example(exchanges(4))
    assert torch.equal(example.tokens, processor().example(exchanges(2)).tokens)
    assert example.labels.tolist().count(4) == 2  # every answer that is left has its end


def test_turns_leaves_out_the_oldest_exchanges_in_chat_and_keeps_the_system():
    example = processor(length=10, too_long="turns").example(exchanges(4, system=True), answer=True)
    assert example.tokens.tolist() == ids("<b> <y> be </s> <u> red </s> <a>")
    assert not example.slots and not example.media


def test_turns_refuses_what_one_exchange_cannot_hold():
    with pytest.raises(DataError, match="long: 23 tokens") as caught:
        processor(length=9, too_long="turns").example(exchanges(3))
    assert caught.value.reason == "too_long"


def test_an_item_is_decoded_once_however_often_the_sample_is_shortened(monkeypatch):
    calls = []
    monkeypatch.setattr(media, "load", lambda *a: calls.append(a) or toys.fake_load(*a))
    processor(length=11, too_long="turns").example(exchanges(4))
    assert len(calls) == 1


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", ("what",)),),
        (Turn("user", ("what",)), Turn("assistant", ("a",), weight=0)),
    ],
)
def test_nothing_to_learn_is_refused(turns):
    with pytest.raises(DataError) as caught:
        processor().example(Sample("s", turns))
    assert caught.value.reason == "empty_target"


def test_two_branches_for_a_kind_are_refused():
    with pytest.raises(ConfigError, match="sight.*eye.*image"):
        processor(branches={"sight": toys.Pair(), "eye": toys.Pair()})
    processor(branches={"sight": toys.Pair(kinds=("image",)), "eye": toys.Pair(kinds=("video",))})


def test_branches_are_told_apart_by_kind():
    one = processor(branches={"sight": toys.Pair(kinds=("image",)), "motion": toys.Pair(kinds=("video",))})
    example = one.example(TWO_TURNS)
    assert [(slot.branch, slot.item) for slot in example.slots] == [("sight", 0), ("motion", 0)]


def test_a_kind_that_nobody_takes_is_refused():
    with pytest.raises(UsageError, match="audio"):
        processor().branch("audio")
    ref = clip(kind="audio")
    with pytest.raises(DataError, match=f"{ref.origin} is audio, and no branch") as caught:  # one sample, not the run
        processor().example(Sample("s", (Turn("user", (ref,)),)), answer=True)
    assert caught.value.reason == "wrong_media_type"


def test_a_template_of_another_tokenizer_is_refused():
    tokenizer = FastTokenizer(tiny.byte_bpe().to_str(), eos="<|end|>")
    with pytest.raises(ConfigError, match="'</s>', which is 5 tokens of plain text"):
        Processor({}, tokenizer, Template(stop=("</s>",)))
    with pytest.raises(ConfigError, match=r"<\|im_start\|>"):
        Processor({}, tokenizer, Template(tokens=("<|im_start|>",)))


# -------------------------------------------------------------------------------------------------- stored features


class Store:
    def __init__(self, found):
        self.found, self.asked = found, []

    def get(self, branch, ref):
        self.asked.append((branch, ref.origin))
        return self.found.get(ref.origin)


def test_stored_features_stand_in_for_media(monkeypatch):
    store = Store({"a.png": torch.ones(1, 2, 3), "b.mp4": torch.ones(3, 2, 3)})
    monkeypatch.setattr(media, "load", None)  # would fail if called
    example = processor(features=store).example(TWO_TURNS)
    assert store.asked == [("sight", "a.png"), ("sight", "b.mp4")]
    assert [slot.length for slot in example.slots] == [2, 6]
    assert example.media["sight"][1] is store.found["b.mp4"]


def test_a_branch_that_is_not_stored_is_decoded():
    example = processor(features=Store({})).example(TWO_TURNS)
    assert torch.equal(example.media["sight"][0], processor().example(TWO_TURNS).media["sight"][0])


def test_pickles():
    one = processor()
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.example(TWO_TURNS).tokens, one.example(TWO_TURNS).tokens)


# -------------------------------------------------------------------------- content never becomes structure, joined


REAL = {
    "byte": FastTokenizer(tiny.byte_bpe(plain=("<image>",)).to_str(), "<|bos|>", "<|end|>", "<|pad|>"),
    "llama": FastTokenizer(tiny.llama_bpe(plain=("<image>",)).to_str(), "<s>", "</s>"),
}
SHAPES = {
    "byte": Template.model_validate(
        {
            "begin": "<|bos|>",
            "system": {"before": "<|system|>", "after": "<|end|>"},
            "user": {"before": "<|user|>", "after": "<|end|>"},
            "assistant": {"before": "<|assistant|>", "after": "<|end|>"},
            "stop": ["<|end|>"],
            "quote": ["<|quote|>", "<|/quote|>"],
        }
    ),
    "llama": Template.model_validate(
        {
            "begin": "<s>",
            "user": {"before": "USER: ", "after": " "},
            "assistant": {"before": "ASSISTANT: ", "after": "</s>"},
            "system": {"after": " "},
            "stop": ["</s>"],
        }
    ),
}


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_control_token_of_a_prompt_was_written_by_the_template(name, data):
    tokenizer, template = REAL[name], SHAPES[name]
    one = Processor({}, tokenizer, template)
    marks = [*tokenizer.marks(), "{bos}", "{eos}", "USER:", "<s", "/s>", "<|", "|>"]
    text = st.lists(st.one_of(st.sampled_from(marks), st.text(max_size=3), st.just(" ")), max_size=5).map("".join)

    def conversation(draw):
        turns = (
            Turn("system", (draw(),)),
            Turn("user", (draw(), Quote(draw(), draw()), draw())),
            Turn("assistant", (draw(),)),
            Turn("user", (draw(),)),
            Turn("assistant", (draw(),)),
        )
        return one.example(Sample("s", turns)).tokens.tolist()

    evil = conversation(lambda: data.draw(text))
    plain = conversation(lambda: "a")
    assert [i for i in evil if i in tokenizer.special_ids] == [i for i in plain if i in tokenizer.special_ids]


@pytest.mark.parametrize("name", REAL)
def test_joined_spans_equal_the_whole_string_as_the_tokenizer_reads_it(name):
    from tokenizers import Tokenizer

    tokenizer, template = REAL[name], SHAPES[name]
    turns = (
        Turn("system", ("A red thing",)),
        Turn("user", ("what is this",)),
        Turn("assistant", ("a circle",)),
        Turn("user", ("how many",)),
        Turn("assistant", ("two",)),
    )
    sample = Sample("s", turns)
    whole = Tokenizer.from_str(tokenizer._text).encode(template.render(sample), add_special_tokens=False).ids
    assert Processor({}, tokenizer, template).example(sample).tokens.tolist() == whole


def test_times_of_frames_are_told_as_they_are_shown(monkeypatch):
    """The whole prompt of a video, as one string, gives the same ids."""
    monkeypatch.setattr(media, "frame_times", lambda ref, sampling, limits: [0.0, 1.25], raising=False)
    tokenizer = FastTokenizer(tiny.llama_bpe().to_str(), "<s>", "</s>")
    turns = (Turn("system", ("S",)), Turn("user", (clip(), "what moves")))
    one = processor(tokenizer=tokenizer, template=prompt.load("video_llama2"))
    example = one.example(Sample("s", turns), answer=True)
    (slot,) = example.slots
    ahead, behind = example.tokens[: slot.start].tolist(), example.tokens[slot.start + slot.length :].tolist()
    assert ahead == tokenizer.encode_special("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n<Video>")
    said = "</Video> The video contains 2 frames sampled at 0.0, 1.2 seconds. what moves [/INST]"
    assert behind == tokenizer.encode(said, "start")


def test_an_answer_may_end_in_plain_text():
    """The end of a template that has no mark of its own is a row of ids, as it is spelled alone and behind text."""
    tokenizer = FastTokenizer(tiny.llama_bpe().to_str(), "<s>", "</s>")
    one = processor(tokenizer=tokenizer, template=prompt.load("video_llama"))
    alone, behind = (tuple(tokenizer.encode("###", after)) for after in ("start", "text"))
    assert one.stops == {tokenizer.eos, alone, behind} and alone != behind
    example = one.example(Sample("s", (Turn("user", ("what",)), Turn("assistant", ("a",)))))
    learned = [label for label in example.labels.tolist() if label != IGNORE]
    assert learned == tokenizer.encode(" a\n###", "text") and tuple(learned[-len(behind) :]) == behind


def test_too_long_is_cut_where_that_is_the_rule():
    """As published for LLaMA-Adapter: the end goes, its mark with it; never a slot, and not in chat."""
    cut = processor(length=13, too_long="cut")
    example, whole = cut.example(TWO_TURNS), processor().example(TWO_TURNS)
    assert example.tokens.tolist() == whole.tokens[:13].tolist()
    assert example.labels.tolist() == labels(". . . . . . . . . . a red .")  # what was cut off is not to be said
    assert len(example.slots) == len(example.media["sight"]) == 1
    with pytest.raises(DataError, match="two: 10 tokens"):
        processor(length=10, too_long="cut").example(TWO_TURNS)
    with pytest.raises(DataError, match="at most 4"):
        processor(length=4, too_long="cut").example(TWO_TURNS)  # would go through the picture's places
    with pytest.raises(DataError, match="at most 13"):
        cut.example(Sample("s", (Turn("user", ("is " * 20,)),)), answer=True)


def test_an_all_zero_picture_where_a_conversation_has_none():
    class BlackImage(toys.Pair):
        def black_image(self):
            return torch.zeros(1, 2, 3)

    one = processor(branches={"sight": BlackImage()}, uses_placeholders=False, default_image_branch="sight")
    text = one.example(Sample("s", (Turn("user", ("what",)), Turn("assistant", ("a",)))))
    assert [(slot.branch, slot.length, slot.item) for slot in text.slots] == [("sight", 0, 0)]
    assert torch.equal(text.media["sight"][0], torch.zeros(1, 2, 3))
    shown = one.example(Sample("s", (Turn("user", (picture(), "what")), Turn("assistant", ("a",)))))
    assert len(shown.slots) == 1 and shown.media["sight"][0].any()
    for wrong in ({"uses_placeholders": True}, {"default_image_branch": "sound"}):
        with pytest.raises(ConfigError, match="'(sight|sound)'"):
            processor(**{"uses_placeholders": False, "default_image_branch": "sight", **wrong})
