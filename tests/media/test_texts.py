"""Texts beside a sound or film, each looked up among all before it by the library: taken out, or counted first."""

import io
import struct
import time

import av
import pytest
import torch

from mmtune.errors import MediaError
from mmtune.media import _tags
from tests.media import make

NAMES = [b"name%06d" % number for number in range(100_000)]
COMMENTS = struct.pack("<II", 0, len(NAMES)) + b"".join(struct.pack("<I", 12) + name + b"=v" for name in NAMES)


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def element(name: str, body: bytes) -> bytes:
    return bytes.fromhex(name) + (1 << 56 | len(body)).to_bytes(8, "big") + body


INFO = riff(b"LIST", b"INFO" + b"".join(b"%04x" % n + b"\2\0\0\0v\0" for n in range(65536)))
ID3 = b"".join(b"TXXX" + struct.pack(">I", 14) + b"\0\0\0" + name + b"\0v" for name in NAMES[:60000])
ID3 = b"ID3\3\0\0" + bytes(len(ID3) >> shift & 127 for shift in (21, 14, 7, 0)) + ID3


def sounds() -> dict[str, tuple[bytes, bytes]]:
    """What to a plain sound is added, and where it stays one."""
    flac, wav = make.sound("flac", "flac", 16000, 0.5, "s16"), make.wav(make.sine(16000, 0.5))
    end = 42 if not flac[4] & 0x80 else None
    assert end
    block = b"\x04" + len(COMMENTS).to_bytes(3, "big") + COMMENTS
    return {
        "flac": (flac, flac[:end] + block + flac[end:]),
        "wav before": (wav, wav[:12] + INFO + wav[12:]),
        "wav after": (wav, wav + INFO),
        "wav id3": (wav, wav[:12] + riff(b"id3 ", ID3 + bytes(len(ID3) & 1)) + wav[12:]),
    }


@pytest.mark.parametrize("which", ["flac", "wav before", "wav after", "wav id3"])
def test_texts_are_taken_out(which):
    plain, texts = sounds()[which]
    begin = time.process_time()
    media = make.get("audio", texts)
    assert time.process_time() - begin < 3
    assert torch.equal(media.data, make.get("audio", plain).data) and media.notes == ()


def in_moov(data: bytes, more: bytes) -> bytes:
    at = data.index(b"moov") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    return data[:at] + struct.pack(">I", size + len(more)) + data[at + 4 : at + size] + more + data[at + size :]


def in_ogg(data: bytes, packet: bytes) -> bytes:
    """With another second packet, in pages of their own. Their sums are not right, which is not looked at."""
    second = data.index(b"OggS", 4)
    third, pages, table = data.index(b"OggS", second + 4), b"", [255] * (len(packet) // 255) + [len(packet) % 255]
    for first in range(0, len(table), 255):
        part = table[first : first + 255]
        body, packet = packet[: sum(part)], packet[sum(part) :]
        pages += data[second : second + 5] + bytes([bool(first)]) + data[second + 6 : second + 26]
        pages += bytes([len(part), *part]) + body
    return data[:second] + pages + data[third:]


def films() -> dict[str, bytes]:
    mp4, avi = make.video(4, sound=True), make.video(4, form="avi", codec="mpeg4")
    ogg = make.sound("libopus", "ogg", 48000, 0.5, "flt")
    handler = box(b"hdlr", bytes(8) + b"mdir" + bytes(13))
    free = [box(b"mean", bytes(5)) + box(b"name", bytes(4) + n) + box(b"data", bytes(9)) for n in NAMES[:20000]]
    items = box(b"ilst", b"".join(box(b"----", one) for one in free))
    keys = box(b"keys", struct.pack(">II", 0, 20000) + b"".join(box(b"mdta", name) for name in NAMES[:20000]))
    tags = b"".join(element("67c8", element("45a3", name) + element("4487", b"v")) for name in NAMES[:20000])
    return {
        "mp4 items": in_moov(mp4, box(b"udta", box(b"meta", bytes(4) + handler + items))),
        "mp4 keys": in_moov(mp4, box(b"meta", handler + keys)),
        "mp4 encrypted": in_moov(mp4, box(b"pssh", bytes(24)) * 2000),
        "avi": avi[:12] + INFO + avi[12:],
        "matroska": make.video(4, form="matroska") + element("1254c367", element("7373", tags)),
        "ogg opus": in_ogg(ogg, b"OpusTags" + COMMENTS),
        "ogg vorbis": in_ogg(ogg, b"\x03vorbis" + COMMENTS),
        "ogg flac": in_ogg(ogg.replace(b"OpusHead", b"\x7fFLAC\1\0\0"), b"\x84" + bytes(3) + COMMENTS),
    }


@pytest.mark.parametrize("which", ["mp4 items", "mp4 keys", "mp4 encrypted", "avi", "matroska", "ogg opus",
                                   "ogg vorbis", "ogg flac"])  # fmt: skip
def test_more_texts_than_anybody_writes_are_refused_before_a_library_reads_them(which):
    for kind in ("audio",) if "ogg" in which else ("video", "audio"):
        with pytest.raises(MediaError, match=f"texts beside the media\nexpected: at most {_tags.MOST}"):
            make.get(kind, films()[which])


@pytest.mark.parametrize(
    ("form", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("ogg", "libopus"), ("avi", "mp3"), ("flac", "flac")]
)
def test_a_file_with_some_texts_is_read(form, codec):
    store = io.BytesIO()
    with av.open(store, "w", format=form) as container:
        container.metadata.update(
            {f"name{number}": "text" * 9000 for number in range(20)} | {"title": "A", "artist": "B"}
        )
        stream = container.add_stream(codec, rate=48000, layout="mono")
        kind = {"flac": "s16", "libopus": "flt"}.get(codec, "fltp")
        values = make.sine(48000, 1.0)[None]
        frame = av.AudioFrame.from_ndarray(
            values if kind != "s16" else (values * 32767).astype("int16"), format=kind, layout="mono"
        )
        frame.sample_rate = 48000
        fifo = av.AudioFifo()
        fifo.write(frame)
        while block := fifo.read(stream.codec_context.frame_size or 960, partial=True):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    media = make.get("audio", store.getvalue())
    assert abs(media.data.shape[1] - 16000) < 1600 and media.notes == ()
