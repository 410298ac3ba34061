"""Video from bytes to uint8 [F,3,height,width] with the time of each frame.

PyAV demuxes every file once; its presentation timestamps are the only truth about time, and `_frames` chooses by
them. Decoding is done by the first backend that opens:

1. "pyav" decodes only the packets that chosen frames need (`_plan`). One thread, CPU time, against decord: 1.4 to 2.7
   times as fast for 8 frames of real H.264 clips of 7 to 17 seconds, 1.9 times for all 16 frames of a 144 x 144 clip
   (1.8 ms), with the same pixels. It comes with every install;
2. "torchcodec", an extra that loads only beside matching FFmpeg and torch libraries;
3. "decord", on systems for which it is built.

A backend that shows another frame at an index than the timeline says is not used. Non-square pixels are not
stretched; rotation and mirroring from the container are applied.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import torch

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import _backends, _boxes, _crowd, _frames, _gops, _tags
from mmtune.media._container import opened, pick, promised_seconds
from mmtune.media._frames import Timeline, choose, timeline
from mmtune.media._packets import Packets
from mmtune.media._paint import Painter, display_matrix
from mmtune.media._watch import Watch
from mmtune.media.base import Limits, Sampling, Span, outside, refusing
from mmtune.types import Media

BACKENDS = ("pyav", "torchcodec", "decord")
"""In the order in which they are tried."""

_USUAL_COLOURS = (1, 2, 5, 6)
"""BT.709, unspecified, and the two forms of BT.601. BT.2020 comes out with wrong colours from decord."""

log = logging.getLogger(__name__)


def decode(
    data: bytes,
    name: str,
    sampling: Sampling,
    limits: Limits,
    origin: str,
    backend: str | None = None,
    span: Span = (None, None),
) -> Media:
    """`data` of format `name` to Media; `times` are those of the frames shown, seconds from the file's first frame.

    Args:
        backend: one of BACKENDS and no other; none tries them in order.
        span: the part to choose frames from, seconds from the file's first frame.

    Raises:
        MediaError: no_video_stream, short_video, video_limits, bad_range, or unreadable_video for everything else.
    """
    with _open(data, name, limits, origin) as clip:
        chosen = _chosen(clip.line, sampling, span, origin)
        clip.check_cost(len(chosen))
        used, pixels, chosen = _first_that_opens(clip, chosen, sampling, backend)
        log.debug("%s: %d frames by %s", origin, len(chosen), used)
        times = torch.tensor([clip.line.at(index) for index in chosen], dtype=torch.float64)
        clamped = span[1] is not None and span[1] > clip.line.seconds
        return Media("video", pixels, times=times, origin=origin, notes=(Note.range_clamped,) if clamped else ())


def frame_times(
    data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str, span: Span = (None, None)
) -> list[float]:
    """Seconds from the file's first frame to each frame that `decode` would show. Raises MediaError as it does."""
    with _open(data, name, limits, origin) as clip:
        return [clip.line.at(index) for index in _chosen(clip.line, sampling, span, origin)]


@contextmanager
def _open(data: bytes, name: str, limits: Limits, origin: str) -> Iterator[_Clip]:
    watch = Watch(limits, Reason.video_limits, origin)
    with refusing(Reason.unreadable_video, origin):
        if name in ("mp4", "m4a"):
            _boxes.check(data, limits, Reason.video_limits, origin)
        _tags.check(data, name, Reason.video_limits, origin)
        with opened(data, name, watch) as container:
            yield _Clip(container, pick(container, "video", origin), name, limits, origin, data, watch)


def _chosen(line: Timeline, sampling: Sampling, span: Span, origin: str) -> list[int]:
    """Indices of the frames to show of a part of a clip. Raises MediaError: bad_range."""
    if span == (None, None):
        return choose(line, sampling)
    try:
        return choose(line, sampling, _frames.clip(line, *span))
    except ValueError as error:
        raise outside(origin, span, line.seconds) from error


def available() -> dict[str, str]:
    """Backend to "" where it decodes a small clip on this machine, else to the reason why not."""
    return {"pyav": "", **{name: _backends.why_not(name) for name in BACKENDS[1:]}}


@dataclass
class _Clip:
    """A demuxed stream: what all backends are given."""

    container: Any
    stream: Any
    name: str
    limits: Limits
    origin: str
    data: bytes
    watch: Watch

    def __post_init__(self) -> None:
        context = self.stream.codec_context
        context.thread_count = 1  # loader workers are the parallel axis; more threads per worker only contend
        if context.width * context.height > self.limits.frame_pixels:
            self.exceed("frame_pixels", f"{context.width} x {context.height} pixels")
        # frames may grow in the middle of a clip, where no header says so
        context.options = {**context.options, "max_pixels": str(self.limits.frame_pixels)}
        promised = promised_seconds(self.container, self.stream)
        if promised is not None and promised > self.limits.video_seconds:
            self.exceed("video_seconds", f"{promised:.0f} seconds")
        self.split = _gops.nal_splitter(context.extradata) if context.name == "h264" else None
        self.packets = Packets(self._whole(self.container, self.stream), self._again, context.name, self.split)
        # AVI stores no presentation times; with reordered pictures only the order of decoded frames tells them.
        blind = self.name == "avi" and context.has_b_frames
        packets = self.packets
        self.stamped = not blind and packets.known(packets.pts) == len(packets)
        times = packets.pts if self.stamped else packets.dts
        stamps = [times[number] for number in packets.shown]
        if not stamps or packets.known(stamps) < len(stamps):
            self.refuse(
                f"{len(stamps)} frames, {len(stamps) - packets.known(stamps)} of them without a time",
                "at least one frame, all with times",
                Reason.short_video if not stamps else Reason.unreadable_video,
            )
        self.line = timeline(stamps, [packets.durations[n] for n in packets.shown], self.stream.time_base)
        if self.line.seconds > self.limits.video_seconds:
            self.exceed("video_seconds", f"{self.line.seconds:.0f} seconds")
        self._check_length(promised)

    def refuse(self, seen: str, expected: str, reason: Reason) -> None:
        raise MediaError(reason, f"{self.origin}: {seen}", expected)

    def exceed(self, limit: str, seen: str) -> None:
        raise self.limits.refusal(limit, Reason.video_limits, f"{self.origin}: {seen}")

    def check_cost(self, frames: int) -> None:
        context = self.stream.codec_context
        pixels = frames * context.width * context.height
        if pixels > self.limits.output_pixels:
            self.exceed("output_pixels", f"{frames} frames of {context.width} x {context.height}")
        self.watch.keep(2 * 3 * pixels)  # when they are put together they are there twice

    def check_decoded(self, frames: int) -> None:
        if frames > self.limits.decoded_frames:
            self.exceed("decoded_frames", f"{frames} frames to decode, from the entry points before those chosen")

    def check_packet(self, packet: Any) -> None:
        """Refuse a packet of so much work that the clock could not be checked in time."""
        context, data = self.stream.codec_context, bytes(packet)
        if (count := _crowd.pictures(data, context.name, context.extradata)) > _crowd.MOST:
            self.refuse(f"{count} or more pictures in one packet", f"at most {_crowd.MOST}", Reason.video_limits)
        if (passes := _crowd.scans(data, context.name)) * context.width * context.height > self.limits.scan_pixels:
            self.exceed("scan_pixels", f"{context.width} x {context.height} pixels in {passes} scans")

    def _whole(self, container: Any, stream: Any) -> Iterator[Any]:
        """The whole packets of a stream in decoding order."""
        for count, packet in enumerate(container.demux(stream)):
            if count > self.limits.packets:
                self.exceed("packets", f"more than {self.limits.packets} packets")
            if count % 256 == 0:
                self.watch.tick()
            if packet.size and not packet.is_corrupt:
                yield packet

    @contextmanager
    def _again(self) -> Iterator[Iterator[Any]]:
        with opened(self.data, self.name, self.watch) as container:
            yield self._whole(container, container.streams[self.stream.index])

    def _check_length(self, promised: float | None) -> None:
        """Compare the packets with the promise of the header; a truncated file is a damaged file."""
        share, have = self.limits.complete, len(self.packets)
        promised_frames = len(self.stream.index_entries)
        if self.name == "avi":
            promised_frames = max(promised_frames, self.stream.frames)
        if have < share * promised_frames:
            self.refuse(
                f"{have} frames of {promised_frames}",
                f"at least {share:.0%} of them (limit complete)",
                Reason.short_video,
            )
        if promised is not None and self.line.seconds < share * promised:
            start = float(max(0, self.line.stamps[0]) * self.line.unit)  # some containers count from zero
            if start + self.line.seconds < share * promised:
                self.refuse(
                    f"{self.line.seconds:.2f} seconds of {promised:.2f}",
                    f"at least {share:.0%} (limit complete)",
                    Reason.short_video,
                )
        if self.name == "gif" and not self.data.rstrip(b"\x00").endswith(b";"):
            self.refuse("a GIF without its end mark", "a whole file", Reason.short_video)


def _first_that_opens(
    clip: _Clip, chosen: list[int], sampling: Sampling, backend: str | None
) -> tuple[str, torch.Tensor, list[int]]:
    """(backend, uint8 [F,3,height,width], indices shown)"""
    failures: list[str] = []
    for name in (backend,) if backend else BACKENDS:
        try:
            if name == "pyav":
                return name, *_pyav(clip, chosen, sampling.side)
            if trait := _peculiar(clip):
                raise _backends.Unfit(f"{trait}, which this backend does not see")
            return name, _backends.decode(name, clip.data, clip.line, chosen, sampling.side), chosen
        except MediaError:
            raise
        except Exception as error:  # a backend may raise anything; the next one is tried
            failures.append(f"{name}: {type(error).__name__}: {error}")
            log.debug("%s: %s", clip.origin, failures[-1])
    raise MediaError(
        Reason.unreadable_video, f"{clip.origin}: no backend decodes it ({'; '.join(failures)})", "a file that decodes"
    )


def _pyav(clip: _Clip, chosen: list[int], side: int | None) -> tuple[torch.Tensor, list[int]]:
    """Decode the needed part; if a chosen frame is missing, decode everything and choose among the decoded frames."""
    if clip.stamped:
        stamps = {clip.line.stamps[index] for index in chosen}
        painter = Painter(side)

        def take(frame: Any) -> None:
            if frame.pts in stamps:
                painter.keep(frame.pts, frame)

        spans = _gops.spans(clip.packets.pts, clip.packets.enters, stamps, clip.stream.codec_context.name)
        if clip.split is None:  # else some are left out
            clip.check_decoded(max(last - first + 1 for first, last in spans))
        for run in clip.packets.parts(spans):
            _decode(clip, (packet for packet in run if _gops.needed(packet, stamps, clip.split)), take)
        if painter.frames.keys() == stamps:
            return painter.stack([clip.line.stamps[index] for index in chosen]), chosen
    return _everything(clip, chosen, side)


def _everything(clip: _Clip, chosen: list[int], side: int | None) -> tuple[torch.Tensor, list[int]]:
    """Decode all packets in turn. A chosen frame that never comes gives way to the one before it (at the beginning:
    after it); when more than a few frames never come, the clip is refused."""
    stamps, painter = clip.line.stamps, Painter(side)
    index_of = {stamp: index for index, stamp in enumerate(stamps)}
    waiting, shown = sorted(set(chosen), reverse=True), dict[int, int]()
    came, latest = list[int](), list[tuple[int, Any]]()  # latest: at most one frame, not yet painted

    def show(index: int, frame: Any) -> None:
        painter.keep(index, frame)
        shown[waiting.pop()] = index

    def take(frame: Any) -> None:
        index = index_of.get(frame.pts, -1) if clip.stamped else len(came)
        if not 0 <= index < len(stamps):
            return
        came.append(index)
        while waiting and waiting[-1] < index:
            show(*(latest[0] if latest else (index, frame)))
        if waiting and waiting[-1] == index:
            show(index, frame)
        latest[:] = [(index, frame)]

    clip.check_decoded(len(clip.packets))
    for run in clip.packets.parts([(0, len(clip.packets) - 1)]):
        _decode(clip, run, take)
    if len(came) < clip.limits.complete * len(stamps):
        clip.refuse(
            f"{len(came)} of {len(stamps)} frames decode", f"at least {clip.limits.complete:.0%}", Reason.short_video
        )
    while waiting:
        show(*latest[0])
    indices = [shown[want] for want in chosen]
    return painter.stack(indices), indices


def _decode(clip: _Clip, packets: Iterable[Any], take: Any) -> None:
    """Decode packets in order and hand over every whole frame. A packet that fails gives no frame."""
    context = clip.stream.codec_context
    for count, packet in enumerate(chain(packets, [None])):
        clip.check_decoded(count)
        clip.watch.tick(3 * context.width * context.height)
        if packet is not None:
            clip.check_packet(packet)
        try:
            frames = context.decode(packet)
        except (av.error.InvalidDataError, av.error.ArgumentError):  # the latter: a frame beyond the limit
            continue
        for frame in frames:
            if not frame.is_corrupt:
                take(frame)
    context.flush_buffers()


def _peculiar(clip: _Clip) -> str:
    """What about a clip other backends are known to ignore; "" for an ordinary one. Seen in the first frame."""
    found: list[str] = []

    def look(frame: Any) -> None:
        if display_matrix(frame) is not None:
            found.append("a rotated clip")
        elif frame.colorspace not in _USUAL_COLOURS:
            found.append(f"a clip in colour space {frame.colorspace}")
        else:
            found.append("")

    for first in clip.packets.parts([(0, 31)]):
        for packet in first:
            _decode(clip, [packet], look)
            if found:
                return found[0]
    return ""
