"""Encoded bytes to `Media`: the request (`Sampling`), and the function that decodes (`load`).

Every refusal is a `MediaError` with a `Reason`, whatever the decoder underneath raised. Nothing is replaced by
something else: a damaged file is refused, never turned into zeros or another file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from mmtune.errors import ConfigError, MediaError, Note, Reason
from mmtune.media import _formats, _limits, _mpeg
from mmtune.media._limits import Limits
from mmtune.types import Kind, Media, MediaRef

Span = tuple[float | None, float | None]
"""Start and end of a clip in an item, seconds; none is the item's own."""
Rule = Literal["uniform", "middle", "first", "fps", "video_llama", "pllava", "pllava_benchmark", "pllava_train"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What an encoder asks of `load`. Raises ConfigError when a value makes no sense."""

    frames: int = 8
    """Frames F of a video; with rule "fps" the most frames."""
    rule: Rule = "uniform"
    """Which frames of a video, V frames lasting `duration` seconds:

    - "uniform": frame i is the one on screen at (i + 0.5) * duration / F seconds;
    - "middle": the frame in the middle of each of F equal runs of frames, floor((i + 0.5) * V / F). The same as
      "uniform" at a constant frame rate;
    - "first": the first frame of each of F equal runs, floor(i * V / F);
    - "fps": as "uniform", with round(duration * fps) frames, at least 1 and at most F;
    - "video_llama": as "first", in steps of V / F in floating point as its published code takes them, which at some V
      chooses the frame before (never where F is a power of two). A shorter video gives each of its frames once;
    - "pllava": as PLLaVA's demo, "pllava_benchmark": as its benchmarks; both near "middle" of F segments of V - 1;
    - "pllava_train": as its training: the middle of each of F runs, or with `seed` a random one that is never the last.
      A shorter video repeats its last frame.

    Otherwise a video with fewer frames than asked shows the nearest ones repeatedly, so that F is always as asked.
    """
    fps: float | None = None
    """Frames per second for rule "fps"."""
    seed: int | None = None
    """Of the draw of rule "pllava_train"; none draws nothing. The other rules have nothing to draw."""
    rate: int = 16000
    """Samples per second of sound, Hz; sound of another rate is resampled."""
    seconds: float | None = None
    """Take only so many seconds from the start of a video or sound; none takes all."""
    side: int | None = None
    """Permission to decode smaller: pictures and frames may be shrunk by 2, 4 or 8 while both sides stay at least
    this many pixels. None, the default, decodes every pixel."""

    @property
    def draws(self) -> bool:
        """Whether `seed` changes what is chosen."""
        return self.rule == "pllava_train"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"sampling rule {self.rule!r}", f"one of {', '.join(get_args(Rule))}")
        if self.frames < 1:
            raise ConfigError(f"sampling of {self.frames} frames", "at least 1")
        if self.rule == "fps" and not (self.fps and 0 < self.fps <= 1000):
            raise ConfigError(f"sampling rule fps with fps = {self.fps}", "frames per second in 0..1000")
        if not 1000 <= self.rate <= 384_000:
            raise ConfigError(f"sampling rate {self.rate} Hz", "1000 to 384000 Hz", "rate counts samples, not kHz")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ConfigError(f"sampling of {self.seconds} seconds", "more than 0, or none for all")
        if self.side is not None and self.side < 1:
            raise ConfigError(f"sampling with side {self.side}", "pixels, at least 1, or none for all")


def sniff(data: bytes) -> Kind:
    """The kind of media that some encoded bytes hold, from their first bytes.

    A GIF is called an image and an MP4 or Matroska file a video, although either may be loaded as the other kind
    that it can hold (frames of a GIF, the sound of a video).

    Raises:
        MediaError: wrong_media_type, when the bytes are of no format that is read here.
    """
    name = _formats.detect(data)
    if name is None:
        raise MediaError(
            Reason.wrong_media_type,
            f"bytes that begin with {_begin(data)}",
            f"one of {', '.join(_formats.FORMATS)}",
            "convert the file; playlists, text and other formats are not opened",
        )
    return _formats.FORMATS[name][0]


def load(ref: MediaRef, sampling: Sampling | None = None, limits: Limits | None = None) -> Media:
    """Decode one item.

    A clip range of the reference counts seconds from the first frame of a video, and for a sound from the same moment:
    the first frame beside it, or the beginning of a file without pictures. Of a clip, frames are chosen as if it were
    the whole, and `times` go on counting from the beginning of the file.

    Returns:
        image: uint8 [1,3,height,width]; video: uint8 [F,3,height,width] with `times`, seconds of each frame from the
        file's first one; audio: float32 [channels,samples] in -1..1 at `sampling.rate`; points: float32
        [points,3+extra] with `columns`. On the CPU, contiguous.

    Raises:
        MediaError: with the Reason; the message names the item and the fault.
    """
    sampling, limits, origin = sampling or Sampling(), _limits.settled(limits), ref.origin or "unnamed media"
    data, name, junk = _declared(ref, limits, origin)
    if ref.kind == "image":
        from mmtune.media.image import decode
    elif ref.kind == "video":
        from mmtune.media.video import decode
    elif ref.kind == "points":
        from mmtune.media.points import decode
    else:
        from mmtune.media.audio import decode
    if ref.kind in ("video", "audio"):
        media = decode(data, name, sampling, limits, origin, span=(ref.start, ref.end))
    else:
        media = decode(data, name, sampling, limits, origin)
    return replace(media, notes=(Note.junk_skipped, *media.notes)) if junk else media


def frame_times(ref: MediaRef, sampling: Sampling | None = None, limits: Limits | None = None) -> list[float]:
    """When the frames that `load` would show of a video come on screen, seconds from the file's first one.

    Decodes nothing.

    Raises MediaError as `load` does, but for what only decoding brings to light.
    """
    from mmtune.media.video import frame_times

    sampling, limits, origin = sampling or Sampling(), _limits.settled(limits), ref.origin or "unnamed media"
    data, name, _ = _declared(ref, limits, origin)
    return frame_times(data, name, sampling, limits, origin, (ref.start, ref.end))


def outside(origin: str, span: Span, seconds: float) -> MediaError:
    """The error for a clip range that is not inside an item of so many seconds: `raise outside(...)`."""
    end = "the end" if span[1] is None else f"{span[1]:g}"
    return MediaError(
        Reason.bad_range,
        f"{origin}: a clip from {span[0] or 0:g} to {end} in {seconds:.2f} seconds",
        "a start and an end inside the item, in seconds",
        f"a range within 0 to {seconds:.2f}",
    )


def _declared(ref: MediaRef, limits: Limits, origin: str) -> tuple[bytes, str, bool]:
    """The bytes of an item, their format, which must be one that can hold the declared kind, and whether there was
    something else before them."""
    data = _read(ref, limits, Reason(f"unreadable_{ref.kind}"), origin)
    name, start = _formats.locate(data)
    if name is None or ref.kind not in _formats.FORMATS[name]:
        what = f"{name} data" if name else f"bytes that begin with {_begin(data)}"
        hint = f"declare it as {_formats.FORMATS[name][0]}" if name else "convert the file"
        raise MediaError(
            Reason.wrong_media_type,
            f"{origin}: {what} declared as {ref.kind}",
            f"{ref.kind} in one of {_formats.names(ref.kind)}",
            hint,
        )
    if not start:
        return data, name, False
    return data[start:], name, start != _mpeg.behind_tags(data)


@contextmanager
def refusing(reason: Reason, origin: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside into a MediaError with `reason`. MediaErrors pass."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # a decoder fed with damaged bytes may raise anything, IndexError included
        text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", str(error)).strip()
        raise MediaError(
            reason, f"{origin}: {type(error).__name__}{': ' + text if text else ''}", "a file that decodes"
        ) from error


def _read(ref: MediaRef, limits: Limits, unreadable: Reason, origin: str) -> bytes:
    """The encoded bytes, refused when empty or above the limit (a file before it is read)."""
    if isinstance(ref.source, Path):
        with refusing(unreadable, origin):
            size = ref.source.stat().st_size
    else:
        size = len(ref.source)
    if size > limits.bytes:
        reason = Reason.unreadable_image if ref.kind == "image" else Reason(f"{ref.kind}_limits")
        raise limits.refusal("bytes", reason, f"{origin}: {size} bytes")
    data = ref.read()
    if not data:
        raise MediaError(unreadable, f"{origin}: 0 bytes", f"an encoded {ref.kind}")
    return data


def _begin(data: bytes) -> str:
    return repr(bytes(data[:12])) if data else "nothing (0 bytes)"
