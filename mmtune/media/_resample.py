"""Change of sample rate by a windowed sinc, with the same numbers on every machine.

out[n] = sum over k of x[k] * h(k / rate_in - n / rate_out), where h is a sinc cut off a little below half the lower
rate and windowed by a squared cosine. With 6 zero crossings on each side and a cut-off at 0.99 these are the numbers
of torchaudio's default `resample`, with which published audio encoders were trained.

Round ratios (44100 to 16000) are one matrix product with a kept kernel; for odd ones (44101 to 16000) the kernel, which
torchaudio makes in each call, would fill gigabytes, so taps are gathered per output sample instead. `docs/libraries.md`
has the figures.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_CROSSINGS = 6
"""Zero crossings of the sinc on each side."""
_ROLLOFF = 0.99
"""Cut-off as a share of half the lower rate."""
_DENSE = 1 << 20
"""Largest kernel kept as a matrix, values."""
_BLOCK = 256
"""Input samples per row of the matrix product, at least."""
_CHUNK = 1 << 20
"""Output samples times taps computed at once when gathering."""


def resample(wave: Tensor, source: int, target: int) -> Tensor:
    """float32 [channels,samples] at `source` Hz to [channels,ceil(samples * target / source)] at `target` Hz."""
    if source == target:
        return wave
    common = math.gcd(source, target)
    up, down = target // common, source // common
    length = -(-wave.shape[1] * up // down)
    wide = max(1, _BLOCK // down)  # several periods as one, so that the product is not a thin one
    if wide * up * (wide * down + 2 * _reach(up, down)) <= _DENSE:
        return _by_matrix(wave, wide * up, wide * down)[:, :length]
    if up * (down + 2 * _reach(up, down)) <= _DENSE:
        return _by_matrix(wave, up, down)[:, :length]
    return _by_gathering(wave, up, down, length)


def _by_matrix(wave: Tensor, up: int, down: int) -> Tensor:
    """`up` output samples for every `down` input samples: windows [channels,blocks,taps] times kernel [taps,up]."""
    reach, length = _reach(up, down), wave.shape[1]
    blocks = -(-length // down)
    step = max(1, _CHUNK * 4 // down)  # long sounds are cut, so that windows and padding are never of the whole
    if blocks <= step:
        padded = torch.nn.functional.pad(wave, (reach, blocks * down - length + reach))
        windows = padded.unfold(1, down + 2 * reach, down)
        return (windows @ _kernel(up, down)).flatten(1)
    out = wave.new_empty(wave.shape[0], blocks * up)
    for first in range(0, blocks, step):
        last = min(blocks, first + step)
        low, high = first * down - reach, last * down + reach
        part = torch.nn.functional.pad(wave[:, max(0, low) : min(length, high)], (max(0, -low), max(0, high - length)))
        out[:, first * up : last * up] = (part.unfold(1, down + 2 * reach, down) @ _kernel(up, down)).flatten(1)
    return out


@functools.lru_cache(maxsize=16)
def _kernel(up: int, down: int) -> Tensor:
    """float32 [taps,up]"""
    reach = _reach(up, down)
    taps = torch.arange(-reach, down + reach).double()[:, None] / down
    return _weight(taps - torch.arange(up).double()[None, :] / up, up, down)


def _by_gathering(wave: Tensor, up: int, down: int, length: int) -> Tensor:
    reach = _reach(up, down)
    taps = torch.arange(-reach, reach + 2)
    padded = torch.nn.functional.pad(wave, (reach, reach + 2))
    out = wave.new_empty(wave.shape[0], length)
    step = max(1, _CHUNK // len(taps))
    for begin in range(0, length, step):
        index = torch.arange(begin, min(begin + step, length))
        whole, rest = index * down // up, index * down % up
        apart = taps[None, :].double() / down - rest[:, None].double() / (up * down)
        windows = padded[:, whole[:, None] + (taps + reach)[None, :]]  # [channels,outputs,taps]
        out[:, begin : begin + step] = torch.einsum("cnt,nt->cn", windows, _weight(apart, up, down))
    return out


def _reach(up: int, down: int) -> int:
    """Input samples on each side that can touch an output sample."""
    return math.ceil(_CROSSINGS * down / (min(up, down) * _ROLLOFF))


def _weight(apart: Tensor, up: int, down: int) -> Tensor:
    """h at distances given in common periods (up outputs, down inputs); float32 of the same shape."""
    cut = min(up, down) * _ROLLOFF
    inside = (apart * cut).clamp(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(inside * (math.pi / _CROSSINGS / 2)).square()
    return (torch.sinc(inside) * window * (cut / down)).float()
