"""Point clouds: every format gives the same points, and whatever is damaged is refused by name."""

import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.errors import MediaError, Reason
from mmtune.media import Limits, load, sniff
from mmtune.media._cloud import Gate
from mmtune.media._pcd import unpack
from mmtune.types import MediaRef

RNG = np.random.default_rng(5)
PLACES = RNG.normal(size=(40, 3)).round(4).astype(np.float32)
COLOURS = RNG.integers(0, 256, (40, 3)).astype(np.uint8)
WANT = np.concatenate([PLACES, COLOURS / np.float32(255)], 1)
NAMES = ("x", "y", "z", "red", "green", "blue")
TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int", "u2": "ushort"}


def read(data: bytes, limits: Limits | None = None):
    return load(MediaRef("points", data, "item"), limits=limits)


def records(order: str = "<") -> np.ndarray:
    table = np.empty(40, [(n, f"{order}f4") for n in NAMES[:3]] + [(n, "u1") for n in NAMES[3:]])
    for i, name in enumerate(NAMES):
        table[name] = PLACES[:, i] if i < 3 else COLOURS[:, i - 3]
    return table


def text(table: np.ndarray, gap: str = " ") -> bytes:
    return "".join(gap.join(f"{v:.9g}" for v in row) + "\n" for row in table.tolist()).encode()


def ply(table: np.ndarray, form: str = "binary_little_endian", more: str = "", behind: bytes = b"", eol: str = "\n"):
    head = ["ply", f"format {form} 1.0", "comment made here", f"element vertex {len(table)}"]
    head += [f"property {TYPES[table.dtype[name].str[1:]]} {name}" for name in table.dtype.names]
    head += [more] if more else []
    return eol.join([*head, "end_header", ""]).encode() + (text(table) if form == "ascii" else table.tobytes()) + behind


def pack(data: bytes) -> bytes:
    """LZF that repeats where the last 3 bytes came before."""
    out, at, seen, plain = bytearray(), 0, {}, bytearray()

    def flush():
        for i in range(0, len(plain), 32):
            piece = plain[i : i + 32]
            out.extend(bytes([len(piece) - 1]) + piece)
        plain.clear()

    while at < len(data):
        key = data[at : at + 3]
        before = seen.get(key, -1)
        seen[key] = at
        if len(key) == 3 and before >= 0 and at - before <= 8192:
            length = 3
            while length < 264 and at + length < len(data) and data[before + length] == data[at + length]:
                length += 1
            flush()
            back, extra = at - before - 1, length - 2
            out.extend([min(extra, 7) << 5 | back >> 8] + ([extra - 7] if extra >= 7 else []) + [back & 255])
            at += length
        else:
            plain.append(data[at])
            at += 1
    flush()
    return bytes(out)


def pcd(form: str) -> bytes:
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    head += "WIDTH 40\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 40\n" + f"DATA {form}\n"
    bits = COLOURS.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    columns = [*PLACES.T, bits.astype(np.uint32).view(np.float32)]
    if form == "ascii":
        return head.encode() + text(np.stack(columns, 1))
    if form == "binary":
        return head.encode() + np.stack(columns, 1).astype("<f4").tobytes()
    flat = b"".join(np.ascontiguousarray(c, "<f4").tobytes() for c in columns)
    packed = pack(flat)
    return head.encode() + struct.pack("<II", len(packed), len(flat)) + packed


def npy(array: np.ndarray) -> bytes:
    store = io.BytesIO()
    np.save(store, array, allow_pickle=True)
    return store.getvalue()


def npz(compressed: bool = True, **arrays: np.ndarray) -> bytes:
    store = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(store, **arrays)
    return store.getvalue()


ROWS = np.concatenate([PLACES, COLOURS], 1)
GOOD = {
    "ply little": ply(records()),
    "ply big": ply(records(">"), "binary_big_endian"),
    "ply ascii": ply(records(), "ascii"),
    "ply windows": ply(records(), "ascii", eol="\r\n").replace(b"\n", b"\r\n").replace(b"\r\r", b"\r"),
    "ply with faces": ply(
        records(), more="element face 1\nproperty list uchar int vertex_indices", behind=b"\x03" + bytes(12)
    ),
    "ply with faces in text": ply(
        records(), "ascii", "element face 1\nproperty list uchar int vertex_indices", b"3 0 1 2\n"
    ),
    "pcd ascii": pcd("ascii"),
    "pcd binary": pcd("binary"),
    "pcd compressed": pcd("binary_compressed"),
    "npy": npy(ROWS.astype(np.float32)),
    "npy fortran": npy(np.asfortranarray(ROWS.astype(np.float64))),
    "npy structured": npy(records()),
    "npz": npz(points=ROWS, other=np.zeros(3)),
    "npz stored": npz(False, cloud=ROWS),
    "xyz": b"# a scan\n" + text(ROWS),
    "xyz counted": b"40\n" + text(ROWS),
    "csv": text(ROWS, ", "),
    "coff": b"COFF\n40 0 0\n" + text(ROWS),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_the_same_points(name):
    assert sniff(GOOD[name]) == "points"
    media = read(GOOD[name])
    assert media.kind == "points" and media.columns == NAMES
    assert media.data.dtype == torch.float32 and media.data.is_contiguous()
    np.testing.assert_allclose(media.data.numpy(), WANT, rtol=0, atol=1e-6)


def test_off_gives_vertices_and_knows_its_spellings():
    tail = b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    for head in (b"OFF\n3 1 0\n", b"OFF3 1 0\n", b"OFF 3 1 0\n", b"OFF\n# hand made\n\n3 1\n"):
        media = read(head + tail)
        assert media.data.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
        assert media.columns == ("x", "y", "z")


def test_columns_without_names_are_colours_only_where_they_look_it():
    normals = np.concatenate([PLACES, PLACES / np.linalg.norm(PLACES, axis=1, keepdims=True)], 1)
    assert read(npy(normals)).columns == ("x", "y", "z", "", "", "")
    assert read(npy(np.concatenate([PLACES, np.ones((40, 3))], 1))).columns == ("x", "y", "z", "", "", "")
    assert read(npy(np.concatenate([ROWS, PLACES], 1))).columns == (*NAMES, "", "", "")


def test_order_and_spelling_of_columns():
    table = np.empty(40, [("nx", "<f4"), ("z", "<f8"), ("diffuse_red", "<u2"), ("y", "<f4"), ("x", "<f4"),
                          ("diffuse_green", "<u2"), ("diffuse_blue", "<u2")])  # fmt: skip
    for name in table.dtype.names:
        table[name] = PLACES[:, 0]
    for place, name in enumerate(("red", "green", "blue")):
        table[f"diffuse_{name}"] = COLOURS[:, place].astype(np.uint16) * 257
    media = read(ply(table))
    assert media.columns == (*NAMES, "nx")
    np.testing.assert_allclose(media.data[:, 3:6].numpy(), WANT[:, 3:], atol=1e-6)


def change(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


BAD = {
    "more points than data": change(GOOD["ply little"], b"vertex 40", b"vertex 41"),
    "fewer points than data": change(GOOD["ply little"], b"vertex 40", b"vertex 39"),
    "an overflow": change(GOOD["ply little"], b"vertex 40", b"vertex 999999999999999"),
    "a number too long": change(GOOD["ply little"], b"vertex 40", b"vertex " + b"9" * 40),
    "a negative number": change(GOOD["ply little"], b"vertex 40", b"vertex -4"),
    "no points": change(GOOD["ply ascii"], b"vertex 40", b"vertex 0"),
    "text called binary": change(GOOD["ply ascii"], b"format ascii", b"format binary_little_endian"),
    "binary called text": change(GOOD["ply little"], b"format binary_little_endian", b"format ascii"),
    "a list among the points": change(GOOD["ply little"], b"float x", b"list uchar float x"),
    "a type nobody knows": change(GOOD["ply little"], b"float x", b"quad x"),
    "a name twice": change(GOOD["ply little"], b"float y", b"float x"),
    "no z": change(GOOD["ply little"], b"float z", b"float q"),
    "no header end": change(GOOD["ply little"], b"end_header", b"end_of_it"),
    "a fraction for a colour": change(GOOD["ply ascii"], b"uchar red", b"uchar x1").replace(b"float x", b"uchar red"),
    "pcd cut": GOOD["pcd binary"][:-1],
    "pcd compressed cut": GOOD["pcd compressed"][:-1],
    "pcd other sizes": change(GOOD["pcd compressed"], b"POINTS 40", b"POINTS 41"),
    "pcd wide": change(GOOD["pcd binary"], b"WIDTH 40", b"WIDTH 4000000000"),
    "pcd strange": change(GOOD["pcd binary"], b"DATA binary\n", b"DATA zipped\n"),
    "npy of objects": npy(np.array([[1, 2, None]], object)),
    "npy of text": npy(np.array([["1", "2", "3"]])),
    "npy flat": npy(np.zeros(9)),
    "npy narrow": npy(np.zeros((9, 2))),
    "npy cut": GOOD["npy"][:-1],
    "npy long": GOOD["npy"] + b"\0",
    "npz of many": npz(a=ROWS, b=ROWS),
    "npz damaged": GOOD["npz"][:100] + b"\xff\xff" + GOOD["npz"][102:],
    "npz cut": GOOD["npz"][:-10],
    "xyz ragged": b"1 2 3\n4 5\n",
    "xyz words": b"1 2 3\n4 5 six\n",
    "xyz short": b"41\n" + text(ROWS),
    "off short": b"OFF\n41 0 0\n" + text(ROWS),
    "off binary": b"OFF BINARY\n" + bytes(40),
    "far away": npy(PLACES.astype(np.float64) + 5e6),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_refused_by_name(name):
    with pytest.raises(MediaError, match="item") as error:
        read(BAD[name])
    assert error.value.reason in (Reason.unreadable_points, Reason.points_limits)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("limits", [Limits(points=39), Limits(point_values=200), Limits(bytes=200)])
def test_limits(name, limits):
    with pytest.raises(MediaError) as error:
        read(GOOD[name], limits)
    assert error.value.reason == Reason.points_limits or "an array of" in str(error.value)
    assert len(read(GOOD[name], Limits(points=40)).data) == 40


def test_a_claim_allocates_nothing():
    """A header that promises five million points of 4 kB each, over a few bytes."""
    import tracemalloc

    fields = " ".join(f"f{i}" for i in range(8))
    header = (
        f"# .PCD v0.7\nFIELDS x y z {fields}\nSIZE 8 8 8{' 8' * 8}\nTYPE F F F{' F' * 8}\nCOUNT 1 1 1{' 1' * 8}\n"
        "WIDTH 3000000\nHEIGHT 1\nPOINTS 3000000\n"
    ).encode()
    claims = [
        header + b"DATA binary\n" + bytes(64),
        header + b"DATA binary_compressed\n" + struct.pack("<II", 8, 3_000_000 * 88) + bytes(8),
        change(GOOD["ply ascii"], b"vertex 40", b"vertex 4999999"),
        npy(np.zeros((4, 4)))[:128].replace(b"(4, 4)", b"(4999999, 3)") + bytes(64),
    ]
    tracemalloc.start()
    try:
        for claim in claims:
            with pytest.raises(MediaError):
                read(claim)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.integers(1, 40))
def test_unpacking_undoes_packing(data, times):
    data = data * times
    assert unpack(pack(data), len(data), Gate(Limits(), "item")) == data


MAGIC = (
    b"",
    b"ply\n",
    b"# .PCD v0.7\n",
    b"\x93NUMPY\x01\x00",
    b"PK\x03\x04",
    b"OFF\n",
    b"1 2 3\n",
    b"# .PCD\nDATA ascii\n",
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_any_bytes_give_points_or_a_named_error(magic, data):
    try:
        media = read(magic + data)
    except MediaError as error:
        assert error.reason in (Reason.unreadable_points, Reason.wrong_media_type, Reason.points_limits)
    else:
        assert torch.isfinite(media.data).all()


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_change_gives_points_or_a_named_error(name, data):
    sample = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # headers are where the harm is done
        place = data.draw(st.integers(0, min(400, len(sample) - 1)) | st.integers(0, len(sample) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                sample[place] = data.draw(st.integers(0, 255))
            case "cut":
                del sample[place : place + data.draw(st.integers(1, 50))]
            case "insert":
                sample[place:place] = data.draw(st.sampled_from([b"9" * 9, b"\n", b" ", b"-1", b"\0" * 4, b"nan"]))
        if not sample:
            return
    try:
        media = read(bytes(sample))
    except MediaError as error:
        assert error.reason in (Reason.unreadable_points, Reason.wrong_media_type, Reason.points_limits)
    else:
        assert torch.isfinite(media.data).all() and media.data.shape[1] == len(media.columns)


@pytest.mark.parametrize("suffix", ["ply", "pcd", "npy", "xyz", "off"])
def test_shards_know_the_suffix(suffix):
    from mmtune.data._names import SUFFIXES

    assert SUFFIXES[suffix] == "points"
