"""Bytes that name other files or addresses. Each attack must work on a naive reader, or the test proves nothing."""

import http.server
import io
import sys
import threading

import av
import pytest

from mmtune.errors import MediaError, Reason
from mmtune.media import _container
from mmtune.media.base import Limits, Sampling
from tests.media import make


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A folder, made the current one, with a film in it that nobody may see."""
    (tmp_path / "secret.mp4").write_bytes(make.video(7))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server():
    """A loopback server that counts who comes."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", hits
        server.shutdown()
        thread.join()


def playlists(place: str) -> dict[str, bytes]:
    return {
        "ffconcat": f"ffconcat version 1.0\nfile '{place}'\n".encode(),
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{place}\n#EXT-X-ENDLIST\n".encode(),
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={place}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n".encode(),
        "dash": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{place}</BaseURL></MPD>'.encode(),
    }


FFCONCAT = playlists("secret.mp4")["ffconcat"]


def naive(data: bytes, **how) -> int:
    """Frames that a reader without walls decodes."""
    with av.open(io.BytesIO(data), **how) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_naive_reader_falls(secret):
    assert naive(FFCONCAT) == 7


@pytest.mark.parametrize("name", playlists("x"))
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_playlists_are_refused_whatever_they_are_declared_as(secret, server, name, kind):
    address, hits = server
    for place in ("secret.mp4", str(secret / "secret.mp4"), f"{address}/x.mp4"):
        with pytest.raises(MediaError) as error:
            make.get(kind, playlists(place)[name])
        assert error.value.reason == Reason.wrong_media_type
    assert hits == []


@pytest.mark.parametrize("name", playlists("x"))
def test_they_are_refused_also_when_the_demuxer_is_left_to_guess(secret, name):
    """As if the format had not been judged from the first bytes."""
    with pytest.raises(av.error.FFmpegError), _container.opened(playlists("secret.mp4")[name], None, make.watch()):
        pass


@pytest.mark.parametrize("wall", _container.walls("mov"))
def test_each_wall_holds_alone(secret, wall):
    with pytest.raises(av.error.FFmpegError):
        naive(FFCONCAT, container_options={wall: _container.walls("mov,matroska,avi")[wall]})
    assert naive((secret / "secret.mp4").read_bytes(), container_options={wall: _container.walls("mov")[wall]}) == 7


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_other_backends_never_see_a_playlist(secret, backend, monkeypatch):
    from mmtune.media import _backends, video

    seen = []
    monkeypatch.setattr(_backends, f"_{backend}", lambda *given: seen.append(given))
    with pytest.raises(MediaError):
        video.decode(FFCONCAT, "mp4", Sampling(), Limits(), "item", backend)
    assert seen == []


def test_a_playlist_behind_an_honest_beginning_opens_nothing(secret):
    for head in (
        b"\x00\x00\x00\x08ftyp",
        b"\x1aE\xdf\xa3",
        b"RIFF\x00\x00\x00\x00AVI ",
        b"GIF89a",
        b"ID3",
        b"OggS",
        b"fLaC",
    ):
        for kind in ("video", "audio"):
            with pytest.raises(MediaError):
                make.get(kind, head + FFCONCAT)


def test_no_file_is_opened_and_no_socket_used_while_decoding(secret):
    """The interpreter reports every file it opens; decoding bytes needs none beside its own modules."""
    data, sound = make.video(4, sound=True), make.wav(make.sine(8000, 0.1), 8000)
    for kind, item in (("video", data), ("audio", data), ("audio", sound), ("image", make.image(make.picture()))):
        make.get(kind, item)  # modules are imported here
    events, watching = [], [True]

    def hook(event: str, arguments: tuple) -> None:
        if watching and event in ("open", "socket.connect", "subprocess.Popen", "os.system"):
            events.append((event, arguments[0]))

    sys.addaudithook(hook)
    try:
        for kind, item in (("video", data), ("audio", data), ("audio", sound), ("image", make.image(make.picture()))):
            make.get(kind, item)
    finally:
        watching.clear()
    assert events == []
