"""Frames and sound to file bytes: MP4 (H.264 and AAC) and JPEG. The same input gives the same bytes."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FPS = 4
"""Frames a second: eight frames are the two seconds of a clip."""
CRF = "20"
"""Constant quality of libx264, 0 (lossless) to 51."""


def mp4(
    frames: NDArray[np.uint8], samples: NDArray[np.float32] | None = None, rate: int = 16_000, fps: int = FPS
) -> bytes:
    """frames uint8 [F, height, width, 3] and mono samples float32 [S] in -1..1 as one MP4 file.

    Even height and width. One thread and FFmpeg's bit-exact mode: no dates, no encoder names, no races.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as file:
        video = file.add_stream("libx264", rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, fps)
        video.thread_count = 1
        # without its look-ahead, whose decisions vary (one clip in twenty) with what the memory held before
        video.options = {
            "crf": CRF, "preset": "veryfast", "bf": "0", "flags": "+bitexact",
            "x264-params": "threads=1:rc-lookahead=0:mbtree=0",
        }  # fmt: skip
        audio = None
        if samples is not None:
            audio = file.add_stream("aac", rate=rate)
            audio.layout = "mono"
            audio.thread_count, audio.bit_rate = 1, 48_000
            audio.options = {"flags": "+bitexact"}
        for i, picture in enumerate(frames):
            planes = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p", threads=1
            )
            frame = av.VideoFrame.from_ndarray(planes.to_ndarray(), format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None and samples is not None:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
            file.mux(audio.encode(sound))
            file.mux(audio.encode(None))
    return buffer.getvalue()


def jpeg(picture: NDArray[np.uint8], quality: int = 90) -> bytes:
    """uint8 [height, width, 3] as a JPEG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
