"""Clouds that would cost more than their points: refused, or read at the price of what is there."""

import io
import struct
import sys
import time
import zipfile

import pytest

from mmtune.errors import MediaError, Reason
from mmtune.media import Limits
from tests.media import make
from tests.media.peaks import load, peaks
from tests.media.test_points import npy

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
AXES = "property float x\nproperty float y\nproperty float z\n"
LISTS = AXES + "property list uchar uchar seen\n"


def head(count: int, form: str = "ascii", axes: str = AXES, front: str = "") -> bytes:
    return f"ply\nformat {form} 1.0\n{front}element vertex {count}\n{axes}end_header\n".encode()


PCD = b"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 2\nHEIGHT 1\nDATA ascii\n1 2 3\n"
LONG = "b'1 ' * 4_000_000 + b'\\n'"
TEXTS = {
    "a line without an end": f"b'1 2 3\\n' + {LONG}",
    "a first line without an end": f"b'1 2 3 ' + {LONG}",
    "a first line of semicolons": "b'1;2;3' + b';1' * 2_000_000",
    "a line of commas": "b'1,2,3\\n' + b',' * 6_000_000",
    "words of other libraries": "b'1 2 3\\n' + b'1.#' * 4_000_000",
    "spaces": "b'1 2 3\\n' + b' ' * 60_000_000 + b'\\n4 5 6'",
    "a PLY": f"{head(2)!r} + b'1 2 3\\n' + {LONG}",
    "a PLY with lists": f"{head(2, axes=LISTS)!r} + b'1 2 3 0\\n' + {LONG}",
    "faces in front of a PLY": f"{head(2, front='element face 1' + chr(10))!r} + {LONG} + b'1 2 3\\n' * 2",
    "an OFF": f"b'OFF\\n2 0 0\\n1 2 3\\n' + {LONG}",
    "a PCD": "b'VERSION .7\\nFIELDS x y z\\nSIZE 4 4 4\\nTYPE F F F\\nWIDTH 2\\nHEIGHT 1\\nDATA ascii\\n1 2 3\\n' + "
    + LONG,
}
CHEAP = {
    "lists": f"{head(200_000, axes=LISTS)!r} + b'1 2 3 0\\n1 2 3 1 9\\n' * 100_000",
    "lines behind the points": f"{head(2, axes=LISTS)!r} + b'1 2 3 0\\n' * 2 + b'\\n9' * 5_000_000",
    "a long remark": "b'1 2 3\\n#' + b'#' * 60_000_000 + b'\\n4 5 6\\n'",
}


@linux
def test_text_costs_what_its_points_do(tmp_path):
    codes = [code for text in (*TEXTS.values(), *CHEAP.values()) for code in (f"DATA = {text}", load("points"))]
    took = dict(zip((*TEXTS, *CHEAP), peaks(tmp_path, b"", *codes, room=1500)[1::2], strict=True))
    for name, (used, seconds, said) in took.items():
        assert used < 60 and seconds < 3, (name, used, seconds, said)
        assert said == "done" if name in CHEAP else said.startswith(Reason.unreadable_points), (name, said)
    assert "a line of more than 1048576 bytes" in took["a PLY"][2]


def archive(members: int) -> bytes:
    """An NPZ with so many members besides, as a list of names alone."""
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as file:
        file.writestr("points.npy", npy(make.np.eye(3)))
        file.writestr("0000", b"")
    data = store.getvalue()
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    end = data.index(b"PK\x05\x06")
    entries = data[data.index(b"PK\x01\x02") : at] + data[at:end] * members
    tail = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(entries), data.index(b"PK\x01\x02"), 0)
    return data[: data.index(b"PK\x01\x02")] + entries + tail


def padded() -> bytes:
    """A packed PCD most of which is padding."""
    fields, count = 40, 3000
    lines = f"FIELDS x y z{' _' * fields}\nSIZE{' 1' * (3 + fields)}\nTYPE{' U' * (3 + fields)}\n"
    lines += f"COUNT 1 1 1{' 4096' * fields}\nWIDTH {count}\nHEIGHT 1\nDATA binary_compressed\n"
    whole = count * (3 + fields * 4096)
    body = b"\0\1" + b"\xe0\xff\0" * (whole // 264)
    return b"VERSION .7\n" + lines.encode() + struct.pack("<II", len(body), whole) + body


@linux
def test_what_nobody_reads_is_not_unpacked(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(padded())
    codes = [load("points"), f"DATA = Path({str(path)!r}).read_bytes()", load("points")]
    members, _, padding = peaks(tmp_path, archive(100_000), *codes, room=1500)
    assert members[0] < 60 and members[2].startswith(Reason.unreadable_points), members
    assert padding[0] < 60 and padding[2].startswith(Reason.points_limits), padding


def test_the_clock_is_looked_at_within_a_point():
    lists = AXES + "property list uchar uchar q\n" * 4000
    one = struct.pack("<fff", 1, 2, 3)
    data = head(3000, "binary_little_endian", lists) + one + bytes(4000) + (one + bytes(3999) + b"\1\7") * 2999
    begin = time.process_time()
    with pytest.raises(MediaError, match="wall_seconds"):
        make.get("points", data, Limits(wall_seconds=0.1))
    assert time.process_time() - begin < 2


def test_a_header_of_many_properties_is_read_in_linear_time():
    begin = time.process_time()
    with pytest.raises(MediaError, match="4096"):
        make.get("points", head(1, axes=AXES + "property char q\n" * 16_000) + b"1 2 3" + b" 1" * 16_000)
    assert time.process_time() - begin < 1


def test_remarks_in_front_of_counts_are_read_in_linear_time():
    begin = time.process_time()
    with pytest.raises(MediaError):
        make.get("points", b"OFF\n" + b"# " * 40 + b"x\n1 2 3\n")
    assert make.get("points", b"OFF\n" + b"# # #\n" * 40 + b"1 0 0\n1 2 3\n").data.shape == (1, 3)
    assert time.process_time() - begin < 2


def test_long_remarks_in_a_header_are_stepped_over():
    data = head(2) + b"1 2 3\n4 5 6\n"
    long = b"comment " + b"x" * 400_000 + b"\nobj_info end_header\ncomment end_header\n"
    for mark in (b"element", b"property float y", b"end_header"):
        assert make.get("points", data.replace(mark, long + mark)).data.shape == (2, 3)
