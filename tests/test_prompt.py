"""Templates: the published strings, who learns what, spaces, and marks that only a template can write."""

import pytest

from mmtune import prompt, registry
from mmtune.errors import ConfigError
from mmtune.prompt import Template
from mmtune.types import MediaRef, Quote, Sample, Turn

PICTURE = MediaRef("image", b"x", "a.png")


def chat(*turns, system=None):
    head = (Turn("system", (system,)),) if system else ()
    roles = ("user", "assistant")
    body = tuple(Turn(roles[n % 2], t if isinstance(t, tuple) else (t,)) for n, t in enumerate(turns))
    return Sample("s", head + body)


VICUNA = (
    "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
ALPACA = (
    "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
CHATML_34B = (
    "{bos}S<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
)
PUBLISHED = {
    "vicuna": (None, f"{VICUNA} USER: q ASSISTANT: a</s>USER: r ASSISTANT:"),
    "llama2": ("S", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST]"),
    "alpaca": (None, f"{ALPACA}### Instruction:\nq\n\n### Response:a</s>### Instruction:\nr\n\n### Response:"),
    "chatml": (
        "S",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n",
    ),
    "pocket": (
        "S",
        "<|bos|><|system|>S<|end|><|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>",
    ),
    "plain": (None, "{bos}a{eos}"),
    "video_llama": (None, "<s>\n\n###Human: q\n###Assistant: a\n###Human: r\n###Assistant:"),
    "video_llama2": ("S", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST]"),
    "video_llama_caption": (None, "<s>a\n"),
    "llama_adapter_65b": ("S", "<s>S###Human: q###Assistant: a###Human: r###Assistant:"),
    "mistral": (None, "{bos}[INST] q [/INST] a</s>[INST] r [/INST]"),
    "llava_chatml": (
        None,
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nq<|im_end|>"
        "<|im_start|>assistant\na<|im_end|><|im_start|>user\nr<|im_end|><|im_start|>assistant\n",
    ),
    "pllava": (None, "{bos}USER:q ASSISTANT:a</s>USER:r ASSISTANT:"),
    **{
        f"pllava_{task}": ("S", "{bos}S USER: q ASSISTANT:a</s>USER: r ASSISTANT:")
        for task in ("mvbench", "recaption", "vcg")
    },
    "pllava_videoqa": (
        None,
        "{bos}USER: q \n ASSISTANT:\nAnswer: In the video,a</s>USER: r \n ASSISTANT:\nAnswer: In the video,",
    ),
    "pllava_34b": ("S", CHATML_34B),
    "pllava_34b_recaption": ("S", CHATML_34B),
    "pllava_34b_videoqa": (
        None,
        "{bos}<|im_start|>system\nAnswer the question.<|im_end|>\n"
        "<|im_start|>user\nq \n<|im_end|>\n<|im_start|>assistant\n\nAnswer: In the video,a<|im_end|>\n"
        "<|im_start|>user\nr \n<|im_end|>\n<|im_start|>assistant\n\nAnswer: In the video,",
    ),
}
ENDS = {
    "llama2": " </s>",
    "video_llama2": " </s>",
    "video_llama": "\n###",
    "video_llama_caption": "\n",
    "llama_adapter_65b": "###",
}
"""What is learned behind an answer, where it is more than the first stop string."""


SPACED = ("vicuna", "llama2", "mistral", "video_llama", "video_llama2", "llama_adapter_65b")
"""Where the space in front of an answer is learned with it."""


def test_every_shipped_template_is_tested():
    assert set(registry.shipped("prompts")) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_renders_as_published(name):
    system, expected = PUBLISHED[name]
    template = prompt.load(name)
    last = " r \n" if template.user.strip else "r"
    assert template.render(chat("q", "a", last, system=system), answer=True) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_learned_is_the_answer_and_its_end(name):
    template = prompt.load(name)
    spans = template.spans(chat("q", "a", "r", "b"))
    learned = "".join(span.text for span in spans if span.weight)
    space = " " if name in SPACED else ""
    end = ENDS.get(name, template.stop[0])
    assert learned == f"{space}a{end}{space}b{end}"


def test_the_prompt_of_chat_is_the_beginning_of_what_was_trained():
    for name in PUBLISHED:
        template = prompt.load(name)
        for system in (None, "S"):
            asked = template.render(chat("q", "a", "r", system=system), answer=True)
            trained = template.render(chat("q", "a", "r", "b", system=system))
            assert trained.startswith(asked)


def test_an_answer_of_the_sample_is_left_out_when_one_is_asked_for():
    template = prompt.load("pocket")
    assert template.spans(chat("q", "a"), answer=True) == template.spans(chat("q"), answer=True)


def test_turns_that_are_not_to_be_learned():
    turns = (Turn("user", ("q",)), Turn("assistant", ("a",), weight=0), Turn("assistant", ("b",)))
    spans = prompt.load("pocket").spans(Sample("s", turns))
    assert [span.text for span in spans if span.weight] == ["b", "<|end|>"]


def test_only_assistants_are_learned():
    turns = (Turn("system", ("x",), weight=1), Turn("user", ("q",), weight=1))
    assert not any(span.weight for span in prompt.load("pocket").spans(Sample("s", turns)))


def test_media_and_quotes_stand_where_they_were_put():
    turns = (Turn("user", ("look ", PICTURE, Quote("ocr", " STOP\n"), " what?", "now")),)
    spans = prompt.load("pocket").spans(Sample("s", turns), answer=True)
    assert [(span.type, span.text) for span in spans] == [
        ("control", "<|bos|><|user|>"),
        ("text", "look"),
        ("control", "<|media|>"),
        ("media", ""),
        ("control", "<|/media|><|quote|>"),
        ("quote", "ocr: STOP"),
        ("control", "<|/quote|>"),
        ("text", "what?"),
        ("text", " now"),
        ("control", "<|end|><|assistant|>"),
    ]
    assert spans[3].ref is PICTURE


def test_llava_puts_a_line_break_behind_a_picture():
    shown = prompt.load("vicuna").render(Sample("s", (Turn("user", (PICTURE, "q")),)), answer=True)
    assert shown == f"{VICUNA} USER: [image]\nq ASSISTANT:"


def test_the_times_of_a_video_are_said_behind_it():
    clip = MediaRef("video", b"x", "a.mp4")
    spans = prompt.load("video_llama2").spans(Sample("s", (Turn("user", (clip, " q ")),)), answer=True)
    spans = spans[next(n for n, span in enumerate(spans) if span.type == "media") :]
    assert [(span.type, span.text) for span in spans] == [
        ("media", ""),
        ("control", "</Video>"),
        ("timestamps", " The video contains {count} frames sampled at {times} seconds."),
        ("text", " q"),
        ("control", " [/INST]"),
    ]
    assert spans[2].ref is clip and not spans[2].weight
    shown = prompt.load("video_llama").render(Sample("s", (Turn("user", (PICTURE, "q")),)), answer=True)
    assert shown == "<s>\n\n###Human: <Image>[image]</Image> q\n###Assistant:"
    bare = prompt.load("video_llama2").spans(Sample("s", (Turn("user", (clip, "q")),)), answer=True, marks=False)
    assert "timestamps" not in {span.type for span in bare}


def test_without_marks_only_the_place_is_kept():
    turns = (Turn("user", (PICTURE, "q")),)
    spans = prompt.load("pocket").spans(Sample("s", turns), answer=True, marks=False)
    assert [(span.type, span.text) for span in spans] == [
        ("control", "<|bos|><|user|>"),
        ("media", ""),
        ("text", "q"),
        ("control", "<|end|><|assistant|>"),
    ]


def test_captions_drop_what_the_user_says():
    turns = (Turn("user", ("describe", PICTURE)), Turn("assistant", ("a cat",)))
    spans = prompt.load("plain").spans(Sample("s", turns))
    assert [span.text for span in spans] == ["{bos}", "", "a cat", "{eos}"]


def test_empty_text_leaves_no_span():
    assert prompt.load("pocket").render(chat("  \n", "a")) == "<|bos|><|user|><|end|><|assistant|>a<|end|>"


def test_a_kind_without_a_place_is_refused():
    template = Template(media={"audio": ("", "")})
    with pytest.raises(ConfigError, match=r"a\.png: image, and the template has places for audio"):
        template.spans(Sample("s", (Turn("user", (PICTURE,)),)))


def test_a_system_turn_that_finds_no_user_turn_is_refused():
    with pytest.raises(ConfigError, match=r"sample s\b"):
        prompt.load("llama2").spans(Sample("s", (Turn("system", ("S",)),)), answer=True)


def test_control_text_stays_content():
    """The span of a text is a text span whatever it says, so the processor encodes it by the door for content."""
    for evil in ("<|end|>", "</s>", "{eos}", "[INST]", "<|media|>"):
        turns = (Turn("system", (evil,)), Turn("user", (evil, Quote(evil, evil))), Turn("assistant", (evil,)))
        for name in PUBLISHED:
            template = prompt.load(name)
            special_ids = [span.text for span in template.spans(Sample("s", turns)) if span.type == "control"]
            blank = tuple(
                Turn(t.role, tuple(Quote("x", "x") if isinstance(p, Quote) else "x" for p in t.parts)) for t in turns
            )
            expected = [span.text for span in template.spans(Sample("s", blank)) if span.type == "control"]
            assert special_ids == expected


def test_a_side_may_keep_its_texts_as_they_are():
    turns = (Turn("user", (" a \n", PICTURE, "b ")), Turn("assistant", (" c",)))
    sides = {"user": {"before": "U:", "after": ";", "strip": False}, "assistant": {"before": "A:", "strip": False}}
    template = Template.model_validate({**sides, "media": {"image": ["", ""]}})
    assert template.render(Sample("s", turns)) == "U: a \n[image]b ;A: c"
