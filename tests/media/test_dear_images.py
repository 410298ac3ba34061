"""Pictures that would cost more than their pixels, and what in them is odd but decodes."""

import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import Limits
from tests.media import make
from tests.media.peaks import load, peaks
from tests.media.test_odd_images import chunk

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PICTURE = make.picture()


def tiff(order: str, big: bool, *more: tuple[int, int, int, int], behind: bytes = b"", following: int = 0) -> bytes:
    """PICTURE as a TIFF with further tags (tag, type, count, value)."""
    letter, wide = ("Q", 8) if big else ("I", 4)
    rows = [(256, 3, 1, 40), (257, 3, 1, 30), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0),
            (277, 3, 1, 3), (278, 3, 1, 30), (279, 4, 1, 3600), (284, 3, 1, 1), *more]  # fmt: skip
    start = 16 if big else 8
    end = start + (8 if big else 2) + len(rows) * (20 if big else 12) + wide
    mark = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    body = struct.pack(order + ("Q" if big else "H"), len(rows))
    for tag, kind, count, value in sorted(rows):
        value = end if tag == 273 else value
        held = struct.pack(order + "H", value).ljust(wide, b"\0") if kind == 3 and count == 1 else b""
        body += struct.pack(order + "HH" + letter, tag, kind, count) + (held or struct.pack(order + letter, value))
    return (
        {"<": b"II", ">": b"MM"}[order]
        + mark
        + body
        + struct.pack(order + letter, following)
        + PICTURE.tobytes()
        + behind
    )


def shown(data: bytes) -> np.ndarray:
    return make.get("image", data).data[0].permute(1, 2, 0).numpy()


ODD = {
    "plain": {},
    "a private tag behind the end": {"more": (50_000, 4, 1 << 31, 1 << 30)},
    "a resolution without end": {"more": (282, 5, 1 << 30, 200)},
    "a profile behind the end": {"more": (34675, 7, 5000, 1 << 30)},
    "Exif in itself": {"more": (34665, 4, 1, 8)},
    "a directory that follows itself": {"following": 8},
    "a directory behind the end": {"following": 1 << 30},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_with_odd_tags_is_its_picture(order, big, odd):
    more = [odd["more"]] if "more" in odd else []
    media = make.get("image", tiff(order, big, *more, following=odd.get("following", 0)))
    assert np.array_equal(media.data[0].permute(1, 2, 0).numpy(), PICTURE) and media.notes == ()


@linux
def test_what_nobody_reads_of_a_tiff_takes_no_memory(tmp_path):
    data = tiff("<", False, (282, 5, 1_000_000, 200), behind=bytes(8_000_000))
    naive = "import io; i = Image.open(io.BytesIO(DATA), formats=['TIFF']); i.load()"
    took, other = peaks(tmp_path, data, load("image"), naive, room=1500)
    assert other[0] > 80, other
    assert took[0] < 40 and took[1] < 1 and took[2] == "done", took


def segment(mark: int, body: bytes) -> bytes:
    return b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body


JPEG, PNG, GIF = (make.image(PICTURE, form) for form in ("JPEG", "PNG", "GIF"))
BODY = 13 + 3 * 256
"""Where the blocks of GIF begin."""
PIECES = {
    "notes on colour": JPEG[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\1") * 400_000 + JPEG[2:],
    "tables of nothing": JPEG[:2] + segment(0xC4, b"") * 900_000 + JPEG[2:],
    "remarks": JPEG[:2] + segment(0xFE, b"") * 900_000 + JPEG[2:],
    "chunks of nothing": PNG[:33] + chunk(b"IDAT", b"") * 400_000 + PNG[33:],
    "fill": JPEG[:2] + b"\xff" * 900_000 + JPEG[2:],
    "remarks of a GIF": GIF[:BODY] + b"!\xfe\x01a\0" * 400_000 + GIF[BODY:],
    "a long remark of a GIF": GIF[:BODY] + b"!\xfe" + b"\x01a" * 400_000 + b"\0" + GIF[BODY:],
    "frames": PNG[:33] + chunk(b"fcTL", b"") * 400_000 + PNG[33:],
}


@pytest.mark.parametrize("data", PIECES.values(), ids=PIECES)
def test_a_picture_in_millions_of_pieces_is_refused(data):
    begin = time.process_time()
    with pytest.raises(MediaError, match="more than 100000 pieces") as error:
        make.get("image", data)
    assert error.value.reason == Reason.unreadable_image and time.process_time() - begin < 1.5
    assert make.get("image", JPEG[:2] + segment(0xFE, b"") * 5000 + JPEG[2:]).data.shape == (1, 3, 30, 40)


def test_remarks_of_a_gif_are_left_out():
    assert GIF[10] == 0x87
    data = GIF[:BODY] + b"!\xfe\x01a\0!\x99\x02ab\0!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0" * 100 + GIF[BODY:]
    assert np.array_equal(shown(data), shown(GIF))
    clear = make.image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "GIF")
    at = clear.index(b"!\xf9")
    assert (shown(clear[:at] + b"!\xfe\x01a\0" * 100 + clear[at:]) == 255).all()


def runs(count: int) -> bytes:
    """A BMP in runs of one pixel, which the library unpacks in Python."""
    head = struct.pack("<IiiHHIIiiII", 40, 3000, 3000, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + bytes(1024) + b"\1\1" * count


def test_the_clock_is_looked_at_while_a_picture_is_read():
    begin = time.process_time()
    with pytest.raises(MediaError, match=r"limit wall_seconds"):
        make.get("image", runs(9_000_000), Limits(wall_seconds=0.2))
    assert time.process_time() - begin < 2


def grey(values: list[int], depth: int, kind: int, clear: bytes | None) -> bytes:
    """A PNG of one row of samples of 8 or 16 bits."""
    raw = b"\0" + b"".join(value.to_bytes(depth // 8, "big") for value in values)
    head = struct.pack(">IIBBBBB", len(values) // (3 if kind == 2 else 1), 1, depth, kind, 0, 0, 0)
    side = b"" if clear is None else chunk(b"tRNS", clear)
    body = chunk(b"IHDR", head) + (chunk(b"PLTE", bytes(range(9))) if kind == 3 else b"") + side
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_a_transparent_colour_of_sixteen_bits_is_white():
    data = grey([0, 1000, 1001, 65535], 16, 0, struct.pack(">H", 1000))
    assert shown(data)[0, :, 0].tolist() == [0, 255, 4, 255]
    colour = grey([0, 0, 0, 1000, 2000, 3000, 65535, 0, 0], 16, 2, struct.pack(">HHH", 1000, 2000, 3000))
    assert shown(colour)[0].tolist() == [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    other = grey([51400, 51400, 51400], 16, 2, struct.pack(">HHH", 200, 200, 200))  # 200 of 65535 is nearly black
    assert shown(other)[0].tolist() == [[200, 200, 200]]


@pytest.mark.parametrize(
    ("depth", "kind", "clear"),
    [(16, 0, b""), (16, 0, b"\1"), (8, 0, b"\1"), (8, 2, b"\0\1"), (8, 3, bytes(300)), (16, 0, bytes(50_000))],
)
def test_a_transparent_colour_that_makes_no_sense_is_left_out_and_noted(depth, kind, clear):
    values = [1, 2, 0]
    plain, odd = (make.get("image", grey(values, depth, kind, side)) for side in (None, clear))
    assert np.array_equal(plain.data, odd.data) and plain.notes == () and odd.notes == (Note.odd_metadata,)


def test_a_png_without_its_end_is_noted():
    for cut in (1, 4, 12, 14):
        media = make.get("image", PNG[:-cut])
        assert media.notes == (Note.end_missing,) and np.array_equal(shown(PNG[:-cut]), PICTURE)
    with pytest.raises(MediaError):
        make.get("image", PNG[:-200])


def test_other_formats_are_not_opened():
    for data in (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"P3 2 2 255\n0 0 0 0 0 0 0 0 0 0 0 0\n",
        make.image(PICTURE, "ICO"), make.image(PICTURE, "JPEG2000"), make.image(Image.new("RGB", (8, 8)), "PPM"),
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", b"\0\0\0\x1cftypheic\0\0\0\0heicmif1", b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ):  # fmt: skip
        with pytest.raises(MediaError) as error:
            make.get("image", data)
        assert error.value.reason == Reason.wrong_media_type
