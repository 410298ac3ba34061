"""Clouds as scanners, networks and other tools write them: the points that are there, and a note of what was not."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import Limits
from tests.media import make
from tests.media.test_points import COLOURS, PLACES, npy, ply, text


def read(data: bytes, limits: Limits | None = None):
    media = make.get("points", data, limits)
    assert torch.isfinite(media.data).all()
    return media


def table(**columns: np.ndarray) -> np.ndarray:
    """x, y and z of the forty points, with further columns."""
    columns = {name: PLACES[:, i] for i, name in enumerate("xyz")} | columns
    rows = np.empty(40, [(name, np.asarray(values).dtype.newbyteorder("<")) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    return rows


def pcd(rows: np.ndarray, form: str, wide: int = 8) -> bytes:
    names, kinds = rows.dtype.names, [rows.dtype[name] for name in rows.dtype.names]
    head = f"VERSION .7\nFIELDS {' '.join(names)}\nSIZE {' '.join(str(k.itemsize) for k in kinds)}\n"
    head += f"TYPE {' '.join(k.kind.upper() for k in kinds)}\nCOUNT {' '.join('1' for _ in kinds)}\n"
    head += f"WIDTH {wide}\nHEIGHT {len(rows) // wide}\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(rows)}\nDATA {form}\n"
    return head.encode() + (text(rows) if form == "ascii" else rows.tobytes())


def bad(column: np.ndarray, value: float = np.nan, rows=slice(None)) -> np.ndarray:
    column = column.astype(np.float32).copy()
    column[rows] = value
    return column


WRITERS = {
    "ply ascii": lambda rows: ply(rows, "ascii"),
    "ply binary": ply,
    "pcd ascii": lambda rows: pcd(rows, "ascii"),
    "pcd binary": lambda rows: pcd(rows, "binary"),
    "npy": npy,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)], ids=["all", "one"])
def test_a_field_that_nobody_reads_may_hold_anything(write, value, rows):
    media = read(write(table(quality=bad(PLACES[:, 0], value, rows), nx=PLACES[:, 1])))
    assert media.columns == ("x", "y", "z", "nx") and media.notes == (Note.columns_left_out,)
    np.testing.assert_allclose(media.data[:, :3], PLACES, atol=1e-6)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_points_without_a_place_are_left_out_and_noted(write):
    holes = np.arange(40) % 3 == 0
    rows = table(x=bad(PLACES[:, 0], rows=holes), red=COLOURS[:, 0], green=COLOURS[:, 1], blue=COLOURS[:, 2])
    media = read(write(rows))
    assert media.notes == (Note.points_left_out,) and media.columns[:6] == ("x", "y", "z", "red", "green", "blue")
    np.testing.assert_allclose(media.data[:, :3], PLACES[~holes], atol=1e-6)
    np.testing.assert_allclose(media.data[:, 3:6], COLOURS[~holes] / 255, atol=1e-6)


def test_an_organised_cloud_with_packed_colours():
    holes = np.arange(40) % 4 == 0
    packed = (COLOURS[:, 0].astype("<u4") << 16 | COLOURS[:, 1].astype("<u4") << 8 | COLOURS[:, 2]).view("<f4").copy()
    packed[holes] = np.nan
    axes = {name: bad(PLACES[:, i], rows=holes) for i, name in enumerate("xyz")}
    for form in ("binary", "ascii"):
        media = read(pcd(table(**axes, rgb=packed), form))
        assert len(media.data) == 30 and media.columns == ("x", "y", "z", "red", "green", "blue")
        np.testing.assert_allclose(media.data[:, 3:], COLOURS[~holes] / 255, atol=1e-6)


def test_a_cloud_with_no_point_at_all_is_refused():
    for write in WRITERS.values():
        with pytest.raises(MediaError, match="none with finite x, y and z") as error:
            read(write(table(z=bad(PLACES[:, 2]))))
        assert error.value.reason == Reason.unreadable_points


def test_text_with_holes():
    media = read(b"nan nan nan\n1 2 3\n4 5 6\nNaN 1 2\n")
    assert media.data.tolist() == [[1, 2, 3], [4, 5, 6]] and media.notes == (Note.points_left_out,)


@pytest.mark.parametrize("word", ["-nan(ind)", "NaN(0x1)", "1.#QNAN", "-1.#IND00", "1.#INF"])
def test_what_other_libraries_write_for_no_number(word):
    rows = "".join(f"{x} {y} {z} {word}\n" for x, y, z in PLACES.tolist())
    head = "ply\nformat ascii 1.0\nelement vertex 40\n"
    head += "".join(f"property float {name}\n" for name in ("x", "y", "z", "scalar")) + "end_header\n"
    for data in (head + rows, rows) if "#" not in word else (head + rows,):
        media = read(data.encode())
        assert np.array_equal(media.data, PLACES) and media.notes == (Note.columns_left_out,)


def test_text_behind_a_byte_order_mark():
    assert read(b"\xef\xbb\xbf1 2 3\n4 5 6\n").data.tolist() == [[1, 2, 3], [4, 5, 6]]


# ------------------------------------------------------------------------------------------------------ PLY lists


def with_lists(order: str, lengths: list[int], where: str) -> bytes:
    """Forty points with a list of whole numbers, in the middle of each or as an element of their own in front."""
    form = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    inside = where == "inside"
    listed = "property list uchar int seen\n"
    axes = "".join(f"property float {name}\n" for name in "xyz")
    points = f"element vertex 40\nproperty float x\n{listed if inside else ''}{axes[17:]}property uchar red\n"
    front = f"element face 40\nproperty float q\n{listed}" if not inside else ""
    body = b""
    lines: list[list] = []
    for row, length in zip(PLACES, lengths, strict=True):
        values = list(range(length))
        if inside:
            lines.append(
                [("f", row[0]), ("B", length), *[("i", v) for v in values], ("f", row[1]), ("f", row[2]), ("B", 7)]
            )
        else:
            lines.append([("f", 0.5), ("B", length), *[("i", v) for v in values]])
    if not inside:
        lines += [[("f", row[0]), ("f", row[1]), ("f", row[2]), ("B", 7)] for row in PLACES]
    for line in lines:
        body += (
            b" ".join(f"{v:.9g}".encode() for _, v in line) + b"\n"
            if not order
            else b"".join(struct.pack(order + kind, v) for kind, v in line)
        )
    return f"ply\nformat {form} 1.0\n{front}{points}end_header\n".encode() + body


@pytest.mark.parametrize("where", ["inside", "in front"])
@pytest.mark.parametrize("order", ["<", ">", ""])
@pytest.mark.parametrize("lengths", [[2] * 40, [n % 5 for n in range(40)], [0] * 40], ids=["same", "other", "none"])
def test_lists_are_stepped_over(where, order, lengths):
    media = read(with_lists(order, lengths, where))
    assert media.columns == ("x", "y", "z", "red") and media.data[:, 3].tolist() == [7.0] * 40
    np.testing.assert_allclose(media.data[:, :3], PLACES, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ""])
@pytest.mark.parametrize("where", ["inside", "in front"])
def test_damaged_lists_are_refused(order, where):
    data = with_lists(order, [n % 5 for n in range(40)], where)
    with pytest.raises(MediaError) as error:
        read(data[: len(data) - 60])
    assert error.value.reason == Reason.unreadable_points


def test_a_name_twice_beside_the_place():
    media = read(ply(table(a=PLACES[:, 0], b=PLACES[:, 1])).replace(b"float b\n", b"float a\n"))
    assert media.columns == ("x", "y", "z", "alpha") and media.data.shape == (40, 4)


# ---------------------------------------------------------------------------------------------------------- arrays


def test_arrays_of_networks_are_turned():
    many = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    for array in (many.T, many.T[None], np.asfortranarray(many.T), many[None]):
        assert np.array_equal(read(npy(array)).data, many)
    for few in (3, 5):
        assert np.array_equal(read(npy(many[:, :few].T.copy())).data, many[:, :few])
    assert read(npy(PLACES[:3])).data.shape == (3, 3)


@pytest.mark.parametrize("shape", [(3, 10), (3, 4), (3, 63), (6, 40), (4, 30), (10, 500)])
def test_what_may_be_either_is_refused_and_says_so(shape):
    with pytest.raises(MediaError, match=r"\[values,points\]") as error:
        read(npy(np.ones(shape, np.float32)))
    assert error.value.hint == "store it transposed"


@pytest.mark.parametrize("shape", [(30,), (5, 40, 3), (0, 3)])
def test_arrays_that_are_no_cloud_are_refused(shape):
    with pytest.raises(MediaError) as error:
        read(npy(np.ones(shape, np.float32)))
    assert error.value.reason == Reason.unreadable_points and str(list(shape))[1:-1].split(",")[0] in str(error.value)


def test_structured_arrays_with_groups_and_texts():
    rows = np.zeros(
        40, [("xyz", "<f4", (3,)), ("label", "U8"), ("rgb", "u1", (3,)), ("ok", "?"), ("feature", "<f4", (2,))]
    )
    rows["xyz"], rows["rgb"] = PLACES, COLOURS
    media = read(npy(rows))
    assert media.columns == ("x", "y", "z", "red", "green", "blue", "feature_0", "feature_1")
    np.testing.assert_allclose(media.data[:, :6], np.concatenate([PLACES, COLOURS / 255], 1), atol=1e-6)


def test_an_archive_is_read_for_its_points_alone():
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        archive.writestr("labels.npy", npy(np.array([None, {}], object)))
        archive.writestr("xyz.npy", npy(PLACES))
        archive.writestr("../../readme.txt", "nobody reads this")
    assert np.array_equal(read(store.getvalue()).data, PLACES)
