"""Parquet, and data sets as Hugging Face's `datasets` leaves them on a disk."""

import json
import sys

import pytest

from mmtune.errors import UsageError
from tests.data import sources, tars
from tests.data.sources import TALK
from tests.media import make

arrow = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
parquet = pytest.importorskip("pyarrow.parquet")


def table(count=10, **more):
    rows = {
        "image": [{"bytes": sources.picture(number), "path": f"{number}.png"} for number in range(count)],
        "caption": [f"shade {number}" for number in range(count)],
        "score": [float("nan")] * count,
        **more,
    }
    return arrow.table(rows)


def saved(folder, data, extra=()):
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    with (
        arrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        ipc.new_stream(file, data.schema) as out,
    ):
        out.write_table(data, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    for name in extra:
        (folder / name).write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())


def test_a_parquet_file_with_pictures_in_it(tmp_path):
    parquet.write_table(table(), tmp_path / "p.parquet", row_group_size=4)
    report, refused = sources.made(tmp_path / "p.parquet", tmp_path / "out", per_shard=3)
    assert (report.written, report.shards, refused) == (10, 4, [])
    found = sources.samples(tmp_path / "out", "caption")
    assert [sample.turns[1].text for sample in found] == [f"shade {number}" for number in range(10)]
    assert found[7].media[0].source == sources.picture(7)
    sources.made(tmp_path / "p.parquet", tmp_path / "two", workers=2, per_shard=3)
    assert sources.shards(tmp_path / "two") == sources.shards(tmp_path / "out")


def test_sounds_films_lists_and_chat_messages(tmp_path):
    sound, film = make.wav(make.sine(8000, 0.1), 8000), make.video(count=4, rate=4, width=16, height=16)
    messages = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]  # fmt: skip
    for name, data, form, kind in (
        ("a", {"audio": [{"bytes": sound, "path": None}], "text": ["hello"]}, "caption", "audio"),
        ("v", {"video": [{"bytes": film, "path": "x.mp4"}], "caption": ["hello"]}, "caption", "video"),
        ("b", {"image": [tars.PNG], "text": ["hello"]}, "caption", "image"),
        ("m", {"images": [[{"bytes": tars.PNG, "path": None}]], "messages": [messages]}, "llava", "image"),
        ("c", {"images": [[{"bytes": tars.PNG, "path": None}]], "conversations": [TALK]}, "llava", "image"),
    ):
        parquet.write_table(arrow.table(data), tmp_path / f"{name}.parquet")
        report, refused = sources.made(tmp_path / f"{name}.parquet", tmp_path / name)
        assert not refused and report.format == form
        assert [one.kind for one in sources.samples(tmp_path / name, form)[0].media] == [kind]


def test_a_folder_of_save_to_disk(tmp_path):
    saved(tmp_path / "set", table(), extra=["cache-0123.arrow"])
    report, _ = sources.made(tmp_path / "set", tmp_path / "out", per_shard=4)
    assert (report.written, report.shards) == (10, 3), "what a cache left there is not read"
    assert sources.samples(tmp_path / "out", "caption")[9].media[0].source == sources.picture(9)


def test_splits_are_never_mixed(tmp_path):
    for split in ("train", "test"):
        saved(tmp_path / "saved" / split, table(3))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        parquet.write_table(table(3), tmp_path / "hub" / "data" / f"{name}.parquet")
    for name, count in (("saved", 3), ("hub", 6)):
        with pytest.raises(UsageError, match="several data sets") as caught:
            sources.made(tmp_path / name, tmp_path / "out")
        assert caught.value.hint == "--split train"
        with pytest.raises(UsageError, match="second"):
            sources.made(tmp_path / name, tmp_path / "out", split="second")
        report, _ = sources.made(tmp_path / name, tmp_path / f"out-{name}", split="train")
        assert report.written == count
    assert sources.made(tmp_path / "hub", tmp_path / "out-val", split="val")[0].written == 3


def test_a_damaged_file_among_others_is_one_line(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(3):
        parquet.write_table(table(2), tmp_path / "set" / f"{number}.parquet")
    data = (tmp_path / "set" / "1.parquet").read_bytes()
    (tmp_path / "set" / "1.parquet").write_bytes(data[: len(data) // 2])
    report, refused = sources.made(tmp_path / "set", tmp_path / "out")
    assert report.written == 4 and [(line["file"], line["record"]) for line in refused] == [("1.parquet", 3)]


def test_bad_rows_and_fields_that_a_shard_has_no_place_for(tmp_path):
    data = table(3, thumb=[b"abc"] * 3).to_pylist()
    data[1]["image"] = {"bytes": b"no picture", "path": None}
    data[2]["caption"] = None
    parquet.write_table(arrow.Table.from_pylist(data), tmp_path / "p.parquet")
    report, refused = sources.made(tmp_path / "p.parquet", tmp_path / "out")
    assert [(line["record"], line["reason"]) for line in refused] == [(2, "wrong_media_type"), (3, "missing_key")]
    assert report.passed == {"thumb": 1}


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    parquet.write_table(table(2), tmp_path / "p.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow") as caught:
        sources.made(tmp_path / "p.parquet", tmp_path / "out")
    assert "mmtune[parquet]" in caught.value.hint


def test_a_large_file_is_read_in_little_memory(tmp_path):
    """Rows of a quarter of a megabyte each, 200 in one group, are not held at once."""
    from mmtune.data.convert import columns

    rows = arrow.table({"image": [bytes(1 << 18)] * 200})
    how = {"use_dictionary": False, "write_batch_size": 1, "compression": "none"}  # or all are one page of the file
    parquet.write_table(rows, tmp_path / "p.parquet", **how)
    del rows
    arrow.default_memory_pool().release_unused()
    before = arrow.total_allocated_bytes()
    with (tmp_path / "p.parquet").open("rb") as file:
        most = max(arrow.total_allocated_bytes() for _ in columns.read(file, columns.Start()))
    assert most - before < 25 << 20


def test_a_field_that_means_something_is_refused_or_left_out(tmp_path):
    """Bytes of a mask are not dropped in silence: they say which part of the picture is meant."""
    parquet.write_table(table(3, mask=[b"abc"] * 3), tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="has mask: a part of a picture"):
        sources.made(tmp_path / "p.parquet", tmp_path / "out", format="caption")
    assert sources.lines(tmp_path / "out")[0]["try"] == "--ignore FIELD leaves it out"
    report, _ = sources.made(tmp_path / "p.parquet", tmp_path / "out", ignore=("mask",))
    assert report.written == 3 and not report.passed


def test_a_selection_of_rows_is_not_taken_for_all_of_them(tmp_path):
    saved(tmp_path / "set", table(3))
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match=r"/set\b") as caught:
        sources.made(tmp_path / "set", tmp_path / "out")
    assert "flatten_indices" in caught.value.hint
