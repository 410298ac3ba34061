"""Fields that change what a record means: honoured, or the record is refused by name."""

import json

import pytest

from mmtune.data.formats import _fields
from mmtune.errors import DataError, Reason
from tests.data.test_formats import JPG, MP4, WAV, make, record, refused, talk


def conversation(*turns, **more):
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    return record({"conversations": [{**one, **extra} for one, extra in zip(said, turns, strict=True)], **more})


def weights(one, **options):
    return [turn.weight for turn in make("llava", **options).sample(one).turns if turn.role == "assistant"]


class TestWeights:
    @pytest.mark.parametrize(
        ("turn", "weight"),
        [
            ({}, 1), ({"weight": 0}, 0), ({"weight": 0.5}, 0.5), ({"weight": 2}, 2), ({"weight": None}, 1),
            ({"loss": 0.5}, 0.5), ({"loss": False}, 0), ({"loss": True}, 1), ({"loss": 0}, 0), ({"loss_scale": 3}, 3),
            ({"loss_weight": 0.25}, 0.25), ({"train": False}, 0), ({"loss_mask": 0}, 0), ({"training": True}, 1),
            ({"learn": 0}, 0), ({"loss": True, "loss_scale": 0.5}, 0.5), ({"loss": False, "weight": 2}, 0),
        ],
    )  # fmt: skip
    def test_of_a_turn(self, turn, weight):
        assert weights(conversation({}, turn)) == [weight]
        for name in ("messages",):
            said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **turn}]
            assert weights(record({name: said})) == [weight]

    def test_of_a_record(self):
        assert weights(conversation({}, {"weight": 0.5}, weight=0.5)) == [0.25]
        for name in _fields.WEIGHTS:
            assert weights(conversation({}, {}, **{name: 3})) == [3]
            caption = make("caption").sample(record({"caption": "a dog", name: 0.5}, jpg=JPG))
            assert caption.turns[1].weight == 0.5
            alpaca = make("alpaca").sample(record({"instruction": "q", "output": "a", name: 0.5}))
            assert alpaca.turns[1].weight == 0.5

    def test_switches_of_a_record(self):
        assert weights(conversation({}, {}, train=False)) == [0]
        assert weights(conversation({}, {}, loss=True, training="stage 1", learn=1)) == [1]
        for number in (2.3, 0.5, -1, 10**400, 10**350):
            assert refused(make("llava"), conversation({}, {}, loss=number)) == Reason.unused_field
            assert weights(conversation({}, {}, loss=number), ignore=("loss",)) == [1]

    @pytest.mark.parametrize(
        "value",
        [b"-1", b"-0.5", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b'"0.5"', b'""', b"[0.5]", b"{}", b"1e-9", b"1e9"],
    )
    def test_what_is_no_weight_is_refused_by_name(self, value):
        for name in (*_fields.WEIGHTS, *_fields.SWITCHES):
            raw = b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "%b": %b}]}'
            with pytest.raises(DataError) as caught:
                make("llava").sample(record(raw % (name.encode(), value)))
            assert caught.value.reason == Reason.bad_weight
            assert f"turn 1: {name} is" in caught.value.seen and len(caught.value.seen) < 200
        with pytest.raises(DataError, match="s/0001: weight is"):
            make("llava").sample(record(json.dumps(talk("q")).encode()[:-1] + b', "weight": ' + value + b"}"))

    def test_a_boolean_is_a_switch_and_no_weight(self):
        for name in _fields.WEIGHTS:
            assert refused(make("llava"), conversation({}, {name: True})) == Reason.bad_weight
        assert refused(make("llava"), conversation({}, {"weight": 1e-4}, weight=1e-4)) == Reason.bad_weight

    def test_of_a_user(self):
        assert weights(conversation({"weight": 0, "loss": False, "loss_scale": 2.0}, {})) == [1]
        assert refused(make("llava"), conversation({"train": True}, {})) == Reason.unused_field
        assert refused(make("llava"), conversation({"weight": -1}, {})) == Reason.bad_weight


REFUSED = {
    "tools": [{"name": "look"}], "functions": "[{}]", "chosen": "a", "rejected": "b", "rejected_response": "b",
    "kto_tag": False, "bbox": [0, 0, 1, 1], "crop": {"x": 1}, "mask": "m.png", "objects": {"bbox": [[1, 2]]},
    "max_pixels": 1000, "start_frame": 8, "frame_indices": [1, 2], "frame_idx": [1, 2], "weights": [1, 0],
    "loss_weights": [1, 0], "mask_history": True, "train_on_inputs": True, "label": False,
}  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name_and_not_when_ignored(self, name):
        ones = {
            "llava": talk("q", **{name: REFUSED[name]}),
            "alpaca": {"instruction": "q", "output": "a", name: REFUSED[name]},
            "caption": {"caption": "a dog", name: REFUSED[name]},
        }
        for spelled, facts in ones.items():
            media = {"jpg": JPG} if spelled == "caption" else {}
            with pytest.raises(DataError) as caught:
                make(spelled).sample(record(facts, **media))
            assert caught.value.reason == Reason.unused_field and name in caught.value.seen
            assert f"ignore: [{name}]" in caught.value.hint
            make(spelled, ignore=(name,)).sample(record(facts, **media))

    @pytest.mark.parametrize("empty", [None, "", [], {}, float("nan")])
    def test_not_when_they_say_nothing(self, empty):
        for name in _fields.RECORD:
            make("llava").sample(record(json.dumps(talk("q", **{name: empty})).encode()))

    @pytest.mark.parametrize(
        "turn",
        [
            {"tool_calls": [{"id": 1}]}, {"function_call": {"name": "x"}}, {"train_detail": [{"begin_offset": 0}]},
            {"mask": True}, {"reasoning_content": "hm"}, {"images": ["a.jpg"]}, {"video": "a.mp4"},
            {"ignore_loss": True}, {"mask_loss": True},
        ],
    )  # fmt: skip
    def test_in_a_turn(self, turn):
        assert refused(make("llava"), conversation({}, turn)) == Reason.unused_field
        make("llava", ignore=tuple(turn)).sample(conversation({}, turn))

    @pytest.mark.parametrize("more", [{"fps": 2}, {"nframes": 8}, {"max_pixels": 100}, {"weight": 0}, {"crop": [1]}])
    def test_in_a_part(self, more):
        for part in ({"type": "video", "video": "0001.mp4", **more}, {"type": "text", "text": "q", **more}):
            turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
            assert refused(make("llava"), record({"messages": turns}, mp4=MP4)) == Reason.unused_field
        whole = {"video": {"path": "0001.mp4", **more}}
        assert refused(make("llava"), record(talk("<video>", **whole), mp4=MP4)) == Reason.unused_field

    def test_notes_are_free(self):
        notes = {"id": 7, "source": "x", "metadata": {"crop": 1}, "score": 0.3, "width": 64, "fps": 30, "duration": 9.5,
                 "start": "a", "end": [], "label": True, "name": "x", "category": "vqa"}  # fmt: skip
        make("llava").sample(record(talk("q", **notes)))
        make("llava").sample(record(talk("<image>", image="0001.jpg", **notes), jpg=JPG))


def ranges(sample):
    return [(ref.kind, ref.start, ref.end) for ref in sample.media]


class TestClips:
    @pytest.mark.parametrize(
        "fields",
        [
            {"video_start": 5, "video_end": 65.5}, {"start": "5", "end": "65.5"}, {"start": 5.0, "end": "00:01:05.5"},
            {"start_time": "0:05", "end_time": "1:05,5"}, {"clip": [5, 65.5]}, {"clip": ["00:05", "01:05.5"]},
            {"clip": "0:05-1:05.5"}, {"clip": {"start": 5, "end": 65.5}}, {"video_clip": [[5, 65.5]]},
            {"video_start": [5], "video_end": [65.5]}, {"start_sec": "5s", "end_sec": "65.5 s"},
            {"video_start_time": 5, "video_end_time": 65.5}, {"clip_start": 5, "clip_end": 65.5},
            {"time_range": "5 to 65.5"},
        ],
    )  # fmt: skip
    def test_of_a_record(self, fields):
        for spelled, facts in (("llava", talk("<video>\nq", video="0001.mp4")), ("caption", {"caption": "a dog"})):
            sample = make(spelled).sample(record({**facts, **fields}, mp4=MP4))
            assert ranges(sample) == [("video", 5.0, 65.5)]

    def test_one_end_alone(self):
        one = record(talk("<video>", video="0001.mp4", start=3, end=None), mp4=MP4)
        assert ranges(make("llava").sample(one)) == [("video", 3.0, None)]
        one = record(talk("<audio>", audio="0001.wav", audio_end=3), wav=WAV)
        assert ranges(make("llava").sample(one)) == [("audio", None, 3.0)]

    def test_none_at_all(self):
        one = record(talk("<video>", video="0001.mp4", clip="holiday.mp4", start=None), mp4=MP4)
        assert ranges(make("llava").sample(one)) == [("video", None, None)]

    def test_several_items(self):
        members = {"0_mp4": MP4, "1_mp4": MP4}
        names = {"videos": ["0001.0.mp4", "0001.1.mp4"]}
        one = record(talk("<video><video>", video_start=[1, None], video_end=[2, 9], **names), **members)
        assert ranges(make("llava").sample(one)) == [("video", 1, 2), ("video", None, 9)]
        one = record(talk("<video><video>", clip=[[1, 2], [3, 4]], **names), **members)
        assert ranges(make("llava").sample(one)) == [("video", 1, 2), ("video", 3, 4)]
        twice = record(talk("<video><video>", video=["0001.mp4"] * 2, start=[1, 3], end=[2, 4]), mp4=MP4)
        assert ranges(make("llava").sample(twice)) == [("video", 1, 2), ("video", 3, 4)]

    def test_of_each_kind(self):
        one = record(talk("<video><audio>", video="0001.mp4", audio="0001.mp4", video_start=1, audio_end=2), mp4=MP4)
        assert ranges(make("llava").sample(one)) == [("video", 1, None), ("audio", None, 2)]

    def test_of_parts_and_entries(self):
        for part in (
            {"type": "video", "video": "0001.mp4", "start": 1, "end": "0:02"},
            {"type": "video_url", "video_url": {"url": "0001.mp4"}, "clip": [1, 2]},
        ):
            turns = [{"role": "user", "content": [part, {"type": "text", "text": "q"}]},
                     {"role": "assistant", "content": "a"}]  # fmt: skip
            assert ranges(make("llava").sample(record({"messages": turns}, mp4=MP4))) == [("video", 1, 2)]
        one = record(talk("<video>", video={"path": "0001.mp4", "start_time": 1, "end_time": 2}), mp4=MP4)
        assert ranges(make("llava").sample(one)) == [("video", 1, 2)]

    @pytest.mark.parametrize(
        "fields",
        [
            {"start": -1}, {"start": "x"}, {"start": True}, {"end": 0}, {"start": 5, "end": 5}, {"start": 5, "end": 4},
            {"start": float("nan")}, {"end": float("inf")}, {"start": "1:2:3:4"}, {"start": {}}, {"clip": [1]},
            {"clip": [1, 2, 3]}, {"clip": [2, 1]}, {"clip": 5}, {"clip_range": "somewhere"}, {"start": "", "end": 2},
            {"start": [1, 2]}, {"start": 1, "clip": [2, 3]}, {"audio_start": 1}, {"end": 10**400}, {"start": "9" * 400},
            {"clip": [[1, 2], [3, 4]]},
        ],
    )  # fmt: skip
    def test_what_is_no_range_is_refused(self, fields):
        one = record(talk("<video>", video="0001.mp4", **fields), mp4=MP4)
        assert refused(make("llava"), one) == Reason.bad_range

    def test_what_is_not_clear_is_refused(self):
        both = talk("<video><audio>", video="0001.mp4", audio="0001.wav", start=1)
        assert refused(make("llava"), record(both, mp4=MP4, wav=WAV)) == Reason.bad_range
        two = talk("<video><video>", video=["0001.mp4"] * 2, start=1)
        assert refused(make("llava"), record(two, mp4=MP4)) == Reason.bad_range
        assert refused(make("llava"), record(talk("q", video_start=1))) == Reason.bad_range
        part = {"type": "image", "image": "0001.jpg", "start": 1}
        turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
        assert refused(make("llava"), record({"messages": turns}, jpg=JPG)) == Reason.bad_range

    def test_a_duration_in_the_place_of_an_end(self):
        facts = talk("<video>", video="0001.mp4", start=3, duration=10)
        assert refused(make("llava"), record(facts, mp4=MP4)) == Reason.bad_range
        assert ranges(make("llava", ignore=("duration",)).sample(record(facts, mp4=MP4))) == [("video", 3, None)]
        assert ranges(make("llava").sample(record({**facts, "end": 5}, mp4=MP4))) == [("video", 3, 5)]

    def test_clips_that_were_cut_before(self):
        one = record({"caption": "a dog", "start": 100, "end": 110, "clips": [[100, 110]]}, mp4=MP4)
        assert ranges(make("caption").sample(one)) == [("video", 100, 110)]
        assert ranges(make("caption", ignore=("start", "end")).sample(one)) == [("video", None, None)]

    @pytest.mark.parametrize(
        "names",
        [
            "start end", "start_time end_time", "start_sec end_sec", "clip_start clip_end", "begin end",
            "begin_time end_time", "start_timestamp end_timestamp", "Start_timestamp End_timestamp",
            "startTime endTime", "start_seconds end_seconds", "start_s end_s", "t_start t_end",
            "segment_start segment_end", "start end_time", "clip", "clip_range", "time_range", "trim", "clipRange",
        ],
    )  # fmt: skip
    def test_every_name_is_read(self, names):
        """Of the record, of an entry of its list, and of a part; with both ends."""
        values = [1, 2] if " " in names else [[1, 2]]
        for prefix in ("", "video_"):
            fields = {prefix + name: value for name, value in zip(names.split(), values, strict=True)}
            of_record = record(talk("<video>", video="0001.mp4", **fields), mp4=MP4)
            of_entry = record(talk("<video>", videos=[{"path": "0001.mp4", **fields}]), mp4=MP4)
            for one in (of_record, of_entry, *parts(fields)):
                assert ranges(make("llava").sample(one)) == [("video", 1, 2)]

    def test_of_the_object_that_names_the_medium_of_a_caption(self):
        """The part of the clip that it names is shown, not the whole; what it says and nobody reads is refused."""
        for name in ({"path": "0001.mp4", "start": 1, "end": 2}, [{"path": "0001.mp4", "clip": [1, 2]}]):
            one = record({"caption": "a dog", "video": name}, mp4=MP4)
            assert ranges(make("caption").sample(one)) == [("video", 1, 2)]
        crop = record({"caption": "a dog", "image": {"path": "0001.jpg", "crop": [1]}}, jpg=JPG)
        assert refused(make("caption"), crop) == Reason.unused_field

    def test_milliseconds_and_offsets(self):
        for fields in (
            {"start_ms": 1500, "end_ms": 2000}, {"offset": 1.5, "duration": 0.5}, {"offset": "1.5", "duration": "0.5"},
            {"start_ms": "1500", "endMs": "2000"}, {"clip_range_ms": [1500, "2000"]}, {"time_range_sec": [1.5, 2]},
        ):  # fmt: skip
            for one in (record(talk("<video>", video="0001.mp4", **fields), mp4=MP4), *parts(fields)):
                assert ranges(make("llava").sample(one)) == [("video", 1.5, 2)]
        one = record(talk("<audio>", audio="0001.wav", offset=0.5, duration=1.0), wav=WAV)
        assert ranges(make("llava").sample(one)) == [("audio", 0.5, 1.5)]
        clock = record(talk("<video>", video="0001.mp4", start_ms="0:01.5"), mp4=MP4)
        assert refused(make("llava"), clock) == Reason.bad_range

    @pytest.mark.parametrize(
        "fields",
        [
            {"segment": [1, 2]}, {"timestamp": "0:01-0:02"}, {"timestamps": [[1, 2], [3, 4]]},
            {"span": ["0:01", "0:02"]},
            {"segments": [{"start": 1, "end": 2}]}, {"video_segment": [1, 2]},
        ],
    )  # fmt: skip
    def test_what_may_be_an_answer_is_refused_by_name(self, fields):
        facts = talk("<video>", video="0001.mp4", **fields)
        with pytest.raises(DataError) as caught:
            make("llava").sample(record(facts, mp4=MP4))
        name = next(iter(fields))
        assert caught.value.reason == Reason.bad_range and f"{name} is" in caught.value.seen
        assert ranges(make("llava", ignore=(name,)).sample(record(facts, mp4=MP4))) == [("video", None, None)]
        make("llava").sample(record(talk("q", **fields)))

    def test_times_and_transcripts_are_notes(self):
        notes = {"timestamp": 1700000000, "segments": [{"id": 0, "start": 0, "end": 2, "text": "a"}], "span": "x-y",
                 "timestamps": [0.5, 1.0, 1.5], "interval": 2}  # fmt: skip
        one = record(talk("<video>", video="0001.mp4", **notes), mp4=MP4)
        assert ranges(make("llava").sample(one)) == [("video", None, None)]

    def test_a_range_in_a_turn_is_refused_where_a_video_stands(self):
        facts = talk("<video>", video="0001.mp4")
        facts["conversations"][0] |= {"start": 1, "end": 2}
        assert refused(make("llava"), record(facts, mp4=MP4)) == Reason.bad_range
        notes = talk("q")
        notes["conversations"][0] |= {"start": 1, "end": 2}
        make("llava").sample(record(notes))


def parts(fields):
    """A range beside the name of a video in a part of a turn, and together with it in an object."""
    for part in (
        {"type": "video", "video": "0001.mp4", **fields},
        {"type": "video_url", "video_url": {"url": "0001.mp4", **fields}},
    ):
        turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
        yield record({"messages": turns}, mp4=MP4)
