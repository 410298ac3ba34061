import errno
import gc
import hashlib
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.data import shards
from mmtune.data.remote import Remote
from mmtune.data.shards import Corpus
from mmtune.errors import ConfigError, DataError, Reason
from tests.data import tars


def order(corpus, seed, epoch):
    return [corpus.id(corpus.order(seed, epoch, position)) for position in range(len(corpus))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tars.shards(folder, 7, 5)
    return folder


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 9), window=st.integers(1, 9))
def test_every_epoch_is_a_permutation(folder, seed, epoch, window):
    corpus = Corpus(folder, window=window)
    ids = order(corpus, seed, epoch)
    assert sorted(ids) == sorted(corpus.id(key) for key in corpus.samples())
    assert len(set(ids)) == 35


def test_order_depends_on_seed_and_epoch_and_is_asked_in_any_order(folder):
    corpus = Corpus(folder, window=3)
    assert order(corpus, 0, 0) == order(Corpus(folder, window=3), 0, 0)
    assert len({tuple(order(corpus, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    positions = list(range(35))
    random.Random(1).shuffle(positions)
    straight = order(corpus, 5, 2)
    assert [corpus.id(corpus.order(5, 2, position)) for position in positions] == [
        straight[position] for position in positions
    ]


@pytest.mark.parametrize(
    ("window", "digest"), [(1, "e87f021dbccaf53d"), (3, "0e177e27f73ef386"), (8, "4cf2cb98b593c832")]
)
def test_the_order_is_that_of_runs_that_exist(folder, window, digest):
    """Written down when there was one order: a run that is taken up must not see a sample twice."""
    corpus = Corpus(folder, window=window)
    ids = [name for seed in (0, 5, 2**63) for epoch in (0, 2) for name in order(corpus, seed, epoch)]
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == digest


def test_windows_keep_reading_local(folder):
    corpus = Corpus(folder, window=2)
    labels = [corpus.label(corpus.order(0, 0, position)) for position in range(35)]
    assert max(len(set(labels[start : start + 10])) for start in range(0, 30, 10)) == 2


@settings(max_examples=20, deadline=None)
@given(lost=st.sets(st.integers(0, 34), max_size=8), seed=st.integers(0, 99))
def test_a_sample_less_changes_the_order_of_no_other(folder, lost, seed):
    corpus = Corpus(folder, window=3)
    every = [corpus.id(key) for key in corpus.samples()]
    without = [every[position] for position in lost]
    rest = order(Corpus(folder, window=3, without=without), seed, 1)
    assert rest == [name for name in order(corpus, seed, 1) if name not in without]


def test_records_read_by_place(folder):
    corpus = Corpus(folder)
    for key in corpus.samples():
        record = corpus.record(key)
        assert record.files["png"] == tars.PNG
        assert record.key in record.files["json"].decode()
    draws = {corpus.record(key, 0, epoch).draw for epoch in (0, 1) for key in corpus.samples()}
    assert len(draws) == 70


def test_small_memory(tmp_path):
    tars.shards(tmp_path, 20, 2)
    corpus = Corpus(tmp_path, window=2)
    order(corpus, 0, 0)
    assert len(corpus._indexes) <= 6 and len(corpus.sample_order._windows) <= 3


def test_a_cut_shard_names_what_it_lost(tmp_path):
    path = tars.shards(tmp_path, 2, 6)[0]
    full = [Corpus(tmp_path).id(key) for key in Corpus(tmp_path).samples()]
    data = path.read_bytes()
    for cut in [*range(512, len(data) - 10240, 512), *random.Random(0).sample(range(1200, len(data) - 10240), 40)]:
        path.write_bytes(data[:cut])
        said = []
        corpus = Corpus(tmp_path, said.append)
        good, lost = [], []
        for key in corpus.samples():
            try:
                dict(corpus.record(key).files)
                good.append(corpus.id(key))
            except DataError as error:
                assert error.reason == Reason.truncated_shard
                lost.append(corpus.id(key))
        assert sorted(good + lost) == sorted(full) and lost
        assert "cut at byte" in said[0]
        with pytest.raises(DataError, match=r"00000/00000\d.* \d+"):  # before any member of it is asked for
            corpus.record(list(corpus.samples())[5])
        with pytest.raises(DataError):
            Corpus(tmp_path, strict=True)


def test_a_flipped_bit_is_caught_by_its_digest(tmp_path):
    path = tars.shards(tmp_path, 1, 4)[0]
    corpus = Corpus(tmp_path)
    wheres = [(key, s, w) for key in corpus.samples() for s, w in corpus._load(0)[0].groups[key.index].members.items()]
    data = path.read_bytes()
    undetected = 0
    for key, suffix, (offset, size, _) in wheres:
        damaged = bytearray(data)
        damaged[offset + size // 2] ^= 4
        path.write_bytes(damaged)
        said = []
        with pytest.raises(DataError) as caught:
            undetected += len(Corpus(tmp_path, said.append).record(key).files[suffix]) * 0 + 1
        assert caught.value.reason == Reason.digest_mismatch and said
    assert undetected == 0


def test_a_copied_shard_is_the_same_and_another_is_refused(tmp_path):
    path = tars.shards(tmp_path, 1, 4)[0]
    first = Corpus(tmp_path).fingerprint()
    os.utime(path, (1, 1))
    said = []
    assert Corpus(tmp_path, said.append).fingerprint() == first and len(said) == 1 and "was touched" in said[0]
    assert Corpus(tmp_path, said.append).fingerprint() == first and len(said) == 1, "compared once"
    tars.shards(tmp_path, 1, 60)
    with pytest.raises(DataError, match="133120 bytes.* 10240"):
        Corpus(tmp_path)


def test_refused_samples_keep_their_place_and_say_why(tmp_path):
    tars.write(tmp_path / "a.tar", [*tars.talk("1"), *tars.talk("2"), ("2.pkl", b"")])
    corpus = Corpus(tmp_path)
    assert len(corpus) == 2 and corpus.refused == {"unsafe_suffix": 1}
    with pytest.raises(DataError) as caught:
        corpus.record(list(corpus.samples())[1])
    assert caught.value.reason == Reason.unsafe_suffix and "a/2" in caught.value.seen


def test_an_unwritable_folder_is_said(tmp_path, monkeypatch):
    tars.shards(tmp_path, 1, 3)

    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmtune.disk.write_file", refuse)
    said = []
    corpus = Corpus(tmp_path, said.append)
    assert any("this run only" in line for line in said)
    assert len(list(corpus)) == 3 and not list(tmp_path.glob("*.json"))


def test_a_shard_that_vanishes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtune.data.shards.TRIES", (0.0, 0.0))
    path = tars.shards(tmp_path, 1, 3)[0]
    corpus = Corpus(tmp_path)
    path.unlink()
    with pytest.raises(DataError) as caught:
        corpus.record(next(corpus.samples())).files["png"]
    assert caught.value.reason == Reason.truncated_shard and str(path) in caught.value.seen


def test_a_shard_that_vanished_is_waited_for_once_and_not_for_each_sample(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("mmtune.data.shards.time.sleep", slept.append)
    path = tars.shards(tmp_path, 1, 9)[0]
    corpus = Corpus(tmp_path)
    data = path.read_bytes()
    path.unlink()

    def read(key):
        try:
            return corpus.record(key).files["png"]
        except DataError as error:
            return str(error.reason)

    assert [read(key) for key in corpus.samples()] == [str(Reason.truncated_shard)] * 9
    assert slept == list(shards.TRIES)
    path.write_bytes(data)
    monkeypatch.setattr("mmtune.data.shards.REST", 0.0)
    monkeypatch.setattr(corpus, "_gone", {shard: (0.0, error) for shard, (_, error) in corpus._gone.items()})
    assert [read(key) for key in corpus.samples()] == [tars.PNG] * 9, "it is back"


def test_a_disk_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    tars.shards(tmp_path, 1, 3)
    corpus = Corpus(tmp_path)
    first, *others = corpus.samples()
    real, failed = os.pread, []

    def pread(file, size, offset):
        if not failed:
            failed.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, size, offset)

    monkeypatch.setattr("mmtune.data.shards.os.pread", pread)
    with pytest.raises(DataError, match=f"{corpus.id(first)}.*Input/output error") as caught:
        corpus.record(first).files["png"]
    assert caught.value.reason == Reason.truncated_shard
    assert all(corpus.record(key).files["png"] == tars.PNG for key in others)


def test_one_shard_in_two_spellings_is_one(tmp_path, monkeypatch):
    tars.shards(tmp_path / "in" / "shards", 2, 3)
    monkeypatch.chdir(tmp_path / "in")
    patterns = ["shards/*.tar", tmp_path / "in" / "shards", "shards/../shards/00000.tar", "./shards/0000[01].tar"]
    assert len(Corpus(patterns)) == 6


def test_a_star_passes_over_what_lies_beside_shards(tmp_path):
    tars.shards(tmp_path, 2, 3)
    first = Corpus(str(tmp_path / "*")).fingerprint()
    assert list(tmp_path.glob("*.json")), "indexes were written"
    assert Corpus(str(tmp_path / "*")).fingerprint() == first == Corpus(str(tmp_path / "0*")).fingerprint()


def test_a_name_with_brackets_is_a_name(tmp_path):
    (path,) = tars.shards(tmp_path, 1, 3)
    path.rename(tmp_path / "a[1].tar")
    assert len(Corpus(str(tmp_path / "a[1].tar"))) == 3


def test_addresses_that_differ_in_no_name_are_refused():
    with pytest.raises(ConfigError, match="do not tell them apart: https://host/get, https://host/get"):
        shards._labels([Remote("https://host/get?file=1.tar"), Remote("https://host/get?file=2.tar")])


def test_same_names_in_two_folders_are_told_apart(tmp_path):
    tars.shards(tmp_path / "a", 2, 2)
    tars.shards(tmp_path / "b", 2, 2)
    corpus = Corpus([tmp_path / "a", tmp_path / "b"])
    assert len({corpus.id(key) for key in corpus.samples()}) == 8
    assert corpus.id(next(corpus.samples())) == "a/00000/000000"


def test_a_corpus_that_is_not_held_any_more_has_closed_its_shards(folder):
    corpus = Corpus(folder)
    for key in corpus.samples():
        assert all(corpus.record(key).files.values())
    numbers = list(corpus._files.values())
    assert numbers and all(os.fstat(number) for number in numbers)
    del corpus
    gc.collect()
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
