"""Parquet and Arrow files that promise too much are read in a process that is bound, and cost the rest nothing."""

import io
import os
import time

import pytest

from mmtune.data.convert import rows
from mmtune.errors import DataError, UsageError
from tests.data import sources, tars

arrow = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def ended():
    yield
    rows.close()


def stream(table):
    data = io.BytesIO()
    with ipc.new_stream(data, table.schema) as writer:
        writer.write_table(table)
    data.seek(0)
    return data


def pictures(count, **more):
    names = [str(number) for number in range(count)]
    return arrow.table({"image": [tars.PNG] * count, "caption": names, **more})


def many(values, each=1 << 20):
    """Two rows: a list of nothing, and one of many times the same long text, which is stored once."""
    text = arrow.array(["x" * each])
    places = arrow.DictionaryArray.from_arrays(arrow.array([0] * values, arrow.int32()), text)
    return arrow.ListArray.from_arrays(arrow.array([0, 0, values], arrow.int32()), places)


def test_a_row_that_unpacks_to_too_much_is_one_line(tmp_path, monkeypatch):
    """A megabyte becomes a gigabyte of Python's texts."""
    monkeypatch.setattr(rows, "MEMORY", 512 << 20)
    (tmp_path / "d.arrow").write_bytes(stream(pictures(2, more=many(1000))).getvalue())
    began = time.monotonic()
    report, refused = sources.made(tmp_path / "d.arrow", tmp_path / "out")
    assert report.written == 1 and time.monotonic() - began < 60
    assert [(line["record"], "memory" in line["message"]) for line in refused] == [(2, True)]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no limit of memory there")
def test_the_memory_of_this_process_is_not_touched(monkeypatch):
    import resource

    monkeypatch.setattr(rows, "MEMORY", 512 << 20)
    file = stream(pictures(2, more=many(1000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(rows.read(file, 0, 1, 2))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 100 << 10
    assert [raw.fault is None for raw in found] == [True, False]


def test_a_page_of_zeros_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(rows, "MEMORY", 64 << 20)
    data = io.BytesIO()
    table = pictures(2, more=[bytes(100 << 20)] * 2)
    parquet.write_table(table, data, compression="zstd", use_dictionary=False, write_batch_size=2)
    assert len(data.getvalue()) < 1 << 20
    found = list(rows.read(data, 0, 5, 2))
    assert [(raw.number, raw.fault is None) for raw in found] == [(5, False), (6, False)]
    again = io.BytesIO()
    parquet.write_table(pictures(2), again)
    assert [raw.row["caption"] for raw in rows.read(again, 0, 1, 2)] == ["0", "1"], "the next file is read"


def test_a_row_that_is_too_deep_is_one_line():
    kind, value = arrow.int64(), 1
    for _ in range(63):
        kind, value = arrow.struct([("a", kind)]), {"a": value}
    found = list(rows.read(stream(pictures(3, more=arrow.array([None, value, None], kind))), 0, 1, 3))
    assert [(raw.number, raw.fault is None) for raw in found] == [(1, True), (2, False), (3, True)]


def test_what_takes_too_long_is_ended_and_every_row_has_a_line(monkeypatch):
    file = stream(pictures(4, more=arrow.array([None, ["y"], None, None])))
    assert all(raw.fault is None for raw in rows.read(file, 0, 1, 4))
    process = rows._readers[os.getpid()].child.process
    monkeypatch.setattr(rows, "SECONDS", 0.0)
    found = list(rows.read(file, 0, 1, 4))
    assert [(raw.number, "longer than 0 s" in raw.fault.seen) for raw in found] == [(n, True) for n in (1, 2, 3, 4)]
    assert process.poll() is not None, "the process that hangs is gone"


def test_promised_rows_are_held_against_the_file():
    """Pieces are cut by this number before anything is read."""
    ends = arrow.RunEndEncodedArray.from_arrays(arrow.array([2**31 - 2], arrow.int64()), arrow.array(["a"]))
    with pytest.raises(DataError, match="promises 2147483646 rows in"):
        rows.count(stream(arrow.table({"caption": ends})), "x")


def test_a_file_that_breaks_off_has_a_line_for_each_row(tmp_path):
    data = io.BytesIO()
    parquet.write_table(pictures(40), data, row_group_size=10, compression="none", use_dictionary=False)
    raw = bytearray(data.getvalue())
    start = raw.index(b"PNG", len(raw) // 2)
    raw[start - 200 : start - 100] = bytes(100)
    (tmp_path / "p.parquet").write_bytes(raw)
    report, refused = sources.made(tmp_path / "p.parquet", tmp_path / "out")
    assert report.written >= 20 and report.written + len(refused) == 40
    assert [line["record"] for line in refused] == sorted({line["record"] for line in refused})


def test_two_columns_of_one_name_are_refused(tmp_path):
    """The last of them counted, without a word."""
    batch = arrow.record_batch([arrow.array([tars.PNG]), arrow.array(["a"]), arrow.array(["b"])],
                               names=["image", "caption", "caption"])  # fmt: skip
    (tmp_path / "d.arrow").write_bytes(stream(arrow.Table.from_batches([batch])).getvalue())
    with pytest.raises(UsageError, match="caption, caption"):
        sources.made(tmp_path / "d.arrow", tmp_path / "out")
