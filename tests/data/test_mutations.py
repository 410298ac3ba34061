"""Records and shards that are changed at random: each is learned or refused by name, and none is lost."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtune.data.index import scan
from mmtune.data.shards import Corpus
from mmtune.errors import DataError
from mmtune.types import Sample
from tests.data import tars
from tests.data.test_formats import JPG, MP4, WAV, make, record

WORDS = [
    "image", "images", "video", "audio", "points", "conversations", "messages", "from", "role", "value", "content",
    "type", "text", "system", "weight", "loss", "loss_scale", "train", "start", "end", "clip", "video_start", "fps",
    "audio_end", "tools", "chosen", "crop", "status", "caption", "instruction", "input", "output", "history", "url",
    "path", "image_url",
]  # fmt: skip
TEXTS = st.sampled_from(
    [
        "", " ", "human", "gpt", "user", "assistant", "<image>", "<video> tag", "0001.jpg", "0001.mp4", "a/b.wav",
        "image", "success", "text", "video_url", "00:01:05.5", "1-2", "-1", "\ud800", "\x00", "²", "é" * 40, "nan",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from([10**30, 10**350, -(10**400)]),
        st.sampled_from([float("nan"), float("inf"), -0.0, 0.5, 1e-30, 1e300]), TEXTS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system"]), "value": st.one_of(TEXTS, VALUES)},
    optional=dict.fromkeys(("weight", "loss", "train", "start", "tool_calls", "image", "mask"), VALUES),
)
FACTS = st.fixed_dictionaries(
    {"conversations": st.one_of(st.lists(TURN, max_size=4), VALUES)},
    optional={word: VALUES for word in WORDS if word != "conversations"},
)
MEDIA = st.dictionaries(
    st.sampled_from(["jpg", "0_jpg", "mp4", "1_mp4", "wav", "txt"]),
    st.sampled_from([JPG, MP4, WAV, b"a dog", b"\xff"]),
    max_size=3,
)  # fmt: skip


@pytest.mark.parametrize("name", ["llava", "caption", "alpaca"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(facts=FACTS, media=MEDIA)
def test_a_record_is_read_or_refused_by_name(name, facts, media):
    try:
        sample = make(name).sample(record(json.dumps(facts).encode(), **media))
    except DataError as error:
        assert "s/0001" in error.seen and len(error.seen) < 1000 and error.expected
    else:
        assert isinstance(sample, Sample) and any(turn.role == "assistant" for turn in sample.turns)


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60), cut=st.integers(0, 60))
def test_bytes_that_are_hardly_json(raw, cut):
    whole = json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}).encode()
    for content in (raw, whole[:cut] + raw + whole[cut:]):
        try:
            make("llava").sample(record(content))
        except DataError as error:
            assert error.seen.startswith("s/0001")


def test_shards_with_bytes_turned_over_lose_no_sample_without_a_line(tmp_path):
    """Every sample of the whole shard is still there, is refused, or lies beside a stretch that is named as damaged."""
    path = tars.shards(tmp_path, 1, 6)[0]
    data, rng = path.read_bytes(), random.Random(0)
    everything = {group.key for group in scan(path).groups}
    for number in range(200):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            place = rng.choice((rng.randrange(512), 124 + rng.randrange(12), 156))
            damaged[rng.randrange(len(data) // 512) * 512 + place] = rng.choice((*b"\0\x80\xff7xL", rng.randrange(256)))
        case = tmp_path / f"case-{number}.tar"
        case.write_bytes(damaged)
        index = scan(case)
        there = {group.key for group in index.groups}
        assert everything <= there or index.damage or index.passed_count, number
        for key in (corpus := Corpus([case])).samples():
            try:
                make("llava").sample(corpus.record(key))
            except DataError as error:
                assert error.seen
        corpus.close()
        case.unlink()
        case.with_name(case.name + ".index.json").unlink()
