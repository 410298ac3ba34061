"""Packets with many pictures: a decoder works at them in one call, which the clock cannot stop."""

import io
import time
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mmtune.errors import MediaError, Reason
from mmtune.media import Limits, _crowd
from tests.media import make


def put(container: av.container.OutputContainer, stream: av.VideoStream, packets: list[bytes]) -> None:
    for number, body in enumerate(packets):
        packet = av.Packet(body)
        packet.stream, packet.pts, packet.dts = stream, number * 40, number * 40
        packet.time_base, packet.is_keyframe = Fraction(1, 1000), number == 0
        container.mux(packet)


def still(codec: str, options: dict[str, str], width: int, height: int, layout: Callable) -> bytes:
    """A film of packets that `layout` makes of those of eight pictures that stay as they are."""
    store = io.BytesIO()
    with av.open(store, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
        packets = []
        for number in range(8):
            frame.pts = number
            packets += [bytes(packet) for packet in stream.encode(frame)]
        packets += [bytes(packet) for packet in stream.encode(None)]
        put(container, stream, layout(packets))
    return store.getvalue()


OPTIONS = {"libx264": {"preset": "ultrafast", "x264-params": "bframes=0:scenecut=0"}, "libsvtav1": {"preset": "12"}}


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("codec", OPTIONS)
def test_a_packet_of_many_pictures_is_not_decoded(codec, place):
    """It is not, when the file is opened, either."""
    rest = (lambda p: [p[0] + b"".join(p[1:] * 60)]) if place == "first" else lambda p: [p[0], b"".join(p[1:] * 60)]
    plain = still(codec, OPTIONS[codec], 1600, 1200, lambda packets: packets[:2])
    assert make.get("video", plain, frames=1).data.shape == (1, 3, 1200, 1600)
    data = still(codec, OPTIONS[codec], 1600, 1200, rest)
    assert len(data) < 30_000
    begin = time.process_time()
    with pytest.raises(MediaError, match="pictures in one packet") as error:
        make.get("video", data, frames=2)
    assert error.value.reason == Reason.video_limits
    assert time.process_time() - begin < 0.5


def frames(pictures: list[bytes]) -> bytes:
    store = io.BytesIO()
    with av.open(store, "w", format="matroska") as container:
        put(container, container.add_mux_stream("mjpeg", rate=25, width=64, height=64), pictures)
    return store.getvalue()


def test_a_picture_of_motion_jpeg_with_many_scans_is_not_decoded():
    picture = make.image(Image.new("RGB", (64, 64), (9, 9, 9)), "JPEG")
    start = picture.index(b"\xff\xda")
    data = frames([picture, picture[:-2] + picture[start:-2] * 300 + picture[-2:]])
    with pytest.raises(MediaError, match=r"limit scan_pixels"):
        make.get("video", data, Limits(scan_pixels=64 * 64 * 200), frames=2)
    assert make.get("video", frames([picture, picture]), Limits(scan_pixels=64 * 64), frames=2).times[1]


def test_pictures_are_counted_in_both_forms_of_h264():
    slices = [b"\x65\x88\x01", b"\x41\x9a\x02", b"\x41\x40\x02", b"\x01\xff\x02", b"\x67\x80\x02"]  # the third goes on
    coded = b"".join(b"\x00\x00\x01" + one for one in slices)
    sized = b"".join(b"\x00\x00\x00\x03" + one for one in slices)
    assert _crowd.pictures(coded, "h264", None) == _crowd.pictures(sized, "h264", b"\x01\x64\x00\x1e\xff") == 3
    assert _crowd.pictures(bytes(600_000), "h264", b"\x01\x64\x00\x1e\xff") > _crowd.MOST
    assert _crowd.pictures(b"\x12\x00" * 3 + b"\x32\x01\x00\x1a\x01\x00", "libdav1d", None) == 2
    assert _crowd.pictures(b"\x12\x00" * 200_000, "libdav1d", None) > _crowd.MOST
    assert _crowd.pictures(coded, "vp9", None) == 1
