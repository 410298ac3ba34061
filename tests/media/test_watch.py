"""What a library builds while it reads a film or sound is bounded in every container, by memory and by the clock."""

import struct
import sys

import pytest

from mmtune.errors import MediaError
from mmtune.media import Limits, audio
from tests.media import make, matroska
from tests.media.peaks import load, peaks
from tests.media.test_bombs import box, full, replaced

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
OPEN = "import io, av; av.open(io.BytesIO(DATA), format={!r}).close()"
MANY = 900_000


def parts(data: bytes, name: bytes) -> tuple[bytes, bytes, bytes]:
    """An MP4 in front of its first box of a name, the inside of this box, and what is behind it."""
    at = data.index(name) - 4
    end = at + struct.unpack_from(">I", data, at)[0]
    return data[:at], data[at + 8 : end], data[end:]


def fragments(pieces: bytes) -> bytes:
    """A film of 901 tracks, whose fragments cost the library a place in a table for each."""
    data = make.video(4, 16, 16, muxer={"movflags": "frag_keyframe+empty_moov"})
    before, moov, behind = parts(data, b"moov")
    return before + box(b"moov", moov, box(b"trak") * 900) + pieces + behind


def references() -> bytes:
    head = struct.pack(">5I2H", 0, 1, 1, 0, 0, 0, 60_000)
    return box(b"sidx", head, struct.pack(">3I", 1, 1, 0) * 60_000)


def tracks() -> bytes:
    """Two hundred tracks with as many samples as one may have."""
    data = replaced(make.video(4, 16, 16), b"stsz", full(b"stsz", 1, MANY))
    data = replaced(replaced(data, b"stsc", full(b"stsc", 1, 1, MANY, 1)), b"stts", full(b"stts", 1, MANY, 1))
    before, moov, behind = parts(data, b"moov")
    head, track, rest = parts(moov, b"trak")
    return before + behind + box(b"free", bytes(MANY)) + box(b"moov", head, box(b"trak", track) * 200, rest)


@linux
def test_tables_that_multiply_are_refused_before_the_file_is_opened(tmp_path):
    bombs = [fragments(box(b"moof") * 100_000), fragments(references()), tracks()]
    assert max(map(len, bombs)) < 1_200_000
    ours, naive, at = list[str](), list[str](), 0
    for bomb in bombs:
        place = f"DATA[{at}:{at + len(bomb)}]"
        ours += [load(kind).replace("DATA", place) for kind in ("video", "audio")]
        naive.append(OPEN.format("mov").replace("DATA", place))
        at += len(bomb)
    told = peaks(tmp_path, b"".join(bombs), *ours, *naive, room=800, seconds=2)
    assert min(told[-3][0], told[-2][0]) > 700 and told[-1][2] == "killed", told[-3:]
    for took, kind in zip(told[:-3], ("video", "audio") * 3, strict=True):
        assert took[0] < 20 and took[1] < 0.5 and took[2].startswith(f"{kind}_limits"), took
        assert "(limit packets)" in took[2]


@linux
def test_a_small_sound_of_many_streams_is_not_opened(tmp_path):
    data = matroska.ogg_streams(900)
    assert len(data) < 120_000
    took, naive = peaks(tmp_path, data, load("audio"), OPEN.format("ogg"))
    assert naive[0] > 150, naive
    assert took[0] < 30 and "at most 256 streams" in took[2], took


@linux
def test_packets_of_a_film_are_not_all_held(tmp_path):
    """Each takes several hundred bytes beside its own."""
    data = matroska.film(*[matroska.cluster(300 * time, 1 << 14, b"\x10") for time in range(20)])
    assert len(data) < 400_000
    held = "import io, av; c = av.open(io.BytesIO(DATA), format='matroska'); list(c.demux(video=0))"
    took, naive = peaks(tmp_path, data, load("video").replace("frames=2)", "frames=2), Limits(packets=300_000)"), held)
    assert naive[0] > 80, naive
    assert took[0] < 50 and "(limit packets)" in took[2], took


ATTACHMENTS = matroska.film(matroska.element("1941a469", bytes.fromhex("61a780") * 3_000_000), matroska.cluster(0, 1))


@linux
def test_memory_is_looked_at_while_a_library_opens_a_file(tmp_path):
    """Attachments without anything in them take 80 bytes each, and three bytes in the file."""
    codes = [load(kind).replace("frames=2)", "frames=2), Limits(memory=50 << 20)") for kind in ("video", "audio")]
    *told, naive = peaks(tmp_path, ATTACHMENTS, *codes, OPEN.format("matroska"))
    assert naive[0] > 150, naive
    for took, kind in zip(told, ("video", "audio"), strict=True):
        assert took[0] < 90 and "(limit memory)" in took[2] and took[2].startswith(f"{kind}_limits"), took


def test_the_clock_is_looked_at_while_a_library_opens_a_file():
    for kind in ("video", "audio"):
        with pytest.raises(MediaError, match="reading and decoding took") as error:
            make.get(kind, ATTACHMENTS, Limits(wall_seconds=0.01))
        assert error.value.reason == f"{kind}_limits" and "(limit wall_seconds)" in error.value.expected


@linux
def test_frames_that_a_decoder_keeps_count(tmp_path):
    """A small film may tell the decoder to keep sixteen large frames."""
    options = {"preset": "ultrafast", "x264-params": "ref=16:keyint=40:scenecut=0", "crf": "50"}
    data = make.video(20, 2400, 1200, options=options)
    code = load("video").replace("frames=2)", "frames=2), Limits(memory=40 << 20)")
    took, free = peaks(tmp_path, data, code, load("video"))
    assert free[2] == "done" and free[0] > 90, free
    assert "(limit memory)" in took[2] and took[0] < 80, took


def test_what_is_kept_of_an_item_is_no_fault_of_it():
    limits = Limits(memory=16 << 20)
    assert make.get("audio", make.sound("flac", "flac", 48000, 200.0, "s16"), limits).data.shape[1] == 3_200_000
    film = make.video(30, 640, 480, options={"preset": "ultrafast"})
    assert make.get("video", film, limits, frames=120).data.shape[0] == 120


@pytest.mark.parametrize("codec", ["flac", "alac"])
def test_a_frame_of_sound_has_a_most_of_samples(codec, monkeypatch):
    data = make.sound(codec, "flac" if codec == "flac" else "mp4", 16000, 2.0, "s16" if codec == "flac" else "s16p")
    assert make.get("audio", data).data.shape == (1, 32_000)
    monkeypatch.setattr(audio, "_FRAME", 1000)
    with pytest.raises(MediaError) as error:
        make.get("audio", data)
    assert error.value.reason == "unreadable_audio"
    assert make.get("audio", make.wav(make.sine(16000, 2.0))).data.shape == (1, 32_000)
