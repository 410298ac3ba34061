import io
import json
import random
import tarfile
import wave

import av
import numpy as np
import pytest
from PIL import Image

from mmtune.data.world.draw import clip
from mmtune.data.world.language import HEARD, TEMPORAL
from mmtune.data.world.make import MEDIA, make_shards, record
from mmtune.data.world.scene import draw_scene
from mmtune.data.world.video import mp4
from mmtune.errors import UsageError


def groups(path):
    out = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            out.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("one"), 25, seed=7, level="full", split="val", per_shard=20)


def test_shards_hold_whole_records(shards):
    assert [p.name for p in shards] == ["full-val-00000.tar", "full-val-00001.tar"]
    records = groups(shards[0]) | groups(shards[1])
    assert sorted(records) == [f"{i:07d}" for i in range(25)]
    assert all(set(r) == {*MEDIA, "json"} for r in records.values())


def test_same_seed_same_bytes_whatever_the_workers_and_the_count(shards, tmp_path):
    again = make_shards(tmp_path / "again", 45, seed=7, level="full", split="val", per_shard=20, workers=2)
    assert again[0].read_bytes() == shards[0].read_bytes()
    assert groups(again[1]).items() >= groups(shards[1]).items()
    other = make_shards(tmp_path / "other", 1, seed=8, level="full", split="val", media=())
    assert groups(other[0])["0000000"]["json"] != groups(shards[0])["0000000"]["json"]


def test_video_bytes_do_not_depend_on_what_the_memory_held():
    frames = clip(draw_scene(random.Random(1), "full"))
    first = mp4(frames)
    for i in range(12):
        junk = [np.full(50_000 + 7919 * (i + j), (37 * i + j) % 256, np.uint8) for j in range(6)]
        del junk
        assert mp4(frames) == first


def test_texts_fit_their_media(shards):
    for key, files in groups(shards[0]).items():
        facts = json.loads(files["json"])
        talk = facts["conversations"]
        assert [t["from"] for t in talk] == ["human", "gpt"] * (len(talk) // 2)
        tag, field = ("<image>", "image") if int(key) % 5 == 4 else ("<video>", "video")
        assert talk[0]["value"].startswith(tag + "\n")
        assert sum(t["value"].count("<image>") + t["value"].count("<video>") for t in talk) == 1
        assert facts[field].split(".")[1] in files and facts["split"] == "val" and facts["level"] == "full"
        assert facts["caption"] == facts["captions"][0]
        assert facts["caption"] in [t["value"] for t in talk[1::2]]
        assert all(q["type"] not in HEARD and q["temporal"] == (q["type"] in TEMPORAL) for q in facts["questions"])
        assert {q["type"] for q in facts["hearing"]} == set(HEARD)
        if tag == "<image>":
            assert not any(q["temporal"] for q in facts["questions"])


def test_media_can_be_decoded_and_match(shards):
    files = groups(shards[0])["0000001"]
    with av.open(io.BytesIO(files["mp4"])) as file:
        frames = list(file.decode(video=0))
        assert [f.time for f in frames] == [i / 4 for i in range(8)]
    with av.open(io.BytesIO(files["mp4"])) as file:
        sound = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])[:30000]
    with wave.open(io.BytesIO(files["wav"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 32000)
        plain = np.frombuffer(file.readframes(30000), "<i2") / 32768
    assert np.corrcoef(sound, plain)[0, 1] > 0.98, "the sound track is late or another one"
    picture = np.asarray(Image.open(io.BytesIO(files["jpg"]))).astype(int)
    assert picture.shape == (144, 144, 3)
    assert np.abs(picture - frames[0].to_ndarray(format="rgb24")).mean() < 8


def test_splits_have_no_meaning_in_common():
    seen = {
        split: {draw_scene(random.Random(i), "easy", split).meaning for i in range(300)} for split in ("train", "test")
    }
    assert not seen["train"] & seen["test"]
    assert all(draw_scene(random.Random(i), "full", "test").split == "test" for i in range(20))


def test_records_may_be_about_sounds_and_clouds(tmp_path):
    path = make_shards(tmp_path, 4, seed=3, level="full", kinds=("points", "audio"))[0]
    for key, files in groups(path).items():
        facts = json.loads(files["json"])
        kind, suffix = ("points", "ply") if int(key) % 2 == 0 else ("audio", "wav")
        assert facts[kind] == f"{key}.{suffix}" and suffix in files and not {"video", "image"} & facts.keys()
        assert facts["conversations"][0]["value"].startswith(f"<{kind}>\n")
        types = {q["type"] for q in facts["questions"]}
        assert types == set(HEARD) if kind == "audio" else not types & {*HEARD, *TEMPORAL, "text"}


def test_progress_counts_records(tmp_path):
    told = []
    make_shards(tmp_path, 3, seed=0, level="easy", progress=told.append, media=("jpg",))
    assert told == [1, 2, 3]
    assert set(record(2, 0, "easy", "train", ("jpg",))) == {"__key__", "json", "jpg"}


def test_an_older_and_larger_set_is_not_mixed_in(tmp_path):
    make_shards(tmp_path, 2, seed=0, level="easy", media=(), per_shard=1)
    make_shards(tmp_path, 2, seed=0, level="easy", media=(), split="test")
    make_shards(tmp_path, 2, seed=1, level="easy", media=(), per_shard=1)  # made again whole
    with pytest.raises(UsageError, match=r"holds easy-train-00001\.tar of a larger set"):
        make_shards(tmp_path, 1, seed=1, level="easy", media=())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"level": "hard"}, "easy, full"),
        ({"split": "dev"}, "train, val, test"),
        ({"media": ["gif"]}, "mp4"),
        ({"kinds": ["smell"]}, "video, image, audio, points"),
        ({"kinds": ["audio"], "level": "easy"}, "level full"),
        ({"clips": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_name_the_right_ones(tmp_path, wrong, said):
    with pytest.raises(UsageError) as error:
        make_shards(tmp_path, **({"clips": 1, "seed": 0, "level": "easy"} | wrong))
    assert said in str(error.value)
    assert not list(tmp_path.glob("*.tar"))
