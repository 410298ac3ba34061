"""Bytes are judged by how they begin; a wrong declaration and an unknown format are refused by name."""

import subprocess
import sys

import pytest

from mmtune.errors import ConfigError, MediaError, Reason
from mmtune.media import Limits, Sampling, load, sniff
from mmtune.types import MediaRef
from tests.media import make

PLAYLISTS = {
    "ffconcat": b"ffconcat version 1.0\nfile 'secret.mp4'\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "text": b"just some words\n",
    "html": b"<!DOCTYPE html><html></html>",
    "mpegts": b"\x47\x40\x00\x10" + b"\x00" * 184,
    "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
    "nearly bmp": b"BMW is a car, not a picture",
}


@pytest.fixture(scope="module")
def samples() -> dict[str, tuple[bytes, str]]:
    tone, pixels = make.sine(16000, 0.2), make.picture()
    return {
        **{name: (make.image(pixels, form), "image") for form, name in make.FORMATS.items()},
        "mp4": (make.video(4), "video"),
        "matroska": (make.video(4, form="matroska"), "video"),
        "avi": (make.video(4, codec="mpeg4", form="avi"), "video"),
        "wav": (make.wav(tone), "audio"),
        "flac": (make.sound("flac", "flac", sample="s16"), "audio"),
        "ogg": (make.sound("libopus", "ogg", 48000, sample="flt"), "audio"),
        "mp3": (make.sound("mp3", "mp3"), "audio"),
        "m4a": (make.sound("aac", "ipod"), "audio"),
        "ply": (b"ply\nformat ascii 1.0\n", "points"),
        "npy": (b"\x93NUMPY\x01\x00", "points"),
        "pcd": (b"# .PCD v0.7\n", "points"),
        "off": (b"OFF\n3 1 0\n", "points"),
        "xyz": (b"# made by hand\n1 2 3\n", "points"),
    }


def test_every_format_is_recognised(samples):
    for name, (data, kind) in samples.items():
        assert sniff(data) == kind, name


def test_mp3_without_a_tag_is_recognised():
    assert sniff(b"\xff\xfb\x90\x64" + b"\x00" * 64) == "audio"
    for reserved in (b"\xff\xfb\xf0\x64", b"\xff\xfb\x9c\x64", b"\xff\xeb\x90\x64", b"\xff\xfe\x00\x00"):
        with pytest.raises(MediaError):
            sniff(reserved + b"\x00" * 64)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_unknown_bytes_are_refused(name):
    with pytest.raises(MediaError) as error:
        sniff(PLAYLISTS[name])
    assert error.value.reason == Reason.wrong_media_type
    for kind in ("image", "video", "audio", "points"):
        with pytest.raises(MediaError) as error:
            make.get(kind, PLAYLISTS[name])
        assert error.value.reason == Reason.wrong_media_type


def test_a_wrong_declaration_is_refused_and_says_what_it_is(samples):
    films = {"video", "audio"}
    allowed = {"gif": {"image", "video"}, "mp4": films, "m4a": films, "matroska": films, "avi": films}
    tried = 0
    for name, (data, kind) in samples.items():
        for other in {"image", "video", "audio"} - allowed.get(name, {kind}):
            with pytest.raises(MediaError) as error:
                make.get(other, data)
            assert error.value.reason == Reason.wrong_media_type
            assert name in str(error.value) and "item" in str(error.value)
            tried += 1
    assert tried > 25


@pytest.mark.parametrize("kind", ["image", "video", "audio", "points"])
def test_nothing_is_unreadable(kind):
    with pytest.raises(MediaError) as error:
        make.get(kind, b"")
    assert error.value.reason == f"unreadable_{kind}"


def test_a_path_is_read_and_its_size_judged_first(tmp_path):
    path = tmp_path / "no_suffix"
    path.write_bytes(make.image(make.picture()))
    assert load(MediaRef("image", path, "here")).data.shape == (1, 3, 30, 40)
    with pytest.raises(MediaError, match=r"at most 10 \(limit bytes\)"):
        load(MediaRef("image", path, "here"), limits=Limits(bytes=10))
    with pytest.raises(MediaError) as error:
        load(MediaRef("video", tmp_path / "absent", "there"))
    assert error.value.reason == Reason.unreadable_video


@pytest.mark.parametrize(
    "bad", [{"frames": 0}, {"rule": "best"}, {"rule": "fps"}, {"rate": 16}, {"seconds": 0.0}, {"side": 0}]
)
def test_senseless_sampling_is_refused(bad):
    with pytest.raises(ConfigError):
        Sampling(**bad)


def test_asking_for_a_sampling_imports_no_decoder():
    code = (
        "import sys; from mmtune.media import Limits, Sampling, load, sniff; "
        "print(*{'torch', 'av', 'PIL', 'numpy', 'decord', 'torchcodec', 'torchaudio'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_decoding_imports_no_backend_that_is_not_used(samples):
    code = (
        "import sys, pathlib; from mmtune.media import load; from mmtune.types import MediaRef; "
        "load(MediaRef('video', sys.stdin.buffer.read(), 'x')); "
        "print(*{'decord', 'torchcodec', 'torchaudio', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=samples["mp4"][0], capture_output=True, check=True)
    assert done.stdout == b"\n"
