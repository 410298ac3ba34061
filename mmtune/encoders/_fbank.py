"""Kaldi's log-mel filter bank: the one place that asks torchaudio for it."""

from __future__ import annotations

from torch import Tensor
from torchaudio.compliance import kaldi

WINDOW_MS = 25.0
SHIFT_MS = 10.0


def log_mel(wave: Tensor, rate: int, mels: int) -> Tensor:
    """float32 [1,samples] at `rate` Hz -> float32 [frames,mels], natural logarithm, one frame for each 10 ms.

    Only whole frames of 25 ms count, so shorter sounds give none. Symmetric Hann window, pre-emphasis 0.97, each frame
    less its mean, triangular filters from 20 Hz to half the rate, power; no dither, no energy column.
    """
    if wave.shape[1] < least(rate):
        return wave.new_zeros(0, mels)
    return kaldi.fbank(
        wave,
        sample_frequency=rate,
        window_type="hanning",
        num_mel_bins=mels,
        frame_length=WINDOW_MS,
        frame_shift=SHIFT_MS,
        dither=0.0,
        use_energy=False,
    )


def least(rate: int) -> int:
    """Samples that one frame needs."""
    return int(rate * WINDOW_MS * 0.001)
