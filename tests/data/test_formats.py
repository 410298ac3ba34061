import json

import pytest

from mmtune import registry
from mmtune.data.formats.base import Record
from mmtune.errors import DataError, Reason
from mmtune.types import MediaRef

JPG, MP4, WAV = b"\xff\xd8\xffjpg", b"\x00\x00\x00\x18ftypmp42", b"RIFF....WAVE"


def make(name, **options):
    entry = registry.find("data/formats", name)
    return entry(entry.Config(**options))


def record(facts=None, draw=0, **files):
    files = {name.replace("_", "."): content for name, content in files.items()}
    if facts is not None:
        files["json"] = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return Record("s/0001", files, "0001", draw)


def refused(spelled, one):
    with pytest.raises(DataError) as caught:
        spelled.sample(one)
    assert "s/0001" in caught.value.seen
    return caught.value.reason


def shown(sample):
    """Turns as role and parts; media as kind and end of their origin."""
    return [
        (turn.role, *(f"{p.kind}:{p.origin[7:]}" if isinstance(p, MediaRef) else p for p in turn.parts))
        for turn in sample.turns
    ]


def talk(human, gpt="yes", **more):
    return {"conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}], **more}


UNREAD = {
    "nan": b'"score": NaN',
    "infinity": b'"a": -Infinity',
    "huge float": b'"a": 1e999',
    "long int": b'"a": ' + b"9" * 5000,
    "long negative int": b'"a": [-' + b"9" * 5000 + b"]",
    "surrogate": b'"a": "\\ud800"',
}


class TestCaption:
    def test_img2dataset(self):
        one = record({"key": "0001", "status": "success", "caption": "a dog"}, jpg=JPG, txt=b"a dog")
        assert shown(make("caption").sample(one)) == [("user", "image:jpg"), ("assistant", "a dog")]

    def test_video2dataset_with_prompt_and_text_member_only(self):
        one = record(mp4=MP4, txt=b"a dog runs\n")
        sample = make("caption", prompts=("Say what happens.",)).sample(one)
        assert shown(sample) == [("user", "video:mp4", "Say what happens."), ("assistant", "a dog runs")]

    def test_only_the_asked_kind_is_used(self):
        one = record(mp4=MP4, wav=WAV, txt=b"a dog")
        assert shown(make("caption", kind="video").sample(one))[0] == ("user", "video:mp4")
        assert shown(make("caption", kind="audio").sample(one))[0] == ("user", "audio:wav")
        assert shown(make("caption", kind="audio").sample(record(mp4=MP4, txt=b"x")))[0] == ("user", "audio:mp4")
        assert refused(make("caption"), one) == Reason.missing_key
        assert refused(make("caption", kind="image"), one) == Reason.missing_key

    def test_the_medium_that_the_record_names(self):
        one = record({"caption": "a dog", "image": "0001.jpg"}, jpg=JPG, mp4=MP4, wav=WAV)
        assert shown(make("caption").sample(one))[0] == ("user", "image:jpg")
        assert shown(make("caption", kind="video").sample(one))[0] == ("user", "video:mp4")

    def test_phrasings_are_drawn(self):
        facts = {"caption": ["one", "two", "three"]}
        said = [shown(make("caption").sample(record(facts, draw=d, jpg=JPG)))[1][1] for d in range(6)]
        assert set(said) == {"one", "two", "three"} and said[:3] == said[3:]
        first = [shown(make("caption", choice="first").sample(record(facts, draw=d, jpg=JPG)))[1][1] for d in range(6)]
        assert set(first) == {"one"}

    @pytest.mark.parametrize("more", UNREAD.values(), ids=UNREAD.keys())
    def test_what_nobody_reads_is_not_checked(self, more):
        one = record(b'{"caption": "a dog", "status": "success", ' + more + b"}", jpg=JPG, txt=b"a dog")
        assert shown(make("caption").sample(one)) == [("user", "image:jpg"), ("assistant", "a dog")]

    def test_a_caption_that_a_table_left_out(self):
        one = record(b'{"caption": NaN, "status": NaN, "image": NaN, "video": NaN}', jpg=JPG, txt=b"a dog")
        assert shown(make("caption").sample(one)) == [("user", "image:jpg"), ("assistant", "a dog")]
        assert refused(make("caption"), record(b'{"caption": Infinity}', jpg=JPG)) == Reason.bad_json

    def test_other_field(self):
        one = record({"captions": ["a"], "caption": "b"}, jpg=JPG)
        assert shown(make("caption", field="captions").sample(one))[1] == ("assistant", "a")

    @pytest.mark.parametrize(
        ("one", "reason"),
        [
            (record({"status": "failed_to_download", "caption": "x", "error_message": "404"}), Reason.download_failed),
            (record({"status": "success", "caption": "x"}), Reason.missing_key),
            (record(jpg=JPG), Reason.missing_key),
            (record({}, jpg=JPG), Reason.missing_key),
            (record(jpg=JPG, txt=b""), Reason.empty_target),
            (record(jpg=JPG, txt=b" \n\t"), Reason.empty_target),
            (record({"caption": ["", ""]}, jpg=JPG), Reason.empty_target),
            (record({"caption": []}, jpg=JPG), Reason.bad_json),
            (record({"caption": 5}, jpg=JPG), Reason.bad_json),
            (record(jpg=JPG, txt=b"caf\xe9"), Reason.bad_text),
            (record(jpg=JPG, txt=b"a\x00b"), Reason.bad_text),
            (record(jpg=JPG, txt=b"\xff\xfea\x00"), Reason.bad_text),
            (record(jpg=JPG, txt=b"\xed\xa0\x80"), Reason.bad_text),
            (record(jpg=JPG, txt=b"x" * 10_000_000), Reason.bad_text),
            (record(b'{"caption": "\\ud800"}', jpg=JPG), Reason.bad_text),
        ],
    )
    def test_refusals(self, one, reason):
        assert refused(make("caption"), one) == reason

    def test_text_is_kept_as_it_is(self):
        said = "\u202ea <image> \u00e9 </s> \U0001f600"
        one = record(jpg=JPG, txt=b"\xef\xbb\xbf" + said.encode())
        assert shown(make("caption").sample(one))[1] == ("assistant", said)


BAD_JSON = {
    "twice": b'{"a": 1, "a": 2}',
    "twice inside": b'{"b": [{"a": 1, "a": 2}]}',
    "depth": b"[" * 100_000 + b"]" * 100_000,
    "depth 70": b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
    "cut": b'{"a": ',
    "list": b"[]",
    "empty": b"",
    "two": b"{} {}",
}


class TestLlava:
    @pytest.mark.parametrize("raw", BAD_JSON.values(), ids=BAD_JSON.keys())
    def test_strict_json(self, raw):
        # behind a good conversation, so that nothing but the fault itself can be the reason
        good = json.dumps(talk("Hi", "Hello")).encode()
        mixed = good[:-1] + b", " + raw[1:] if raw.startswith(b"{") and raw.endswith(b"}") and raw != b"{} {}" else raw
        make("llava").sample(record(good))
        assert refused(make("llava"), record(mixed)) == Reason.bad_json

    @pytest.mark.parametrize("more", UNREAD.values(), ids=UNREAD.keys())
    def test_what_nobody_reads_is_not_checked(self, more):
        one = record(json.dumps(talk("Hi", "Hello")).encode()[:-1] + b", " + more + b"}")
        assert shown(make("llava").sample(one)) == [("user", "Hi"), ("assistant", "Hello")]

    def test_media_that_a_table_left_out(self):
        facts = json.dumps(talk("<image> What?", image="0001.jpg")).encode()[:-1] + b', "video": NaN, "audio": null}'
        assert shown(make("llava").sample(record(facts, jpg=JPG)))[0] == ("user", "image:jpg", " What?")

    def test_many_brackets_in_text_are_no_depth(self):
        make("llava").sample(record(talk("[" * 500, "{" * 500)))

    def test_plain(self):
        one = record(talk("<image>\nWhat is it?", image="coco/0001.jpg"), jpg=JPG)
        assert shown(make("llava").sample(one)) == [("user", "image:jpg", "\nWhat is it?"), ("assistant", "yes")]

    def test_places_in_the_middle_and_in_later_turns(self):
        turns = [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare <image> with <image>."},
            {"from": "gpt", "value": "Same."},
            {"from": "human", "value": "And <video>?"},
            {"from": "gpt", "value": "No.", "loss": False},
        ]
        facts = {"conversations": turns, "images": ["b/71.jpg", "b/70.jpg"], "video": "x.mp4"}
        one = record(facts, **{"0_jpg": JPG, "1_jpg": JPG}, mp4=MP4)
        sample = make("llava").sample(one)
        # names of another folder and key mean nothing, so files are taken in their order
        assert shown(sample)[1] == ("user", "Compare ", "image:0.jpg", " with ", "image:1.jpg", ".")
        assert shown(sample)[3] == ("user", "And ", "video:mp4", "?")
        assert [turn.weight for turn in sample.turns] == [1, 1, 1, 1, 0]

    def test_files_by_name(self):
        one = record(talk("<image><image>", images=["0001.1.jpg", "a/0001.0.jpg"]), **{"0_jpg": JPG, "1_jpg": JPG})
        assert shown(make("llava").sample(one))[0] == ("user", "image:1.jpg", "image:0.jpg")

    def test_media_without_a_place_come_first(self):
        one = record(talk("What?", image="0001.jpg"), jpg=JPG)
        assert shown(make("llava").sample(one))[0] == ("user", "image:jpg", "What?")

    def test_only_named_media_are_used(self):
        one = record(talk("<image> What?", image="0001.jpg"), jpg=JPG, mp4=MP4, wav=WAV)
        assert shown(make("llava").sample(one))[0] == ("user", "image:jpg", " What?")

    def test_unnamed_media_are_those_with_places(self):
        one = record(talk("<audio> What?"), jpg=JPG, wav=WAV)
        assert shown(make("llava").sample(one))[0] == ("user", "audio:wav", " What?")

    def test_sound_of_a_video(self):
        one = record(talk("<audio> What?", audio="0001.mp4"), mp4=MP4)
        assert shown(make("llava").sample(one))[0] == ("user", "audio:mp4", " What?")

    def test_messages_with_parts(self):
        content = [
            {"type": "text", "text": "Look: "},
            {"type": "image_url", "image_url": {"url": "0001.jpg"}},
            {"type": "video"},
            {"type": "text", "text": "?"},
        ]
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ]
        one = record({"messages": messages, "videos": ["0001.mp4"]}, jpg=JPG, mp4=MP4)
        assert shown(make("llava").sample(one)) == [
            ("system", "Be brief."), ("user", "Look: ", "image:jpg", "video:mp4", "?"), ("assistant", "Yes."),
        ]

    def test_text_alone(self):
        assert shown(make("llava").sample(record(talk("Hi", "Hello")))) == [("user", "Hi"), ("assistant", "Hello")]

    def test_answers_never_hold_places(self):
        one = record(talk("<image> Say the word.", "The word is <image> <video>.", image="0001.jpg"), jpg=JPG)
        assert shown(make("llava").sample(one))[1] == ("assistant", "The word is <image> <video>.")

    @pytest.mark.parametrize(
        ("one", "reason"),
        [
            (record(talk("<image><image>", image="0001.jpg"), jpg=JPG), Reason.placeholder_mismatch),
            (record(talk("<image>", image=["0001.jpg", "0001.1.jpg"]), jpg=JPG, **{"1_jpg": JPG}),
             Reason.placeholder_mismatch),
            (record(talk("<image>\nWhat is it?")), Reason.placeholder_mismatch),
            (record(talk("What is it?\n<image>")), Reason.placeholder_mismatch),
            (record(talk("<video>", image="0001.jpg"), jpg=JPG), Reason.placeholder_mismatch),
            (record(talk("<image>", image="0001.jpg")), Reason.missing_key),
            (record(talk("<image>", image="0001.jpg"), mp4=MP4), Reason.missing_key),
            (record(jpg=JPG), Reason.missing_key),
            (record({}), Reason.bad_json),
            (record({"conversations": []}), Reason.bad_json),
            (record({"conversations": ["hi"]}), Reason.bad_json),
            (record({"conversations": [{"from": "robot", "value": "x"}]}), Reason.bad_json),
            (record({"conversations": [{"from": ["human"], "value": "x"}]}), Reason.bad_json),
            (record(talk(5)), Reason.bad_json),
            (record(talk("x", None)), Reason.bad_json),
            (record(talk("x", image=5), jpg=JPG), Reason.bad_json),
            (record(talk("x", " \n")), Reason.empty_target),
            (record({"conversations": [{"from": "human", "value": "x"}]}), Reason.empty_target),
            (record(b'{"conversations": [{"from": "human", "value": "\\udc80"}]}'), Reason.bad_text),
            (record(talk("a\x07")), Reason.bad_text),
            (record(talk("x" * 300_000)), Reason.bad_text),
            (record(b'{"a": "\xff"}'), Reason.bad_text),
            (record(talk("x", status="failed_to_download")), Reason.download_failed),
        ],
    )
    def test_refusals(self, one, reason):
        assert refused(make("llava"), one) == reason

    def test_kinds_can_be_limited(self):
        one = record(talk("<image>", image="0001.jpg"), jpg=JPG)
        assert refused(make("llava", kinds=("video",)), one) == Reason.wrong_media_type


    def test_a_video_in_the_place_of_a_picture(self):
        """As LLaVA-NeXT and LLaVA-Video write it: named or not, one or several, as a video or as a picture."""
        for more in ({"video": "a/0001.mp4"}, {"videos": ["0001.mp4"]}, {}, {"image": "0001.mp4"}):
            one = record(talk("<image>\nWhat happens?", **more), mp4=MP4)
            assert shown(make("llava").sample(one))[0] == ("user", "video:mp4", "\nWhat happens?"), more
        two = record(talk("<image> or <image>?", video=["0001.0.mp4", "0001.1.mp4"]), **{"0_mp4": MP4, "1_mp4": MP4})
        assert shown(make("llava").sample(two))[0] == ("user", "video:0.mp4", " or ", "video:1.mp4", "?")
        parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
        one = record({"messages": turns, "video": "0001.mp4"}, mp4=MP4)
        assert shown(make("llava").sample(one))[0] == ("user", "video:mp4", "What?")

    @pytest.mark.parametrize(
        ("ask", "more"),
        [
            ("<image><image>", {"video": "0001.mp4"}),
            ("<image> <video>", {"video": "0001.mp4"}),
            ("<video>\nWhat?", {"image": "0001.jpg"}),
            ("<image>\n<image>", {"image": "0001.jpg", "video": "0001.mp4"}),
        ],
    )
    def test_places_that_cannot_be_told(self, ask, more):
        assert refused(make("llava"), record(talk(ask, **more), jpg=JPG, mp4=MP4)) == Reason.placeholder_mismatch

    @pytest.mark.parametrize(
        "said",
        [
            "How do I use the <video> tag in HTML?",
            "What is an <image> tag?",
            "<video> tags in HTML5: which browsers know them?",
            "Mend this:\n<video>\n<source src='a.mp4'>\n</video>",
            "<audio></audio> is blank, why?",
            "Is <point> or <points> right, and <audio>?",
        ],
    )
    def test_a_tag_in_a_text_without_media_is_text(self, said):
        assert shown(make("llava").sample(record(talk(said)))) == [("user", said), ("assistant", "yes")]
        shot = record(talk(f"<image>\n{said}", image="0001.jpg"), jpg=JPG)
        if "<image>" not in said:
            found = shown(make("llava").sample(shot))[0]
            assert found == ("user", "image:jpg", f"\n{said}")

    def test_a_picture_beside_a_tag_is_shown(self):
        one = record(talk("How do I use the <video> tag?"), jpg=JPG)
        assert shown(make("llava").sample(one))[0] == ("user", "image:jpg", "How do I use the <video> tag?")

    @pytest.mark.parametrize(
        "word",
        [
            "<ImageHere>", "<Img><ImageHere></Img>", "<image_placeholder>", "<IMG_CONTEXT>", "<Image>", "<|image|>",
            "<|vision_start|><|image_pad|><|vision_end|>", "<image_1>", "<|image_1|>", "<image 1>", "<image_0>",
        ],
    )  # fmt: skip
    def test_words_of_other_tools_for_a_place(self, word):
        """The picture stands in their place; without a picture they are text."""
        one = make("llava").sample(record(talk(f"What is {word} here?", image="0001.jpg"), jpg=JPG))
        before, picture, after = one.turns[0].parts
        assert (before, picture.kind, after) == ("What is ", "image", " here?")
        assert make("llava").sample(record(talk(f"What is {word} here?"))).turns[0].parts == (f"What is {word} here?",)

    def test_words_of_other_tools_by_kind_number_and_count(self):
        film = record(talk("<Video><ImageHere></Video> q", video="0001.mp4"), mp4=MP4)
        assert [getattr(part, "kind", part) for part in make("llava").sample(film).turns[0].parts] == ["video", " q"]
        sound = record(talk("q <|audio_bos|><|AUDIO|><|audio_eos|>", audio="0001.wav"), wav=WAV)
        assert [getattr(part, "kind", part) for part in make("llava").sample(sound).turns[0].parts] == ["q ", "audio"]
        two = {"images": ["0001.0.jpg", "0001.1.jpg"]}
        for ask, number in (("<image_1> and <image_2>", 2), ("<image_2> and <image_1>", 0), ("<image_1>?", 0)):
            one = record(talk(ask, **two), **{"0_jpg": JPG, "1_jpg": JPG})
            if number:
                assert len(make("llava").sample(one).media) == number
            else:
                assert refused(make("llava"), one) == Reason.placeholder_mismatch

    def test_two_fields_of_one_kind(self):
        members = {"0_jpg": JPG, "1_jpg": JPG}
        same = talk("q", image="0001.0.jpg", images=["0001.0.jpg"])
        assert len(make("llava").sample(record(same, **members)).media) == 1
        other = talk("q", image="0001.0.jpg", images=["0001.1.jpg"])
        assert refused(make("llava"), record(other, **members)) == Reason.placeholder_mismatch

    def test_parts_that_take_media_in_another_order(self):
        for places, fine in (([0, 1], True), ([None, None], True), ([1, 0], False)):
            turns = [{"role": "user", "content": [{"type": "image", "index": place} for place in places]},
                     {"role": "assistant", "content": "a"}]  # fmt: skip
            facts = {"images": ["0001.0.jpg", "0001.1.jpg"], "messages": turns}
            one = record(facts, **{"0_jpg": JPG, "1_jpg": JPG})
            if fine:
                assert len(make("llava").sample(one).media) == 2
            else:
                assert refused(make("llava"), one) == Reason.placeholder_mismatch

    def test_system_that_is_no_text(self):
        assert refused(make("llava"), record(talk("Hi", system=["Be brief."]))) == Reason.bad_json


class TestAlpaca:
    """The two forms of the prompt, and the two slips of the released code, written out."""

    HEAD = "Below is an instruction that describes a task"
    TAIL = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    ADD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}

    def rendered(self, facts, **options):
        from mmtune import prompt

        return prompt.load("alpaca").render(make("alpaca", **options).sample(record(facts)))

    def test_with_and_without_input(self):
        with_input = f"{self.HEAD}, paired with an input that provides further context. {self.TAIL}"
        assert self.rendered(self.ADD) == f"<s>{with_input}Add.\n\n### Input:\n1 and 2\n\n### Response:3</s>"
        without = f"<s>{self.HEAD}. {self.TAIL}Add.\n\n### Response:3</s>"
        assert self.rendered({**self.ADD, "input": ""}) == without
        assert self.rendered({"instruction": "Add.", "output": "3"}) == without

    def test_as_released(self):
        said = self.rendered({**self.ADD, "input": ""}, as_released=True)
        assert said.startswith(f"<s>{self.HEAD}, paired with")
        assert said.endswith("### Instruction:\n('Add.',)\n\n### Input:\n\n\n### Response:3</s>")

    def test_plain(self):
        assert shown(make("alpaca", style="plain").sample(record(self.ADD))) == [
            ("user", "Add.\n1 and 2"), ("assistant", "3"),
        ]  # fmt: skip

    def test_system_and_history(self):
        facts = {**self.ADD, "system": "Count.", "history": [["Hi", "Hello"]], "weight": 0.5}
        sample = make("alpaca", style="plain").sample(record(facts))
        assert shown(sample) == [
            ("system", "Count."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n1 and 2"), ("assistant", "3"),
        ]  # fmt: skip
        assert [turn.weight for turn in sample.turns if turn.role == "assistant"] == [0.5, 0.5]
        for history in ("x", [["a"]], [["a", 1]], [{"a": "b"}]):
            assert refused(make("alpaca"), record({**self.ADD, "history": history})) == Reason.bad_json

    def test_media_are_not_left_out(self):
        assert refused(make("alpaca"), record({**self.ADD, "images": ["a.jpg"]})) == Reason.unused_field
        assert refused(make("alpaca"), record(self.ADD, jpg=JPG)) == Reason.wrong_media_type
        make("alpaca").sample(record({**self.ADD, "images": [], "video": None}))

    def test_refused(self):
        one = make("alpaca")
        assert refused(one, record({**self.ADD, "output": " "})) == Reason.empty_target
        assert refused(one, record({"instruction": "Add."})) == Reason.bad_json
        assert refused(one, record({**self.ADD, "input": 3})) == Reason.bad_json
        assert refused(one, record(png=JPG)) == Reason.missing_key


def test_members_are_in_the_order_of_their_numbers_whatever_stands_for_one():
    for order in (["2", "10"], ["0", "00"], ["01", "1"], ["1\u00b22", "3"], ["9", "1" * 5000], ["x2", "x10"]):
        files = {f"{name}_jpg": name.encode() for name in reversed(order)}
        sample = make("llava").sample(record(talk("<image><image>q", images=["a", "b"]), **files))
        assert [one.read().decode() for one in sample.media] == order
