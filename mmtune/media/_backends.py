"""Video decoders besides PyAV, each imported when asked for, opened before it is trusted, and checked by its clock.

They are given indices into our timeline. Where the timestamps that a decoder reports for those indices differ from
the timeline, it counts frames in another way (edit lists, hidden frames) and is refused.
"""

from __future__ import annotations

import functools
import importlib
import io
from typing import Any

import torch

from mmtune.media._frames import Timeline
from mmtune.media._paint import shrink


class Unfit(RuntimeError):
    """This backend is not here, or does not see the clip as the timeline does."""


def decode(name: str, data: bytes, line: Timeline, chosen: list[int], side: int | None) -> torch.Tensor:
    """uint8 [F,3,height,width]; raises whatever the backend raises, or Unfit."""
    reader = {"torchcodec": _torchcodec, "decord": _decord}[name]
    unique = sorted(set(chosen))
    frames, seconds = reader(data, unique, len(line.stamps))
    slack = max(2e-3, float(line.unit))
    for index, second in zip(unique, seconds, strict=True):
        if abs(second - line.at(index)) > slack:
            raise Unfit(f"frame {index} at {second:.3f} s, not {line.at(index):.3f} s")
    index_of = {index: row for row, index in enumerate(unique)}
    frames = frames[[index_of[index] for index in chosen]]
    factor = shrink(frames.shape[3], frames.shape[2], side)
    if factor > 1:
        size = (-(-frames.shape[2] // factor), -(-frames.shape[3] // factor))
        small = torch.nn.functional.interpolate(frames.float(), size=size, mode="area")
        frames = small.round().clamp(0, 255).to(torch.uint8)
    return frames.contiguous()


def _torchcodec(data: bytes, indices: list[int], count: int) -> tuple[torch.Tensor, list[float]]:
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(data, dimension_order="NCHW", num_ffmpeg_threads=1, seek_mode="exact")
    if decoder.metadata.num_frames != count:
        raise Unfit(f"{decoder.metadata.num_frames} frames, not {count}")
    batch = decoder.get_frames_at(indices=[0, *indices])
    begin, *seconds = batch.pts_seconds.tolist()
    return batch.data[1:], [second - begin for second in seconds]


def _decord(data: bytes, indices: list[int], count: int) -> tuple[torch.Tensor, list[float]]:
    decord = _decord_module()
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    if len(reader) != count:
        raise Unfit(f"{len(reader)} frames, not {count}")
    begin, *seconds = (float(span[0]) for span in reader.get_frame_timestamp([0, *indices]))
    frames = torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)
    return frames, [second - begin for second in seconds]


def _decord_module() -> Any:
    """decord or its maintained fork, which has the same interface."""
    try:
        module = importlib.import_module("decord")
    except ImportError:
        module = importlib.import_module("decord2")
    module.logging.set_level(module.logging.QUIET)
    return module


@functools.cache
def why_not(name: str) -> str:
    """ "" when the backend opens a small clip made on the spot, else what went wrong."""
    line, data = _small_clip()
    try:
        frames = decode(name, data, line, [0, 1], side=None)
    except Exception as error:  # import, library loading and opening fail in many ways
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "" if list(frames.shape) == [2, 3, 64, 64] else f"a clip of 2 frames came as {list(frames.shape)}"


def _small_clip() -> tuple[Timeline, bytes]:
    """Two grey frames of 64 x 64 in an old codec that every build can decode."""
    from fractions import Fraction

    import av
    import numpy as np

    store = io.BytesIO()
    with av.open(store, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 64
        for _ in range(2):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return Timeline([0, 1], 2, Fraction(1, 2)), store.getvalue()
