"""Pictures: one RGB convention for every mode, limits from the header, damage refused."""

import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.errors import MediaError, Reason
from mmtune.media.base import Limits
from tests.media import make


def pixels(data: bytes, **sampling) -> np.ndarray:
    """uint8 [height,width,3]"""
    media = make.get("image", data, **sampling)
    assert media.data.dtype == torch.uint8 and media.data.shape[:2] == (1, 3) and media.data.is_contiguous()
    return media.data[0].permute(1, 2, 0).numpy()


def refused(data: bytes, limits: Limits | None = None) -> MediaError:
    with pytest.raises(MediaError) as error:
        make.get("image", data, limits)
    return error.value


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(form):
    assert np.array_equal(pixels(make.image(make.picture(), form)), make.picture())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_near(form):
    how = {"quality": 95} if form != "GIF" else {}
    assert np.abs(pixels(make.image(make.picture(), form, **how)).astype(int) - make.picture()).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_come_out_upright(orientation):
    # Stored pixels that, turned as the tag says, give the picture.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = Image.fromarray(make.picture())
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(make.image(stored, exif=exif.tobytes())), make.picture())


def test_transparency_lies_over_white():
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 51))
    assert pixels(make.image(red)).tolist() == [[[255, 0, 0], [255, 204, 204]]]
    grey = Image.new("LA", (2, 1), (100, 255))
    grey.putpixel((1, 0), (100, 0))
    assert pixels(make.image(grey)).tolist() == [[[100] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(make.image(palette, transparency=1)).tolist() == [[[10, 20, 30], [255] * 3]]
    keyed = Image.new("RGB", (1, 1), (9, 9, 9))
    assert pixels(make.image(keyed, transparency=(9, 9, 9))).tolist() == [[[255] * 3]]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, 0)
    for data in (make.image(Image.fromarray(ramp)), make.image(Image.fromarray(ramp), "TIFF")):
        assert np.array_equal(pixels(data)[0, :, 0], np.arange(256))


def test_float_and_wide_integers_take_the_smallest_range_that_holds_them():
    half = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert pixels(make.image(half, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    wide = Image.fromarray(np.array([[0, 65535]], np.int32))
    assert pixels(make.image(wide, "TIFF"))[0, :, 0].tolist() == [0, 255]
    for bad in ([[0.0, np.nan]], [[-1.0, 0.5]], [[0.0, np.inf]]):
        assert "values from" in str(refused(make.image(Image.fromarray(np.array(bad, np.float32)), "TIFF")))


def test_other_modes():
    assert pixels(make.image(Image.new("1", (2, 2), 1))).min() == 255
    assert pixels(make.image(Image.new("L", (2, 2), 77))).max() == 77
    assert np.abs(pixels(make.image(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4] - [255, 0, 0]).max() < 9


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_many(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = make.image(
        frames[0], form, save_all=True, append_images=frames[1:], **{"lossless": True} if form == "WEBP" else {}
    )
    assert pixels(data)[0, 0].tolist() == [250, 0, 0]


def _huge_png(width: int, height: int) -> bytes:
    """A 1-bit PNG whose rows compress to next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 7) // 8 + 1) * 64, 9)  # far too few rows: nobody should get so far
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8000, 8000), (13_300, 13_300), (60_000, 60_000)])
def test_a_bomb_is_refused_from_its_header(size):
    begin = time.process_time()
    error = refused(_huge_png(*size))
    assert error.reason == Reason.too_many_pixels
    assert time.process_time() - begin < 0.5


BOMBS = """
import resource, sys
from pathlib import Path
from mmtune.errors import MediaError
from tests.media import make

small = make.get("image", make.image(make.picture()))  # whatever a first picture loads is loaded
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for name in sys.argv[1:]:
    try:
        make.get("image", Path(name).read_bytes())
    except MediaError as error:
        print(error.reason)
"""


BOMB_FORMS = [("PNG", {"compress_level": 1}), ("TIFF", {"compression": "packbits"}), ("GIF", {}), ("JPEG", {}),
              ("WEBP", {"quality": 0, "method": 0})]  # fmt: skip


@pytest.mark.parametrize(
    ("chunk", "how"),
    [(b"VP8L", {"lossless": True}), (b"VP8 ", {"quality": 50}), (b"VP8X", {"xmp": b"<x/>"})],
)
def test_the_size_of_a_webp_is_in_its_first_chunk(chunk, how):
    data = make.image(make.picture(61, 37), "WEBP", **how)
    assert data[12:16] == chunk
    with pytest.raises(MediaError, match="61 x 37 pixels") as caught:
        make.get("image", data[:40], Limits(image_pixels=61 * 37 - 1))
    assert caught.value.reason == Reason.too_many_pixels


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_whole_bombs_take_no_memory(tmp_path):
    """Pictures that would decode, to 430 MB and more, in a process that gets 64 MB beyond what it has."""
    names = []
    for form, how in BOMB_FORMS:
        names.append(tmp_path / f"bomb{len(names)}.{form}")
        names[-1].write_bytes(make.image(Image.new("L", (12_000, 12_000)), form, **how))
    child = subprocess.run([sys.executable, "-c", BOMBS, *names], env={**os.environ, "PYTHONPATH": os.getcwd()},
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["too_many_pixels"] * len(names)


def test_the_limit_counts_pixels():
    data = make.image(make.picture(40, 30))
    assert make.get("image", data, Limits(image_pixels=1200)).data.shape[2:] == (30, 40)
    assert refused(data, Limits(image_pixels=1199)).reason == Reason.too_many_pixels


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_truncation_is_refused(form):
    data = make.image(make.picture(64, 48), form)
    whole = pixels(data)
    accepted = []
    for cut in range(1, len(data), max(1, len(data) // 60)):
        try:
            got = pixels(data[:cut])
        except MediaError as error:
            assert error.reason in (Reason.unreadable_image, Reason.wrong_media_type)
        else:
            accepted.append(cut)
            assert np.array_equal(got, whole), f"cut at {cut} of {len(data)} gives other pixels"
    assert len(accepted) <= 3  # only trailing marks and tags may be missing


def test_damage_never_escapes_as_another_exception():
    generator = np.random.default_rng(0)
    for form in make.FORMATS:
        data = make.image(make.picture(), form)
        for _ in range(40):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 3):
                damaged[place] = generator.integers(0, 256)
            try:
                pixels(bytes(damaged))
            except MediaError as error:
                assert "0x" not in str(error)


def test_a_small_side_decodes_a_jpeg_at_reduced_scale_and_only_when_asked():
    data = make.image(make.picture(640, 480), "JPEG", quality=95)
    assert pixels(data).shape == (480, 640, 3)
    small = pixels(data, side=100)
    assert small.shape == (120, 160, 3)
    blocks = pixels(data).reshape(120, 4, 160, 4, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 2
    assert pixels(data, side=300).shape == (480, 640, 3)
    assert pixels(make.image(make.picture(640, 480)), side=100).shape == (480, 640, 3)
