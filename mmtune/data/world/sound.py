"""The sound of a scene: one kind of sound, low or high, one to four times."""

from __future__ import annotations

import io
import math
import wave as wav

import numpy as np
from numpy.typing import NDArray

from mmtune.data.world.scene import SOUNDS, Scene

HERTZ = {"low": 300.0, "high": 900.0}
LENGTH = 0.24
"""Seconds of one sound."""


def wave(scene: Scene, seconds: float = 2.0, rate: int = 16_000) -> NDArray[np.float32]:
    """float32 [seconds * rate] in -1..1. The sounds are spread evenly; the seed moves and tunes them a little."""
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    out = rng.standard_normal(round(seconds * rate), dtype=np.float32) * np.float32(0.003)
    room = seconds / scene.sound.count
    for i in range(scene.sound.count):
        one = _single(scene.sound.kind, HERTZ[scene.sound.pitch] * rng.uniform(0.94, 1.06), rate, rng)
        start = round((i + rng.uniform(0.1, 0.3)) * room * rate)
        one = one[: len(out) - start]
        out[start : start + len(one)] += one * np.float32(rng.uniform(0.5, 0.8))
    return np.clip(out, -1.0, 1.0)


def _single(kind: str, hertz: float, rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One sound of `LENGTH` seconds with its peak at 1."""
    t = np.arange(round(LENGTH * rate)) / rate
    turn = 2 * math.pi * hertz * t
    if kind == "beep":
        sound = np.sin(turn)
    elif kind == "buzz":  # odd and even partials, with a rough beating
        sound = sum(np.sin(k * turn) / k for k in range(1, 6)) * (0.6 + 0.4 * np.sign(np.sin(2 * math.pi * 40 * t)))
    elif kind == "click":
        sound = np.sin(2 * turn) * np.exp(-t / 0.006)
    elif kind == "bell":  # inharmonic partials that die away at their own pace
        sound = sum(a * np.sin(k * turn) * np.exp(-t * k / 0.12) for k, a in ((1, 1.0), (2.76, 0.6), (5.4, 0.3)))
    elif kind == "hiss":  # noise in one octave about the pitch, four times up
        bands = np.fft.rfft(rng.standard_normal(len(t)))
        hz = np.fft.rfftfreq(len(t), 1 / rate)
        sound = np.fft.irfft(bands * np.exp(-((np.log2(np.maximum(hz, 1) / (4 * hertz)) * 2) ** 2)), len(t))
    elif kind == "chirp":  # rises by an octave and a half
        sound = np.sin(2 * math.pi * hertz * LENGTH / 1.04 * (2.83 ** (t / LENGTH) - 1))
    else:
        raise ValueError(f"sound {kind!r} is not one of {SOUNDS}")
    fade = np.minimum(1.0, np.minimum(t / 0.003, (LENGTH - t) / 0.02))
    sound = sound * fade
    return (sound / np.abs(sound).max()).astype(np.float32)


def wav_bytes(samples: NDArray[np.float32], rate: int = 16_000) -> bytes:
    """A mono 16-bit WAV file."""
    buffer = io.BytesIO()
    with wav.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
