"""Trains the pocket's sound tower: a small AST of transformers, on sounds of the world drawn while it trains.

Three linear heads (what is heard, how high, how often) read the tower's pooled vector, and three more the mean of its
patch tokens, so that both carry the answer; all six are thrown away afterwards. Sounds come louder and softer, noisier,
shifted, and one in four out of an MP4 file, because chats are given files.

    python tools/pocket/train_audio.py --minutes 8 --out mmtune/pocket/audio
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from mmtune import media
from mmtune.data.world.scene import LEVELS, PITCHES, SOUNDS, Scene, draw_scene
from mmtune.data.world.sound import wav_bytes, wave
from mmtune.data.world.video import mp4
from mmtune.encoders.hf_audio import Config, HfAudio
from mmtune.types import Media, MediaRef

RATE = 16_000
MELS, LENGTH = 64, 208
"""Height and width of the log-mel picture; 208 frames of 10 ms hold a clip of two seconds and what AAC adds to it."""
MEAN, STD = -6.1, 3.7
"""Of the logarithms of drawn sounds, fill left out."""
CONFIG = ASTConfig(
    hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, num_mel_bins=MELS,
    max_length=LENGTH, patch_size=16, frequency_stride=16, time_stride=8, layer_norm_eps=1e-6,
)  # fmt: skip
FACTS = ("kind", "pitch", "count")
SIZES = (len(SOUNDS), len(PITCHES), 4)
PREFIX = 2
"""Tokens in front of the patches."""


def facts(scene: Scene) -> list[int]:
    sound = scene.sound
    return [SOUNDS.index(sound.kind), PITCHES.index(sound.pitch), sound.count - 1]


def video(samples: NDArray[np.float32]) -> bytes:
    """The sound as chats get it: the AAC track of an MP4 file, under a small black picture."""
    return mp4(np.zeros((8, 16, 16, 3), np.uint8), samples)


def worn(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Softer, noisier, shifted by up to a tenth of a second, and some through AAC."""
    gain, noise = np.float32(np.exp(rng.uniform(np.log(0.2), np.log(1.2)))), np.float32(rng.exponential(0.004))
    samples = np.roll(samples, int(rng.integers(-RATE // 20, RATE // 10))) * gain
    samples = np.clip(samples + noise * rng.standard_normal(len(samples), dtype=np.float32), -1, 1)
    if rng.random() < 0.25:
        return media.load(MediaRef("audio", video(samples), "drawn")).data[0].numpy()
    return samples


class Heads(nn.Module):
    """Names what is heard, from one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, sum(SIZES))

    def forward(self, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """[B,width], int64 [B,3] -> loss, bool [B,3] which are right"""
        parts = self.head(self.norm(x)).split(SIZES, dim=-1)
        loss = sum(F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts))
        return loss, torch.stack([part.argmax(1) == wanted[:, i] for i, part in enumerate(parts)], dim=1)


class Trainer:
    def __init__(self, minutes: float, out: Path, batch: int, lr: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng, self.wear = random.Random(seed), np.random.default_rng(seed)
        self.minutes, self.out, self.batch, self.lr = minutes, out, batch, lr
        self.listen = ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=MELS, max_length=LENGTH, mean=MEAN, std=STD)
        self.tower = ASTModel(CONFIG)
        self.heads = nn.ModuleList([Heads(CONFIG.hidden_size), Heads(CONFIG.hidden_size)])
        decayed, other = [], []
        for parameter in [*self.tower.parameters(), *self.heads.parameters()]:
            (decayed if parameter.ndim == 2 else other).append(parameter)
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))

    def step(self, done: float) -> tuple[float, list[float]]:
        rate = self.lr * min(1.0, done / 0.05) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scenes = [draw_scene(self.rng, "easy", "train", most=1) for _ in range(self.batch)]
        sounds = [worn(wave(scene), self.wear) for scene in scenes]
        x = self.listen(sounds, sampling_rate=RATE, return_tensors="pt")["input_values"]
        wanted = torch.tensor([facts(scene) for scene in scenes])
        out = self.tower(x)
        views = (out.pooler_output, out.last_hidden_state[:, PREFIX:].mean(1))
        judged = [head(view, wanted) for head, view in zip(self.heads, views, strict=True)]
        loss = judged[0][0] + 0.5 * judged[1][0]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.tower.parameters(), *self.heads.parameters()], 1.0)
        self.optimizer.step()
        return loss.item(), judged[0][1].float().mean(0).tolist()

    def train(self) -> None:
        self.tower.train()
        begin, count, recent = time.time(), 0, []
        while (done := (time.time() - begin) / 60 / self.minutes) < 1:
            recent.append(self.step(done))
            count += 1
            if count % 100 == 0:
                loss = sum(one for one, _ in recent) / len(recent)
                right = [round(sum(column) / len(recent), 3) for column in zip(*(r for _, r in recent), strict=True)]
                print(f"{done * self.minutes:.1f} min step {count} loss {loss:.3f} right {right}", flush=True)
                recent = []
        print(f"end step {count} after {(time.time() - begin) / 60:.1f} min", flush=True)

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.tower.half().save_pretrained(self.out)
        (self.out / "model.safetensors").chmod(0o644)
        self.listen.save_pretrained(self.out)


def sounds_of(split: str, count: int, packed: bool, seed: str) -> tuple[list[Media], Tensor]:
    """Sounds as the product reads them from WAV or MP4 files of a split, and what is heard in them [count,3]."""
    rng = random.Random(seed)
    scenes = [draw_scene(rng, rng.choice(LEVELS), split) for _ in range(count)]
    files = [video(wave(scene)) if packed else wav_bytes(wave(scene)) for scene in scenes]
    return [media.load(MediaRef("audio", f, "drawn")) for f in files], torch.tensor([facts(s) for s in scenes])


@torch.no_grad()
def features(encoder: HfAudio, sounds: list[Media]) -> Tensor:
    """[items,E]: the mean over an item's tokens"""
    x = torch.stack([encoder.prepare(sound) for sound in sounds])
    out = encoder(x, torch.ones(x.shape[:2], dtype=torch.bool)).tokens
    return out.flatten(1, 2).mean(1)


def probe(folder: Path) -> dict[str, dict[str, float]]:
    """A linear layer fitted to the stored tower's features of training sounds, and its score on held-out ones."""
    scores: dict[str, dict[str, float]] = {}
    for tokens in ("pooled", "patches"):
        encoder = HfAudio(Config(weights=str(folder), tokens=tokens))
        encoder.load_weights()
        train, wanted = sounds_of("train", 1000, packed=False, seed="probe")
        x = features(encoder, train)
        mean, std = x.mean(0), x.std(0) + 1e-4
        torch.manual_seed(0)
        layer = nn.Linear(x.shape[1], sum(SIZES))
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
        for _ in range(400):
            parts = layer((x - mean) / std).split(SIZES, -1)
            loss = sum(F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for packed in (False, True):
            heard, truth = sounds_of("test", 500, packed, seed=f"held out {packed}")
            with torch.no_grad():
                parts = layer((features(encoder, heard) - mean) / std).split(SIZES, -1)
            right = torch.stack([part.argmax(1) == truth[:, i] for i, part in enumerate(parts)], dim=1)
            row = {name: round(right[:, i].float().mean().item(), 3) for i, name in enumerate(FACTS)}
            row["all three"] = round(right.all(1).float().mean().item(), 3)
            scores[f"{tokens}, {'MP4' if packed else 'WAV'}"] = row
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="wall clock")
    parser.add_argument("--out", type=Path, default=Path("mmtune/pocket/audio"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe-only", action="store_true", help="score the tower in --out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.probe_only:
        trainer = Trainer(args.minutes, args.out, args.batch, args.lr, args.seed)
        trainer.train()
        trainer.save()
    for name, row in probe(args.out).items():
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
