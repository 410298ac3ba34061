"""Pictures with odd side data load as their plain twins do; those that would cost too much are refused in time."""

import io
import re
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import Limits
from tests.media import make
from tests.media.peaks import load, peaks

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def exif(order: str, *entries: tuple[int, int, int, bytes], turned: int = 6) -> bytes:
    """A TIFF directory with the orientation and further entries (tag, type, count, value of four bytes)."""
    rows = [(0x0112, 3, 1, struct.pack(order + "HH", turned, 0)), *entries]
    body = struct.pack(order + "H", len(rows))
    for tag, kind, count, value in sorted(rows):
        body += struct.pack(order + "HHI", tag, kind, count) + value
    return b"Exif\0\0" + {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + body + bytes(4)


ODD = {
    "two resolutions": (0x011A, 5, 2, b"\0\0\0\x1a"),
    "a resolution that is a text": (0x011A, 2, 9, b"\xff\xff\xff\xff"),
    "a tag behind the end": (0x010E, 2, 5000, b"\0\0\xff\0"),
    "a type that is none": (0x0131, 99, 1, b"abcd"),
    "a count without end": (0x8769, 4, 0xFFFFFFFF, b"\xff\xff\xff\xff"),
    "GPS that loops": (0x8825, 4, 1, b"\0\0\0\x08"),
}


def with_exif(form: str, block: bytes) -> bytes:
    """A picture with an EXIF block put in by hand: a library would mend it."""
    data = make.image(make.picture(), form, **({"quality": 95} if form == "JPEG" else {}))
    if form == "JPEG":
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    if form == "PNG":
        return data[:33] + chunk(b"eXIf", block[6:]) + data[33:]
    return make.image(make.picture(), "WEBP", lossless=True, exif=block)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("entry", ODD.values(), ids=ODD)
def test_a_turned_picture_with_an_odd_tag_comes_out_upright(form, order, entry):
    plain = make.get("image", with_exif(form, exif(order, turned=1))).data
    turned = make.get("image", with_exif(form, exif(order, entry))).data
    assert torch.equal(turned, torch.rot90(plain, -1, (2, 3)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0rubbish"]
)
def test_exif_that_is_none_turns_nothing(form, block):
    assert make.get("image", with_exif(form, b"Exif\0\0" + block)).data.shape == (1, 3, 30, 40)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_way_to_turn(form, turned):
    from PIL import ImageOps

    data = with_exif(form, exif("<", turned=turned))
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(make.get("image", data).data[0].permute(1, 2, 0).numpy(), theirs)


def test_xmp_turns_where_exif_does_not():
    xmp = b'<x tiff:Orientation="6"/>'
    data = make.image(make.picture(), "JPEG")
    body = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    assert make.get("image", data).data.shape == (1, 3, 40, 30)
    png = make.image(make.picture())
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    assert make.get("image", png[:33] + chunk(b"iTXt", text) + png[33:]).data.shape == (1, 3, 40, 30)


MPF = b"MPF\0II*\0\x08\0\0\0"


@pytest.mark.parametrize(
    "header",
    [MPF + b"\x01\0" + struct.pack("<HHII", 0xB002, 7, 900, 0xFFFF), MPF + b"\xff\xff", b"MPF\0", b"MPF\0XX",
     MPF + b"\x02\0" + struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 3)],
)  # fmt: skip
def test_a_damaged_header_of_further_pictures_leaves_the_base(header):
    plain = make.image(make.picture(), "JPEG")
    data = plain[:2] + b"\xff\xe2" + struct.pack(">H", len(header) + 2) + header + plain[2:]
    assert torch.equal(make.get("image", data).data, make.get("image", plain).data)


BIG = zlib.compress(bytes(80 << 20), 9)


@pytest.mark.parametrize(
    ("name", "body"),
    [(b"iCCP", b"profile\0\0" + BIG), (b"zTXt", b"text\0\0" + BIG), (b"iTXt", b"text\0\x01\0\0\0" + BIG),
     (b"zTXt", b"Raw profile type exif\0\0" + BIG), (b"iCCP", b"profile\0\0rubbish"), (b"iTXt", b"no end"),
     (b"tEXt", b"x\0" + bytes(2 << 20)), (b"acTL", b"\0"), (b"pHYs", b"\0\0"), (b"tIME", b""), (b"gAMA", b"")],
)  # fmt: skip
def test_what_a_png_holds_beside_its_pixels_is_not_unpacked(name, body):
    plain = make.image(make.picture())
    data = plain[:33] + chunk(name, body) + plain[33:]
    assert torch.equal(make.get("image", data).data, make.get("image", plain).data)
    damaged = data.replace(chunk(name, body), chunk(name, body)[:-4] + b"sum?")
    assert torch.equal(make.get("image", damaged).data, make.get("image", plain).data)


def test_what_lies_behind_the_end_of_a_png_turns_nothing():
    data = make.image(make.picture())
    assert torch.equal(make.get("image", data + chunk(b"eXIf", exif("<")[6:])).data, make.get("image", data).data)


def test_what_a_library_warns_of_is_noted_and_no_refusal():
    data = bytearray(make.image(Image.fromarray(make.picture()), "TIFF", tiffinfo={282: 72.0, 283: 72.0}))
    place = data.find(struct.pack("<HH", 0x011A, 5))
    struct.pack_into("<I", data, place + 4, 2)  # two resolutions
    media = make.get("image", bytes(data))
    assert np.array_equal(media.data[0].permute(1, 2, 0).numpy(), make.picture())
    assert media.notes == (Note.odd_metadata,) and make.get("image", make.image(make.picture())).notes == ()


def scans(width: int, height: int, more: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = make.image(Image.new("L", (width, height), 128), "JPEG", progressive=True)
    last = [match.start() for match in re.finditer(rb"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * more + data[-2:]


@linux
def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path):
    data = scans(6000, 6000, 2000)
    took, naive = peaks(tmp_path, data, load("image"), "import io; Image.open(io.BytesIO(DATA)).load()", seconds=3)
    assert len(data) < 400_000 and naive[1] >= 3  # the library works until it is stopped
    assert took[1] < 1 and took[0] < 50 and took[2].startswith("too_many_pixels") and "limits.scan_pixels=" in took[2]
    comment = b"\xff\xfe\x00\x04\xff\xd9"  # an end mark that is none
    hidden = re.sub(rb"\xff\xda", comment + b"\xff\xda", scans(600, 600, 300))
    with pytest.raises(MediaError, match="scan_pixels"):
        make.get("image", hidden, Limits(scan_pixels=100 * 600 * 600))
    assert make.get("image", scans(64, 64, 10)).data.shape == (1, 3, 64, 64)


NAIVE = (
    "import io; i = Image.open(io.BytesIO(DATA)); s = i.convert('RGBA'); w = Image.new('RGBA', s.size)\n"
    "numpy.array(Image.alpha_composite(w, s).convert('RGB')).transpose(2, 0, 1).copy()"
)


@linux
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_large_picture_is_never_held_several_times(tmp_path, mode):
    data = make.image(Image.new(mode, (5000, 5000)), "PNG", compress_level=1)
    used, naive = peaks(tmp_path, data, load("image"), NAIVE)
    assert used[2] == naive[2] == "done" and used[0] < 220, used
    assert mode != "RGBA" or naive[0] > 400


@linux
def test_a_tiff_of_millions_of_strips_is_refused_before_they_become_numbers(tmp_path):
    many = 3 << 19
    rows = [(256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, many, 512),
            (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, many, 512)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows)
    data = head + bytes(512 + 4 * many)
    took, naive = peaks(
        tmp_path, data, load("image"), "import io; Image.open(io.BytesIO(DATA), formats=['TIFF']).load()", seconds=3
    )
    assert naive[0] > 100 or naive[1] >= 3, naive
    assert took[0] < 30 and took[2].startswith(Reason.unreadable_image) and "tag 273" in took[2]
