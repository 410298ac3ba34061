"""Video: the right frames at the right times, the same from every backend, damage and excess refused."""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmtune.errors import MediaError, Reason
from mmtune.media import _backends, _gops, _packets, video
from mmtune.media._container import opened, promised_seconds
from mmtune.media._packets import Packets
from mmtune.media.base import Limits, Sampling, frame_times, load
from mmtune.types import MediaRef
from tests.media import make

MAKES = {
    "h264 mp4": {},
    "h264 mp4 short groups": {"options": {"bf": "3", "g": "5"}},
    "h264 mp4 open groups": {"options": {"x264-params": "open-gop=1:keyint=6:bframes=3"}},
    "h264 mkv rolling refresh": {"form": "matroska", "options": {"x264-params": "intra-refresh=1:keyint=8"}},
    "h264 mp4 in fragments": {"options": {"g": "4"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264 mkv": {"form": "matroska"},
    "h264 avi, reordered": {"form": "avi"},
    "h265 mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=7"}},
    "vp9 webm": {"codec": "libvpx-vp9", "form": "webm"},
    "vp8 webm with hidden frames": {
        "codec": "libvpx",
        "form": "webm",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "mpeg4 avi": {"codec": "mpeg4", "form": "avi"},
    "mpeg4 mp4, reordered": {"codec": "mpeg4", "options": {"bf": "2", "g": "6"}},
    "mjpeg avi": {"codec": "mjpeg", "form": "avi", "pixel": "yuvj420p"},
    "h264 10 bits": {"pixel": "yuv420p10le"},
    "h264 odd size": {"pixel": "yuv444p", "width": 65, "height": 49},
}
FRAMES = 24
OTHERS = [name for name, problem in video.available().items() if name != "pyav" and not problem]


def by(backend: str, data: bytes, name: str = "mp4", **sampling):
    return video.decode(data, name, Sampling(**sampling), Limits(), "item", backend)


def refused(data: bytes, limits: Limits | None = None, **sampling) -> MediaError:
    with pytest.raises(MediaError) as error:
        make.get("video", data, limits, **sampling)
    return error.value


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    return {name: make.video(FRAMES, **how) for name, how in MAKES.items()}


@pytest.mark.parametrize("rule", ["uniform", "first", "video_llama"])
def test_moments_are_the_times_of_what_is_shown(clips, rule):
    sampling = Sampling(frames=5, rule=rule)
    for data in clips.values():
        ref = MediaRef("video", data, "item")
        assert frame_times(ref, sampling) == load(ref, sampling).times.tolist()
    with pytest.raises(MediaError, match="item: 3 bytes|bytes that begin"):
        frame_times(MediaRef("video", b"abc", "item"), sampling)


@pytest.mark.parametrize("name", MAKES)
def test_every_frame_comes_at_its_time(clips, name):
    media = make.get("video", clips[name], frames=FRAMES)
    assert media.data.dtype == torch.uint8 and media.data.is_contiguous()
    assert make.numbers(media) == list(range(FRAMES))
    assert torch.allclose(media.times, torch.arange(FRAMES).double() / 8, atol=1e-3)


@pytest.mark.parametrize("name", MAKES)
def test_planned_frames_equal_decoding_everything(clips, name):
    everything = make.get("video", clips[name], frames=FRAMES).data
    for frames in (1, 3, 5, 8):
        media = make.get("video", clips[name], frames=frames)
        assert make.numbers(media) == [(2 * i + 1) * FRAMES // (2 * frames) for i in range(frames)]
        assert torch.equal(media.data, everything[make.numbers(media)])


@pytest.mark.parametrize("name", MAKES)
def test_packets_that_are_read_again_give_the_same_frames(clips, name, monkeypatch):
    kept = [make.get("video", clips[name], frames=frames) for frames in (3, 40)]
    monkeypatch.setattr(_packets, "_FEW", 2)
    for media in kept:
        again = make.get("video", clips[name], frames=len(media.data))
        assert torch.equal(again.data, media.data) and torch.equal(again.times, media.times)


def test_the_plan_leaves_packets_out(clips):
    """Without this the plan could be correct by decoding everything."""
    with opened(clips["h264 mp4 short groups"], "mp4", make.watch()) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        stamps = sorted(packet.pts for packet in packets)
        split = _gops.nal_splitter(stream.codec_context.extradata)
        known = Packets(packets, lambda: nullcontext(iter(packets)), "h264", split)
        spans = _gops.spans(known.pts, known.enters, {stamps[12]}, "h264")
        needed = [p for run in known.parts(spans) for p in run if _gops.needed(p, {stamps[12]}, split)]
    assert len(packets) == FRAMES and 1 <= len(needed) <= 5


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
@pytest.mark.parametrize("name", ["h264 mp4", "h264 mp4 short groups", "h264 mkv", "mpeg4 avi", "vp9 webm"])
def test_backends_show_the_same_frames(clips, name, backend):
    if backend not in OTHERS:
        pytest.skip(f"{backend}: {video.available()[backend]}")
    container = {"mp4": "mp4", "mkv": "matroska", "avi": "avi", "webm": "matroska"}[name.split()[1]]
    for sampling in ({"frames": 5}, {"frames": 3, "rule": "middle"}, {"rule": "fps", "fps": 2.0}, {"frames": 40}):
        ours, theirs = by("pyav", clips[name], container, **sampling), by(backend, clips[name], container, **sampling)
        assert torch.equal(ours.times, theirs.times)
        assert make.numbers(ours) == make.numbers(theirs)
        assert (ours.data.int() - theirs.data.int()).abs().float().mean() < 2


def test_a_film_whose_packets_are_not_kept_is_looked_at_before_a_backend_has_it(clips, monkeypatch):
    monkeypatch.setattr(_packets, "_FEW", 2)
    for data, trait in ((clips["h264 mp4"], ""), (make.rotated(clips["h264 mp4"], 0, 1, -1, 0), "a rotated clip")):
        with video._open(data, "mp4", Limits(), "a film") as clip:
            assert video._peculiar(clip) == trait


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_a_backend_is_not_used_where_it_would_show_something_else(clips, backend):
    if backend not in OTHERS:
        pytest.skip(f"{backend}: {video.available()[backend]}")
    with pytest.raises(MediaError, match="rotated"):
        by(backend, make.rotated(clips["h264 mp4"], 0, 1, -1, 0))
    if backend == "decord":
        with pytest.raises(MediaError, match="frames, not"):
            by(backend, _trimmed(clips["h264 mp4"]))


def test_the_next_backend_is_tried_and_all_reasons_are_told(clips, monkeypatch):
    def broken(*_):
        raise OSError("libfoo.so is missing")

    monkeypatch.setattr(video, "_pyav", broken)
    for reader in ("_torchcodec", "_decord"):
        monkeypatch.setattr(_backends, reader, lambda *_: (_ for _ in ()).throw(ImportError("absent")))
    error = refused(clips["h264 mp4"])
    assert error.reason == Reason.unreadable_video
    assert "libfoo" in str(error) and "torchcodec" in str(error) and "decord" in str(error)
    monkeypatch.undo()
    monkeypatch.setattr(video, "_pyav", broken)
    if OTHERS:
        assert make.numbers(make.get("video", clips["h264 mp4"], frames=FRAMES)) == list(range(FRAMES))


@pytest.mark.parametrize(
    # The last frame stays as long as the one before (MP4 muxer) or for one nominal frame (Matroska).
    ("form", "expected"),
    [("mp4", [2, 4, 4, 6, 6, 7]), ("matroska", [2, 4, 4, 4, 6, 6])],
)
def test_variable_rate_is_sampled_by_time(form, expected):
    times = [0, 10, 20, 500, 510, 2000, 2010, 3000]
    media = make.get("video", make.video(8, times=times, form=form), frames=6)
    assert make.numbers(media) == expected
    assert media.times.tolist() == [times[index] / 1000 for index in expected]


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_time_counts_from_the_first_frame(form):
    media = make.get("video", make.video(8, times=[5000 + 125 * index for index in range(8)], form=form), frames=8)
    assert make.numbers(media) == list(range(8))
    assert torch.allclose(media.times, torch.arange(8).double() / 8, atol=2e-3)


def _trimmed(data: bytes) -> bytes:
    """An edit list that shows one second (of movie time 1000) beginning with frame 4."""
    with opened(data, "mp4", make.watch()) as container:
        frame = container.streams.video[0].time_base.denominator // 8
    return make.rewrite(data, b"elst", 8, 1000, 2 * frame + 4 * frame)


def test_an_edit_list_trims(clips):
    media = make.get("video", _trimmed(clips["h264 mp4"]), frames=8)
    assert make.numbers(media) == list(range(4, 12))
    assert torch.allclose(media.times, torch.arange(8).double() / 8)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), ("down", "left")),
        ((0, 1, -1, 0), ("up", "left")),  # a quarter turn clockwise, as telephones write it
        ((0, -1, 1, 0), ("down", "right")),
        ((-1, 0, 0, -1), ("up", "right")),
        ((-1, 0, 0, 1), ("down", "right")),
        ((1, 0, 0, -1), ("up", "left")),
    ],
)
def test_rotation_and_mirroring_are_applied(clips, matrix, corner):
    frame = make.get("video", make.rotated(clips["h264 mp4"], *matrix), frames=1).data[0].int()
    height, width = frame.shape[1:]
    assert (width > height) == (matrix[0] != 0)
    rows, columns = ((frame[0] - frame[1]) > 80).nonzero(as_tuple=True)
    seen = (
        "down" if rows.float().mean() > height / 2 else "up",
        "right" if columns.float().mean() > width / 2 else "left",
    )
    assert seen == corner


def test_colours_follow_the_tags_of_the_stream():
    """The same code values are another colour in BT.709 than in BT.601."""
    for space in ("bt709", "smpte170m"):
        data = make.video(4, options={"x264-params": f"colormatrix={space}:colorprim={space}:transfer={space}"})
        with opened(data, "mp4", make.watch()) as container:
            stored = next(container.decode(video=0))
        assert int(stored.colorspace) == {"bt709": 1, "smpte170m": 6}[space]
        luma, blue, _ = (np.frombuffer(p, np.uint8).reshape(-1, p.line_size) for p in stored.planes)
        y, u = int(luma[-3, 3]), int(blue[-2, 2]) - 128  # the lower left corner
        expected = (y - 16) * 255 / 219 + 2 * (1 - {"bt709": 0.0722, "smpte170m": 0.114}[space]) * u * 255 / 224
        got = make.get("video", data, frames=4).data[0, 2, -3, 3].item()
        assert abs(got - expected) < 4


def test_fewer_frames_than_asked_are_repeated_by_time():
    for count in (1, 2, 7):
        for asked in (8, 32):
            media = make.get("video", make.video(count), frames=asked)
            assert media.data.shape[0] == asked == len(media.times)
            assert make.numbers(media) == [(2 * i + 1) * count // (2 * asked) for i in range(asked)]


def test_seconds_and_fps():
    data = make.video(24)  # three seconds
    assert make.numbers(make.get("video", data, frames=4, seconds=1.0)) == [1, 3, 5, 7]
    assert make.numbers(make.get("video", data, frames=8, rule="fps", fps=1.0)) == [4, 12, 20]
    assert make.numbers(make.get("video", data, frames=4, rule="first")) == [0, 6, 12, 18]


def test_a_gif_is_a_video_when_declared_so():
    from PIL import Image

    frames = [Image.fromarray(make.numbered(index, 64, 48)) for index in range(5)]
    data = make.image(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    media = make.get("video", data, frames=5)
    assert make.numbers(media) == list(range(5))
    assert torch.allclose(media.times, torch.arange(5).double() / 10, atol=0.011)
    assert refused(data[:-40]).reason == Reason.short_video


def test_a_small_side_shrinks_and_only_when_asked():
    data = make.video(4, 256, 192)
    assert make.get("video", data, frames=2).data.shape == (2, 3, 192, 256)
    small = make.get("video", data, frames=2, side=48)
    assert small.data.shape == (2, 3, 48, 64) and make.numbers(small) == [1, 3]
    for backend in OTHERS:
        other = by(backend, data, frames=2, side=48)
        assert (other.data.int() - small.data.int()).abs().float().mean() < 3


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_a_cut_file_is_never_taken_for_a_whole_one(form):
    how = {"muxer": {"moov_size": "6000"}} if form == "mp4" else {"codec": "mpeg4"} if form == "avi" else {}
    data = make.video(40, form=form, options={"g": "8"}, **how)
    assert make.numbers(make.get("video", data, frames=40)) == list(range(40))
    reasons, accepted = set(), []
    for tenth in range(1, 60):
        cut = len(data) * tenth // 60
        try:
            media = make.get("video", data[:cut], frames=40)
        except MediaError as error:
            reasons.add(error.reason)
        else:
            accepted.append(cut)
            assert len(set(make.numbers(media))) >= 35, f"cut at {cut} of {len(data)}"
    assert Reason.short_video in reasons and reasons <= {
        Reason.short_video,
        Reason.unreadable_video,
        Reason.no_video_stream,
    }
    assert len(accepted) <= 12


def test_damage_never_escapes_as_another_exception(clips):
    generator = np.random.default_rng(0)
    refusals = 0
    for name in ("h264 mp4", "vp9 webm", "mpeg4 avi", "h264 mp4 in fragments"):
        for _ in range(25):
            damaged = bytearray(clips[name])
            for place in generator.integers(0, len(damaged), 20):
                damaged[place] = generator.integers(0, 256)
            try:
                media = make.get("video", bytes(damaged), Limits(wall_seconds=10), frames=4)
            except MediaError:
                refusals += 1
            else:
                assert media.data.shape[0] == 4
    assert refusals > 10


def test_lost_packets_are_replaced_by_the_frame_before_or_refused():
    """Every picture stands alone here, so packets can be spoilt one by one."""
    data = make.video(40, codec="mjpeg", form="avi", pixel="yuvj420p")

    def spoil(*victims: int) -> bytes:
        spoilt = bytearray(data)
        with opened(data, "avi", make.watch()) as container:
            packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        for victim in victims:
            position, size = packets[victim]
            start = data.index(b"\xff\xd8", position)
            spoilt[start : start + size] = bytes(size)
        return bytes(spoilt)

    media = make.get("video", spoil(5), frames=40)
    assert make.numbers(media) == [*range(5), 4, *range(6, 40)]
    assert media.times[5] == media.times[4]
    assert make.numbers(make.get("video", spoil(0), frames=40))[:3] == [1, 1, 2]
    assert refused(spoil(*range(3, 12)), frames=40).reason == Reason.short_video
    assert refused(spoil(*range(40)), frames=40).reason == Reason.short_video


def test_states_without_pictures(clips):
    assert refused(make.sound("aac", "mp4")).reason == Reason.no_video_stream
    assert refused(make.sound("aac", "ipod")).reason == Reason.no_video_stream
    whole = clips["h264 mp4"]
    assert refused(whole[: whole.index(b"moov") - 4]).reason == Reason.unreadable_video
    assert refused(b"\x00\x00\x00\x20ftypisom" + bytes(200)).reason == Reason.unreadable_video
    assert refused(b"\x1aE\xdf\xa3" + bytes(200)).reason == Reason.unreadable_video
    assert refused(make.video(4, codec="rawvideo", form="avi", pixel="yuv420p")[:300]).reason in (
        Reason.unreadable_video,
        Reason.short_video,
    )


def test_a_rare_codec_is_refused_by_name():
    error = refused(make.video(4, codec="flv", form="avi"))
    assert error.reason == Reason.unreadable_video and "flv" in str(error) and "h264" in str(error)


def test_limits(clips):
    data = clips["h264 mp4"]
    for limits, word in (
        (Limits(frame_pixels=3000), "64 x 48"),
        (Limits(output_pixels=20_000), "8 frames"),
        (Limits(video_seconds=2.0), "3 seconds"),
        (Limits(packets=10), "at most 10 (limit packets)"),
        (Limits(decoded_frames=3), "frames to decode"),
        (Limits(wall_seconds=0.0), "0 seconds"),
        (Limits(bytes=100), "bytes"),
    ):
        error = refused(data, limits)
        assert error.reason == Reason.video_limits and word in str(error)


def test_absurd_durations_are_refused():
    data = make.video(8, options={"bf": "0"})
    with opened(data, "mp4", make.watch()) as container:
        step = container.streams.video[0].time_base.denominator // 8
    place = data.index(b"stts") + 8
    assert int.from_bytes(data[place + 8 : place + 12], "big") == step
    error = refused(make.rewrite(data, b"stts", 12, 0x7FFFFF00))
    assert error.reason in (Reason.video_limits, Reason.short_video)
    still = make.get("video", make.rewrite(data, b"stts", 12, 1), frames=4)  # eight frames in less than a millisecond
    assert still.data.shape[0] == 4 and still.times[-1] < 0.01


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("00:01:02.500", 62.5), ("00:00:nan", 2.0), ("00:00:inf", 2.0), ("-1:00:00", 2.0), ("00:00:00", 2.0), ("x", 2.0)],
)
def test_a_length_that_says_nothing_is_no_promise(written, seconds):
    stream = SimpleNamespace(duration=None, metadata={"DURATION": written})
    container = SimpleNamespace(duration=2_000_000, streams=[stream])  # in microseconds
    assert promised_seconds(container, stream) == seconds


def test_available_names_each_backend_with_a_reason():
    report = video.available()
    assert list(report) == list(video.BACKENDS) and report["pyav"] == ""
    for name, problem in report.items():
        if problem:
            assert ":" in problem, name


def test_one_thread_per_worker(clips):
    """The library's default is as many as there are cores, in every worker."""
    with opened(clips["h264 mp4"], "mp4", make.watch()) as container:
        clip = video._Clip(container, container.streams.video[0], "mp4", Limits(), "item", b"", make.watch())
        assert clip.stream.codec_context.thread_count == 1


def test_a_backend_with_another_clock_is_refused(clips, monkeypatch):
    frames = torch.zeros(4, 3, 48, 64, dtype=torch.uint8)
    for shift, fits in ((0.0, True), (0.125, False)):
        seconds = [index / 8 + shift for index in (3, 9, 15, 21)]
        monkeypatch.setattr(_backends, "_torchcodec", lambda *_, told=seconds: (frames, told))
        if fits:
            assert by("torchcodec", clips["h264 mp4"], frames=4).data.shape == frames.shape
        else:
            with pytest.raises(MediaError, match="frame 3 at"):
                by("torchcodec", clips["h264 mp4"], frames=4)


def test_pictures_of_vp8_that_are_never_shown_have_no_time():
    shown, hidden = b"\x10\x00\x00", b"\x01\x00\x00"
    assert not _packets._hidden_vp8(shown) and _packets._hidden_vp8(hidden)


def test_a_long_clip_with_one_key_frame_is_decoded_in_seconds():
    once = {"g": "40000", "sc_threshold": "0", "preset": "ultrafast", "tune": "zerolatency"}
    data = make.video(31_000, 16, 16, rate=30, options=once)
    begin = time.process_time()
    media = make.get("video", data, frames=8)
    assert media.data.shape == (8, 3, 16, 16) and media.times[-1] > 900
    assert time.process_time() - begin < 10
