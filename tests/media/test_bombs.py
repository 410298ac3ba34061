"""Small files that promise much: refused before a library believes them. Each takes memory or time where it is read
directly, which is measured too."""

import struct
import sys
import zlib

import pytest
from PIL import Image

from mmtune.errors import MediaError, Reason
from mmtune.media import Limits
from tests.media import make
from tests.media.peaks import load, peaks

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
OPEN = "import io, av; av.open(io.BytesIO(DATA), format='mov').close()"
MANY = 8_000_000


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def full(name: bytes, *numbers: int, flags: int = 0) -> bytes:
    return box(name, struct.pack(f">I{len(numbers)}I", flags, *numbers))


def replaced(data: bytes, name: bytes, new: bytes) -> bytes:
    """An MP4 with the first box `name` exchanged, and the sizes of all boxes around it."""

    def walk(part: bytes) -> tuple[bytes, bool]:
        out, at, done = b"", 0, False
        while at + 8 <= len(part):
            size = struct.unpack_from(">I", part, at)[0]
            one, body = part[at + 4 : at + 8], part[at + 8 : at + size]
            if one == name and not done:
                out, done = out + new, True
            elif one in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts") and not done:
                body, done = walk(body)
                out += box(one, body)
            else:
                out += part[at : at + size]
            at += size
        return out, done

    changed, done = walk(data)
    assert done
    return changed


PLAIN = make.video(4, 16, 16)
ONE = full(b"stsc", 1, 1, MANY, 1)


def tables() -> bytes:
    """Millions of samples of no size in one chunk."""
    data = replaced(PLAIN, b"stsz", full(b"stsz", 1, MANY))
    return replaced(replaced(data, b"stsc", ONE), b"stts", full(b"stts", 1, MANY, 1))


def fragments() -> bytes:
    """A run of millions of samples that all have the usual size."""
    data = make.video(4, 16, 16, muxer={"movflags": "frag_keyframe+empty_moov"})
    start = data.index(b"trun") - 4
    size = struct.unpack_from(">I", data, start)[0]
    run = struct.pack(">IIi", 1, MANY, 0)
    run = run[:8] + run[8:] + bytes(max(0, size - 8 - len(run)))
    return data[: start + 8] + run[: size - 8] + data[start + size :]


def packed() -> bytes:
    """The header of `tables`, packed as old QuickTime films have it."""
    data = tables()
    at = data.index(b"moov") - 4
    moov = data[at : at + struct.unpack_from(">I", data, at)[0]]
    small = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", len(moov)), zlib.compress(moov)))
    return data.replace(moov, box(b"moov", small))


@linux
@pytest.mark.parametrize("bomb", [tables, fragments, packed])
def test_tables_of_millions_of_samples_are_refused_before_the_file_is_opened(tmp_path, bomb):
    data = bomb()
    assert len(data) < 4000
    video, audio, naive = peaks(tmp_path, data, load("video"), load("audio"), OPEN, room=2500, seconds=10)
    assert naive[0] > 150 or naive[2] == "MemoryError", naive
    for took, reason in ((video, Reason.video_limits), (audio, Reason.audio_limits)):
        assert took[0] < 20 and took[1] < 0.5 and took[2].startswith(reason), took
        assert "(limit packets)" in took[2]


def test_what_tables_cannot_hold_is_refused():
    for name, new in (
        (b"stsz", full(b"stsz", 1 << 20, 4)), (b"stts", full(b"stts", 1, MANY, 1)), (b"stsz", full(b"stsz", 0, MANY)),
    ):  # fmt: skip
        with pytest.raises(MediaError, match="its tables promise"):
            make.get("video", replaced(PLAIN, name, new))
    edits = full(b"elst", 60_000, *[0, 0, 1 << 16] * 60_000)
    with pytest.raises(MediaError, match="edits"):
        make.get("video", replaced(make.video(90, 16, 16), b"elst", edits))
    assert make.get("video", PLAIN, Limits(packets=5), frames=2).data.numel()


def test_hours_of_plain_sound_are_no_bomb():
    data = make.sound("pcm_s16le", "mov", 48000, 30.0, "s16")  # more samples than packets may be
    assert make.get("audio", data, Limits(packets=20_000)).data.shape == (1, 480_000)


def growing(width: int, height: int) -> bytes:
    """A clip whose second frame is larger than the first, which is what the header tells of."""
    import io
    from fractions import Fraction

    import av

    store = io.BytesIO()
    with av.open(store, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number, size in enumerate([(64, 64), (width, height), (64, 64), (64, 64)]):
            packet = av.Packet(make.image(Image.new("RGB", size, (9, 9, 9)), "JPEG", quality=30))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 4)
            packet.is_keyframe = True
            container.mux(packet)
    return store.getvalue()


@linux
def test_frames_that_grow_in_the_middle_are_not_decoded(tmp_path):
    data = growing(10_000, 10_000)
    naive = "import io, av; c = av.open(io.BytesIO(DATA), format='avi'); [0 for _ in c.decode(video=0)]"
    took, other = peaks(tmp_path, data, load("video").replace("frames=2", "frames=4"), naive)
    assert other[0] > 100, other
    assert took[0] < 30, took


def test_a_limit_of_pixels_may_be_raised_above_that_of_the_library(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert make.get("image", make.image(make.picture(40, 30))).data.shape == (1, 3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


@linux
def test_a_long_sound_is_held_once(tmp_path):
    """Ten minutes of silence are some hundred kilobytes of FLAC, and 115 MB of samples."""
    data = make.sound("flac", "flac", 48000, 600.0, "s16")
    naive = (
        "import io, av\nc = av.open(io.BytesIO(DATA), format='flac')\n"
        "w = [f.to_ndarray() / numpy.float32(32768) for f in c.decode(audio=0)]\n"
        "w = torch.from_numpy(numpy.concatenate(w, 1))\n"
        "(torch.nn.functional.pad(w, (10, 10)).unfold(1, 300, 255) @ torch.ones(300, 85)).clamp_(-1, 1)"
    )
    took, other = peaks(tmp_path, data, load("audio"), naive)
    assert other[0] > 300 and took[2] == "done" and took[0] < 0.8 * other[0], (took, other)
