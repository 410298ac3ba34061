"""Sounds of recorders, streams and calls: open headers, torn beginnings, and silence where nothing was sent."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import Limits, _ogg, sniff
from tests.media import make

OPEN = {
    "zero": (0, 0),
    "arecord": (0x80000024, 0x80000000),
    "sox": (0x7FFFFFFF, 0x7FFFFFFF - 36),
    "ffmpeg": (0xFFFFFFFF, 0xFFFFFFFF),
    "blocks": (0x7FFFFFFF, 0x7FFFFFFC),
    "file zero": (0, 0xFFFFFFFF),
}


def piped(values: np.ndarray, whole: int, data: int, rf64: bool = False) -> bytes:
    plain = bytearray(make.wav(values))
    struct.pack_into("<I", plain, 4, whole)
    struct.pack_into("<I", plain, 40, data)
    if rf64:
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, 0, 0, 0, 0)
        return b"RF64" + bytes(plain[4:12]) + ds64 + bytes(plain[12:])
    return bytes(plain)


@pytest.mark.parametrize("rf64", [False, True])
@pytest.mark.parametrize(("whole", "data"), OPEN.values(), ids=OPEN)
def test_a_wav_written_into_a_pipe_is_read_to_its_end(whole, data, rf64):
    values = make.sine(16000, 0.5)
    media = make.get("audio", piped(values, whole, data, rf64))
    assert torch.equal(media.data, make.get("audio", make.wav(values)).data)
    assert media.notes == (Note.open_length,)


def test_a_wav_that_lacks_what_it_promises_is_still_damaged():
    data = make.wav(make.sine(16000, 0.5))
    with pytest.raises(MediaError, match="bytes of 16000"):
        make.get("audio", data[:8000])
    assert make.get("audio", data).notes == ()
    wrong = bytearray(data)
    struct.pack_into("<I", wrong, 4, 12)  # the size of the file is not needed
    assert make.get("audio", bytes(wrong)).data.shape == (1, 8000)


def id3(size: int, footer: bool = False) -> bytes:
    head = bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    return b"ID3\x04\0" + bytes([0x10 * footer]) + head + bytes(size) + (b"3DI\x04\0\x10" + head) * footer


CODED = [("flac", "flac", "s16"), ("libopus", "ogg", "flt"), ("mp3", "mp3", "fltp")]
BEHIND = [*CODED, ("aac", "ipod", "fltp"), ("pcm_s16le", "wav", "s16")]
TAGS = {"": id3(300), "cover": id3(200_000), "footer": id3(77, footer=True), "many": id3(10) + id3(20) * 30}


@pytest.mark.parametrize(("codec", "form", "sample"), BEHIND)
@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_a_sound_behind_tags(codec, form, sample, tag):
    data = make.sound(codec, form, 48000, 0.5, sample)
    media = make.get("audio", tag + data)
    assert torch.equal(media.data, make.get("audio", data).data) and media.notes == ()
    assert sniff((tag + data)[:65536]) == "audio"


MP3 = make.sound("mp3", "mp3", 16000, 2.0)


@pytest.mark.parametrize(("codec", "form", "sample"), [*CODED, ("pcm_s16le", "wav", "s16")])
@pytest.mark.parametrize("front", [id3(50) + bytes(999), bytes(100_000)], ids=["tag", "no tag"])
def test_a_sound_behind_zero_bytes(codec, form, sample, front):
    data = make.sound(codec, form, 48000, 0.5, sample)
    media = make.get("audio", front + data)
    assert torch.equal(media.data, make.get("audio", data).data) and media.notes == (Note.junk_skipped,)


@pytest.mark.parametrize("wrong", [-30, -3, 3, 30])
def test_a_tag_that_is_not_as_long_as_it_says(wrong):
    tag = bytearray(id3(100))
    tag[9] += wrong
    for codec, form, sample in CODED[:2]:
        data = make.sound(codec, form, 48000, 0.5, sample)
        assert torch.equal(make.get("audio", bytes(tag) + data).data, make.get("audio", data).data)


@pytest.mark.parametrize("front", [bytes(100), bytes(5000), b"\0" * 7 + id3(50), id3(50) + bytes(999)])
def test_mp3_behind_zero_bytes(front):
    media = make.get("audio", front + MP3)
    assert torch.equal(media.data, make.get("audio", MP3).data) and media.notes == (Note.junk_skipped,)


@pytest.mark.parametrize("cut", [1, 2, 100, 143, 500, 1001])
def test_mp3_cut_out_of_a_stream(cut):
    media = make.get("audio", MP3[cut + 200 :])
    assert 1.7 < media.data.shape[1] / 16000 < 2.1
    spectrum = torch.fft.rfft(media.data[0, 8000:24000]).abs()
    assert spectrum.argmax() == 440


def test_what_is_no_mp3_is_not_taken_for_one():
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    for data in (noise, bytes(100_000), b"\xff\xfb\x90\x00" * 3000, b"#!/bin/sh\n" + MP3[:200]):
        with pytest.raises(MediaError):
            make.get("audio", data)


# ------------------------------------------------------------------------------------------------- nothing was sent


def call(form: str, silences: list[tuple[float, float]], seconds: float = 6.0, codec: str = "libopus", late: float = 0,
         pictures: bool = False, first: float = 0, options: dict | None = None) -> bytes:  # fmt: skip
    """A tone whose packets inside `silences` are never sent, beginning `late` seconds into the file, and pictures that
    begin `first` seconds into it."""
    store = io.BytesIO()
    with av.open(store, "w", format=form, container_options=options or {}) as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        coder = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(form, "libx264")
        film = container.add_stream(coder, rate=4) if pictures else None
        if film:
            film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
            for number in range(int(seconds * 4)):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number + round(first * 4), Fraction(1, 4)
                container.mux(film.encode(frame))
            container.mux(film.encode(None))
        kind = "flt" if codec == "libopus" else "fltp"
        frame = av.AudioFrame.from_ndarray(make.sine(48000, seconds)[None], format=kind, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        fifo, packets = av.AudioFifo(), []
        fifo.write(frame)
        while block := fifo.read(stream.codec_context.frame_size or 960, partial=True):
            packets += stream.encode(block)
        for packet in [*packets, *stream.encode(None)]:
            at = float(packet.pts * packet.time_base)
            packet.pts += round(late / packet.time_base)
            packet.dts = packet.pts
            if not any(low <= at < high for low, high in silences):
                container.mux(packet)
    return store.getvalue()


def loud(media, begin: float, end: float) -> float:
    return float(media.data[0, int(begin * 16000) : int(end * 16000)].abs().max())


FORMS = [(form, "libopus") for form in ("webm", "mp4", "ogg", "matroska")] + [("mp4", "aac"), ("matroska", "aac")]


@pytest.mark.parametrize(("form", "codec"), FORMS)
def test_there_is_silence_where_nothing_was_sent(form, codec):
    # inside a page of OGG, which is one second here, a file does not say where the gap is
    short = (4.0, 4.5) if form != "ogg" else (5.0, 5.0)
    media = make.get("audio", call(form, [(1.0, 3.0), short], codec=codec))
    assert abs(media.data.shape[1] / 16000 - 6.0) < 0.1 and media.notes == (Note.gaps_filled,)
    for begin, end in ((0.1, 0.9), (3.1, 3.9), (4.6, 5.8)):
        assert loud(media, begin, end) > 0.4
    for begin, end in ((1.1, 2.9), (short[0] + 0.1, short[1] - 0.1)):
        assert begin >= end or loud(media, begin, end) < 0.02


@pytest.mark.parametrize(("form", "codec"), FORMS)
def test_a_part_of_it_is_where_the_clock_says(form, codec):
    data = call(form, [(1.0, 3.0)], codec=codec)
    for begin, end in ((2.5, 3.5), (3.5, 4.5), (0.5, 1.5)):
        media = make.clip("audio", data, begin, end)
        assert media.data.shape[1] == 16000
        for at in np.arange(0, 1, 0.25):
            silent = 1.0 < begin + at + 0.125 < 3.0
            assert (loud(media, at + 0.06, at + 0.19) < 0.02) == silent, (begin, at)
    assert make.get("audio", data, seconds=2.0).data.shape[1] == 32000
    assert loud(make.get("audio", data, seconds=2.0), 1.1, 2.0) < 0.02


def test_pages_of_one_packet_and_of_many_last_as_long():
    one, many = (call("ogg", [(1.0, 3.0)], options={"page_duration": str(size)}) for size in (1, 5_000_000))
    left, right = make.get("audio", one), make.get("audio", many)
    assert abs(left.data.shape[1] - right.data.shape[1]) < 1600
    assert loud(left, 0.1, 0.9) > 0.4 and loud(left, 1.1, 2.9) < 0.02 and loud(left, 3.1, 5.9) > 0.4
    assert loud(right, 3.1, 5.9) > 0.4


def test_in_a_page_silence_follows_the_packet_that_announces_it():
    page = _ogg.Page(48000 + 960 * 5, [(60, 960), (60, 960), (1, 960), (60, 960), (60, 960)])
    starts = _ogg.starts([page])
    assert [start for _, start in starts] == [0, 960, 1920, 2880 + 48000, 3840 + 48000]


@pytest.mark.parametrize("form", ["webm", "mp4", "matroska"])
def test_nothing_sent_at_either_end(form):
    media = make.get("audio", call(form, [], seconds=3.0, late=1.5))
    assert abs(media.data.shape[1] / 16000 - 4.5) < 0.1
    assert loud(media, 0, 1.4) == 0 and loud(media, 1.6, 4.4) > 0.4


@pytest.mark.parametrize("form", ["webm", "mp4"])
def test_a_sound_that_begins_later_than_its_pictures(form):
    data = call(form, [], seconds=4.0, late=2.0, pictures=True)
    media = make.get("audio", data)
    assert loud(media, 0, 1.9) < 0.02 and loud(media, 2.1, 3.9) > 0.4
    part = make.clip("audio", data, 1.0, 3.0)
    assert loud(part, 0, 0.9) < 0.02 and loud(part, 1.1, 1.9) > 0.4


@pytest.mark.parametrize(("form", "codec"), [("matroska", "libopus"), ("mp4", "aac")])
def test_a_sound_that_begins_before_its_pictures_begins_with_them(form, codec):
    """Whole, in part and cut short alike: its zero is the first frame, and nothing is made up at its end."""
    data = call(form, [(2.5, 3.0)], codec=codec, seconds=4.0, pictures=True, first=1.0)
    media = make.get("audio", data)
    assert Note.sound_before_pictures in media.notes
    assert abs(media.data.shape[1] / 16000 - 3.0) < 0.1
    assert loud(media, 1.55, 1.95) < 0.02 and loud(media, 0, 1.4) > 0.4 and loud(media, 2.1, 2.9) > 0.4
    assert make.get("audio", data, seconds=2.0).data.shape[1] == 32000
    part = make.clip("audio", data, 0.0, 2.0)
    assert torch.equal(part.data, media.data[:, :32000])


def test_a_piece_of_a_longer_film_has_no_silence_at_its_end():
    data = call("webm", [], seconds=3.0, late=5.0, pictures=True, first=5.0)
    media = make.get("audio", data)
    assert abs(media.data.shape[1] / 16000 - 3.0) < 0.1 and media.notes == ()


@pytest.mark.parametrize("size", [100_000, 200_000, 1_000_000])
def test_the_packet_behind_a_long_gap_closes_a_page_of_ogg(size):
    data = call("ogg", [(1.36, 3.0), (4.27, 5.9)], seconds=7.0, options={"page_duration": str(size)})
    media = make.get("audio", data)
    for begin, end in ((0.1, 1.3), (3.1, 4.2), (6.0, 6.9)):
        for at in np.arange(begin, end - 0.1, 0.1):
            assert loud(media, at, at + 0.1) > 0.4, (at, begin)
    for begin, end in ((1.5, 2.9), (4.4, 5.8)):
        assert loud(media, begin, end) < 0.02


def test_a_gap_in_front_of_a_full_page_stays_there():
    pages = [_ogg.Page(4800 * n, [(60, 960)] * 5) for n in (1, 2)] + [_ogg.Page(4800 * 3 + 48000, [(60, 960)] * 5)]
    assert [start for _, start in _ogg.starts(pages)][10:12] == [9600 + 48000, 9600 + 48960]


def test_an_avi_that_is_there_to_its_end_is_not_damaged_whatever_it_promises():
    data = bytearray(call("avi", [], codec="mp3", seconds=3.0, pictures=True))
    at = data.index(b"auds") + 32  # dwLength, as of a sound that begins late
    struct.pack_into("<I", data, at, 2 * struct.unpack_from("<I", data, at)[0])
    assert abs(make.get("audio", bytes(data)).data.shape[1] / 16000 - 3.0) < 0.1
    with pytest.raises(MediaError, match="limit complete"):
        make.get("audio", bytes(data[: len(data) * 2 // 3]))


def test_silence_counts_against_the_limits_and_takes_no_memory_before():
    data = call("webm", [], seconds=0.5)
    stamped = bytearray(call("webm", [(0.2, 30.0)], seconds=30.5))
    with pytest.raises(MediaError) as error:
        make.get("audio", bytes(stamped), Limits(audio_seconds=10.0))
    assert error.value.reason == Reason.audio_limits and "limits.audio_seconds=" in str(error.value)
    assert make.get("audio", data).notes == ()


def test_jitter_of_a_live_recorder_is_no_gap():
    store, generator = io.BytesIO(), np.random.default_rng(0)
    with av.open(store, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(make.sine(48000, 3.0)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        fifo, packets = av.AudioFifo(), []
        fifo.write(frame)
        while block := fifo.read(960, partial=True):
            packets += stream.encode(block)
        for packet in packets:
            packet.pts = packet.dts = packet.pts + int(generator.integers(0, 480))
            container.mux(packet)
    media = make.get("audio", store.getvalue())
    assert media.notes == () and abs(media.data.shape[1] / 16000 - 3.0) < 0.05


def test_pages_of_nothing_but_empty_packets_are_not_listed():
    data = call("ogg", [], seconds=0.5)
    page = data[:5] + b"\0" + data[6:26] + b"\xff" + bytes(255)
    assert _ogg.opus_starts(data + page * 5000) == [] != _ogg.opus_starts(data + page * 10)


def test_packets_count_against_the_limits():
    with pytest.raises(MediaError, match="limit packets") as error:
        make.get("audio", call("webm", [], seconds=1.0), Limits(packets=20))
    assert error.value.reason == Reason.audio_limits
