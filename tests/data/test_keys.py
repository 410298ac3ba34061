"""Names with dots: no sample vanishes or merges with another without a word."""

import json
import time

import pytest

from mmtune.data._index_file import VERSION, ShardIndex
from mmtune.data._keys import keys
from mmtune.data.index import beside, index_shards, scan
from mmtune.data.shards import Corpus
from mmtune.errors import DataError, Reason
from tests.data import tars
from tests.data.test_formats import make


def grouped(names):
    """Key to its suffixes, of names with blanks between them."""
    found = {}
    for name, (key, suffix) in keys(names.split()).items():
        found.setdefault(key, []).append(suffix)
        assert name.lower() == f"{key}.{suffix}".lower()
    return {key: " ".join(suffixes) for key, suffixes in found.items()}


NAMES = {
    # one dot
    "1.jpg 1.json 2.jpg 2.json": {"1": "jpg json", "2": "jpg json"},
    "a/1.jpg a/1.json b/1.jpg b/1.json": {"a/1": "jpg json", "b/1": "jpg json"},
    # several files of one sample
    "img.0.jpg img.1.jpg img.json": {"img": "0.jpg 1.jpg json"},
    "img.jpg img.1.jpg img.json": {"img": "jpg 1.jpg json"},
    "x.left.png x.right.png x.txt": {"x": "left.png right.png txt"},
    "x.mp4 x.json x.audio.wav x.en.txt": {"x": "mp4 json audio.wav en.txt"},
    "x.json x.0.jpg x.boxes.json": {"x": "json 0.jpg boxes.json"},
    "0.in.png 0.out.png 0.prompt.txt": {"0": "in.png out.png prompt.txt"},
    "a.0.jpg a.1.jpg": {"a": "0.jpg 1.jpg"},
    # several samples
    "cat.jpg cat.txt cat.2.jpg cat.2.txt": {"cat": "jpg txt", "cat.2": "jpg txt"},
    "cat.jpg cat.txt cat.2.png cat.2.txt": {"cat": "jpg txt", "cat.2": "png txt"},
    "clip.v2.mp4 clip.v2.json": {"clip.v2": "mp4 json"},
    "a.b.jpg a.b.txt a.c.jpg a.c.txt": {"a.b": "jpg txt", "a.c": "jpg txt"},
    "v1.0_1.jpg v1.0_1.json v1.0_2.jpg v1.0_2.json": {"v1.0_1": "jpg json", "v1.0_2": "jpg json"},
    "2024.01.02.wav 2024.01.02.json 2024.01.03.wav 2024.01.03.json": {
        "2024.01.02": "wav json", "2024.01.03": "wav json",
    },
    "a.b.json a.c.json": {"a.b": "json", "a.c": "json"},
    "a.json a.b.json": {"a": "json", "a.b": "json"},
    "clip.v2.0.jpg clip.v2.1.jpg clip.v2.json clip.v2.jpg": {"clip.v2": "0.jpg 1.jpg json jpg"},
    "v1.0.0.jpg v1.0.1.jpg v1.0.json": {"v1.0": "0.jpg 1.jpg json"},
    "v1.0.0.jpg v1.0.1.jpg v1.0.json v1.1.0.jpg v1.1.1.jpg v1.1.json": {
        "v1.0": "0.jpg 1.jpg json", "v1.1": "0.jpg 1.jpg json",
    },
    "A.V2.JPG A.V2.JSON": {"A.V2": "jpg json"},
    # one that lost its mate stays apart
    "a.b.jpg a.b.txt a.c.jpg": {"a.b": "jpg txt", "a.c": "jpg"},
    "a.b.jpg a.b.txt a.c.txt": {"a.b": "jpg txt", "a.c": "txt"},
    # what is never read makes no key
    "1.json 1.py.txt 1.png": {"1": "json py.txt png"},
    "1.json 1.json.pkl": {"1": "json json.pkl"},
    "1.jpg 1.json 1.b.parquet": {"1": "jpg json b.parquet"},
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_keys(names):
    assert grouped(names) == NAMES[names]
    assert grouped(" ".join(sorted(names.split(), reverse=True))).keys() == NAMES[names].keys()


def shard(path, names, turned=False):
    """A tar of llava records and captions: each text has the content that its suffix asks for."""
    members = []
    for name in names:
        end = name.rpartition(".")[2]
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": name}]
        content = {"json": json.dumps({"conversations": turns}).encode(), "txt": name.encode()}.get(end, tars.PNG)
        members.append((name, content))
    return tars.write(path, members)


def learned(path, spelled):
    """What is learned of each record, and how many are refused."""
    corpus, said, refused = Corpus([path]), [], []
    for key in corpus.samples():
        try:
            sample = make(spelled).sample(corpus.record(key))
        except DataError as error:
            refused.append(error.reason)
        else:
            assert len(sample.media) == 1
            said.append(sample.turns[-1].text)
    return said, refused


@pytest.mark.parametrize(
    ("names", "spelled"),
    [
        (["cat.2.jpg", "cat.2.txt", "cat.jpg", "cat.txt"], "caption"),
        (["cat.jpg", "cat.kitten.jpg", "cat.kitten.txt", "cat.txt"], "caption"),
        (["clip 2.0 (clean).jpg", "clip 2.0 (clean).json", "clip 2.1 (clean).jpg", "clip 2.1 (clean).json"], "llava"),
        (["a.b.jpg", "a.b.json", "a.c.jpg", "a.c.json", "a.jpg", "a.json"], "llava"),
        (["x.jpg", "x.json", "y.jpg", "y.json", "x.2.jpg", "x.2.json"], "llava"),
    ],
)
def test_every_sample_of_a_sorted_shard_is_learned(tmp_path, names, spelled):
    texts = [name for name in names if name.endswith(("txt", "json"))]
    said, refused = learned(shard(tmp_path / "a.tar", names), spelled)
    assert sorted(said) == sorted(texts) and not refused


def test_several_pictures_of_a_caption_are_not_left_out(tmp_path):
    said, refused = learned(shard(tmp_path / "a.tar", ["a.0.jpg", "a.1.jpg", "a.txt"]), "caption")
    assert (said, refused) == ([], [Reason.missing_key])


def test_damage_does_not_merge_samples(tmp_path):
    """A caption is lost, so that its picture looks like a second one of the sample before."""
    names = [f"{key}.{end}" for key in ("a", "b", "cat", "cat.2", "d", "e") for end in ("jpg", "txt")]
    path = shard(tmp_path / "a.tar", sorted(names))
    data = bytearray(path.read_bytes())
    place = data.index(b"cat.2.txt")
    data[place : place + 9] = b"cat.2.tx\xff"
    path.write_bytes(data)
    index = scan(path)
    good = {group.key: set(group.members) for group in index.groups if group.reason is None}
    assert set(good) <= {"a", "b", "cat", "d", "e"} and all(found == {"jpg", "txt"} for found in good.values())
    assert {"a", "b", "e"} <= set(good) and index.damage


def old(index):
    """An index as version 1 wrote it: keys up to the first dot."""
    tree = json.loads(index.dump())
    merged = {}
    for group in index.groups:
        short, _, rest = group.key.partition(".")
        for suffix, where in group.members.items():
            merged.setdefault(short, {})[f"{rest}.{suffix}".lstrip(".")] = where
    rows = [(suffix, *where) for members in merged.values() for suffix, where in members.items()]
    suffixes = sorted({row[0] for row in rows})
    columns = zip(*((suffixes.index(row[0]), *row[1:]) for row in rows), strict=True)
    tree.update(version=1, keys=list(merged), sizes=[len(members) for members in merged.values()], suffixes=suffixes)
    tree["members"] = dict(zip(("suffix", "offset", "size", "sha256"), map(list, columns), strict=True))
    return json.dumps(tree)


def test_an_older_index_is_read_by_todays_keys(tmp_path):
    path = shard(tmp_path / "a.tar", ["cat.2.jpg", "cat.2.txt", "cat.jpg", "cat.txt", "img.0.jpg", "img.txt"])
    new = scan(path)
    before = ShardIndex.parse(old(new), "a")
    assert before.version == 1
    assert {g.key: g.members for g in before.groups} == {g.key: g.members for g in new.groups}
    assert {g.key for g in new.groups} == {"cat", "cat.2", "img"}
    beside(path).write_text(old(new))
    today = Corpus([path])
    assert len(today) == 3
    assert "indexed" in index_shards([path])[0], "and `data index` writes it anew"
    assert json.loads(beside(path).read_text())["version"] == VERSION
    assert Corpus([path]).fingerprint() == today.fingerprint()


def test_runs_over_plain_names_go_on_and_others_are_told(tmp_path):
    """A run that began before knows its data by the fingerprint: equal where the samples are, and else not."""
    import hashlib

    def before(corpus):
        text = "".join(f"{label} {total}\n" for label, total in zip(corpus._labels, corpus._sums, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    plain = Corpus([shard(tmp_path / "a.tar", ["a.jpg", "a.txt", "b.0.jpg", "b.txt"])])
    dotted = Corpus([shard(tmp_path / "b.tar", ["a.b.jpg", "a.b.txt"])])
    assert plain.fingerprint() == before(plain)
    assert dotted.fingerprint() != before(dotted)


def test_many_samples_alike_up_to_the_first_dot_take_little_time():
    names = [f"v1.0_{number}.{end}" for number in range(20_000) for end in ("jpg", "json", "0.jpg")]
    start = time.process_time()
    assert len({key for key, _ in keys(names).values()}) == 20_000
    assert time.process_time() - start < 3
