"""Trains the pocket's image tower: a small open_clip CLIP model, on frames drawn while it trains.

Two phases. First only the dense term (every patch token names the shape, colour, size, texture, sign word and turned
position at its place) on crowded frames, where almost every patch carries a label. Then ordinary frames with captions,
open_clip's contrastive loss beside the dense term, every fourth step still crowded. Trained the other way round the
tower pairs pictures and captions by colour alone and its patches never learn shapes.

The hidden matrices are trained by Muon (Jordan et al. 2024), everything else by AdamW.

    python tools/pocket/train_tower.py --minutes 25 --out mmtune/pocket/image
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.data.world.draw import LABELS, frame, labels
from mmtune.data.world.language import describe
from mmtune.data.world.scene import (
    COLOURS,
    LEVELS,
    SHAPES,
    SIGNS,
    SIZES,
    TEXTURES,
    Scene,
    Sign,
    Solid,
    Sound,
    draw_scene,
)

SIDE, PATCH = 72, 8
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
VISION = {"image_size": SIDE, "patch_size": PATCH, "width": 128, "layers": 4, "head_width": 32, "mlp_ratio": 4.0}
TEXT = {"context_length": 56, "width": 96, "heads": 3, "layers": 2, "pool_type": "last", "hf_tokenizer_name": "."}
# the tokenizer adds no end token, so the last place (padding, which sees every word before it) is read


def crowded(rng: random.Random) -> Scene:
    """All nine places taken, attributes repeated: many labels in one picture."""
    signs = rng.randrange(3) == 0
    plain = rng.random() < 0.4
    solids = [
        Solid(
            shape=rng.choice(SHAPES), colour=rng.choice(COLOURS), size=rng.choice(SIZES), place=place,
            texture="plain" if plain else rng.choice(TEXTURES), dx=rng.uniform(-0.11, 0.11),
            dy=rng.uniform(-0.11, 0.11),
            angle=rng.uniform(-0.12, 0.12) if rng.random() < 0.6 else rng.uniform(-math.pi, math.pi),
        )
        for place in range(5 if signs else 0, 9)
    ]  # fmt: skip
    grey = rng.uniform(0.04, 0.28)
    tint = tuple(max(0.0, grey + rng.uniform(-0.05, 0.05)) for _ in range(3))
    return Scene("full", tuple(solids), Sound("beep", "low", 1), None, tint, rng.uniform(0, 0.04), rng.getrandbits(40))  # type: ignore[arg-type]


def picture(scene: Scene, time_: float, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its labels; a crowded scene with free places gets a sign in each of them."""
    image, names = frame(scene, time_, SIDE), labels(scene, time_)
    taken = {s.place for s in scene.solids}
    if len(taken) == 4 and min(taken) == 5:
        image = image.copy()
        for place in range(5):
            one = Scene(
                "full",
                (),
                scene.sound,
                Sign(rng.choice(SIGNS), place),
                scene.background,
                scene.noise,
                rng.getrandbits(40),
            )
            part = np.maximum(labels(one, 0.0), 0)
            names = np.where(part > 0, part, names)
            y, x, unit = place // 3 * 24, place % 3 * 24, SIDE // 3
            image[y : y + unit, x : x + unit] = frame(one, 0.0, SIDE)[y : y + unit, x : x + unit]
    return image, names


def worn(images: Tensor, rng: np.random.Generator) -> Tensor:
    """float [B, 3, 72, 72] in 0..1 as resized frames of compressed files look: softer, shifted, darker or lighter."""
    size = len(images)
    blur = torch.tensor(rng.uniform(0, 0.16, size) * (rng.random(size) < 0.7), dtype=torch.float32).view(-1, 1, 1, 1)
    for axis in (2, 3):
        images = images * (1 - 2 * blur) + blur * (images.roll(1, axis) + images.roll(-1, axis))
    gain = torch.tensor(rng.uniform(0.92, 1.08, (size, 1, 1, 1)), dtype=torch.float32)
    lift = torch.tensor(rng.uniform(-0.03, 0.03, (size, 1, 1, 1)), dtype=torch.float32)
    images = images * gain + lift
    moved = np.nonzero(rng.random(size) < 0.3)[0]
    for i in moved:
        images[i] = images[i].roll(tuple(int(v) for v in rng.integers(-1, 2, 2)), (1, 2))
    return images.clamp(0, 1)


def at(scene: Scene, time_: float) -> Scene:
    """What can be seen at `time_`, as a still scene."""
    solids = []
    for s in scene.solids:
        if s.seen(time_):
            x, y = s.centre(time_)
            place = min(2, max(0, int(y))) * 3 + min(2, max(0, int(x)))
            solids.append(replace(s, event=None, place=place, size=SIZES[round(s.scale(time_) * 2)]))
    return replace(scene, solids=tuple(sorted(solids, key=lambda s: s.place)))


def tensors(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([p[0] for p in pairs])).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(np.stack([p[1] for p in pairs]))


def normal(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Dense(nn.Module):
    """Names for every patch token: one linear layer, thrown away after training."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = [n + 1 for n in LABELS.values()]
        self.head = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor, names: Tensor) -> tuple[Tensor, list[float]]:
        """tokens [B, 81, width], names [B, 81, 6] -> loss, share of right patches per column (foreground only)."""
        total, right = torch.zeros(()), []
        for column, logits in enumerate(self.head(tokens).split(self.sizes, -1)):
            target = names[..., column]
            front = names[..., 4 if column == 4 else 0] > 0
            weight = torch.where(front, 1.0, 0.1)
            loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            total = total + (loss * weight).sum() / weight.sum()
            right.append((logits.argmax(-1) == target)[front].float().mean().item())
        return total, right


class Muon:
    """Momentum whose update is made orthogonal (five Newton-Schulz steps).

    Beside torch.optim.Muon because it takes the fused query-key-value matrix as the three that it is, and computes in
    the parameters' own precision.
    """

    def __init__(self, params: list[Tensor], lr: float, decay: float, momentum: float = 0.95):
        self.params, self.lr, self.decay, self.momentum = params, lr, decay, momentum
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        for p, buffer in zip(self.params, self.buffers, strict=True):
            if p.grad is None:
                continue
            buffer.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(buffer, self.momentum)
            parts = 3 if p.shape[0] == 3 * p.shape[1] else 1
            p.mul_(1 - self.lr * self.decay)
            for target, part in zip(p.chunk(parts), update.chunk(parts), strict=True):
                target.add_(self._orthogonal(part), alpha=-self.lr * 0.2 * math.sqrt(max(part.shape)))

    @staticmethod
    def _orthogonal(g: Tensor) -> Tensor:
        x = g / (g.norm() + 1e-7)
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if flip else x


class Trainer:
    def __init__(self, minutes: float, out: Path, tokenizer: Path, packed: float, batch: int, lr: float, seed: int):
        import open_clip
        from open_clip.model import CLIP

        torch.manual_seed(seed)
        self.rng, self.wear = random.Random(seed), np.random.default_rng(seed)
        self.minutes, self.out, self.packed, self.batch, self.lr = minutes, out, packed, batch, lr
        out.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, out / name)
        words = json.loads((tokenizer / "tokenizer.json").read_text())
        size = 1 + max([*words["model"]["vocab"].values(), *(t["id"] for t in words["added_tokens"])])
        self.config = {"embed_dim": 128, "vision_cfg": VISION, "text_cfg": TEXT | {"vocab_size": size}}
        self._write_config()
        self.words = open_clip.get_tokenizer(f"local-dir:{out}")
        self.model = CLIP(**{**self.config, "output_dict": False})
        self.dense, self.clip_loss = Dense(VISION["width"]), open_clip.ClipLoss()
        self.model.visual.transformer.register_forward_hook(self._keep)
        inner = {n: p for n, p in self.model.named_parameters() if p.ndim == 2 and "resblocks" in n}
        self.muon = Muon(list(inner.values()), lr, 0.02)
        kept = {id(p) for p in inner.values()}
        rest = [p for p in [*self.model.parameters(), *self.dense.parameters()] if id(p) not in kept]
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.params = [*inner.values(), *rest]
        self.probes = {level: self._probe(level) for level in LEVELS}
        self.tokens = torch.zeros(0)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.tokens = output[:, 1:]  # the first token is the class token

    def _probe(self, level: str) -> tuple[Tensor, Tensor, list[str]]:
        rng = random.Random(f"probe:{level}")
        scenes = [(draw_scene(rng, level, "val"), rng.random()) for _ in range(256)]
        images, names = tensors([picture(s, t, rng) for s, t in scenes])
        return images, names, [describe(at(s, t)) for s, t in scenes]

    def batch_of(self, crowd: bool) -> tuple[Tensor, Tensor, list[str]]:
        if crowd:
            scenes = [(crowded(self.rng), 0.0) for _ in range(self.batch)]
        else:
            level = ("easy", "full", "full")
            scenes = [self._moment(self.rng.choice(level)) for _ in range(self.batch)]
        images, names = tensors([picture(s, t, self.rng) for s, t in scenes])
        return worn(images, self.wear), names, [] if crowd else [describe(at(s, t)) for s, t in scenes]

    def _moment(self, level: str) -> tuple[Scene, float]:
        """A training clip and a time at which it does not look like the first picture of a held-out clip."""
        while True:
            scene, time_ = draw_scene(self.rng, level, "train"), self.rng.random()
            if at(scene, time_).still_split == "train":
                return scene, time_

    def step(self, done: float, count: int) -> tuple[float, float]:
        crowd = done < self.packed or count % 4 == 0
        images, names, texts = self.batch_of(crowd)
        pair = torch.zeros(())
        if crowd:
            self.model.visual(normal(images))
        else:
            pair = self.clip_loss(*self.model(normal(images), self.words(texts)))
        dense, _ = self.dense(self.tokens, names)
        rate = min(1.0, (count + 1) / 60) * min(1.0, (1 - done) / 0.5 + 0.01)
        self.muon.lr = self.lr * rate
        for group in self.adam.param_groups:
            group["lr"] = self.lr * rate
        for p in self.params:
            p.grad = None
        (dense + pair).backward()
        nn.utils.clip_grad_norm_(self.params, 2.0)
        self.muon.step()
        self.adam.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return dense.item(), pair.item()

    @torch.no_grad()
    def probe(self) -> dict[str, dict[str, float]]:
        self.model.eval()
        scores = {}
        for level, (images, names, texts) in self.probes.items():
            seen, said, _ = self.model(normal(images), self.words(texts))
            _, right = self.dense(self.tokens, names)
            scores[level] = {n: round(r, 3) for n, r in zip(LABELS, right, strict=True) if not math.isnan(r)}
            found = (seen @ said.T).argmax(1) == torch.arange(len(texts))
            scores[level]["retrieval@1 of 256"] = round(found.float().mean().item(), 3)
        self.model.train()
        return scores

    def _write_config(self) -> None:
        look = {
            "size": SIDE,
            "mode": "RGB",
            "mean": MEAN,
            "std": STD,
            "interpolation": "bilinear",
            "resize_mode": "squash",
        }
        text = json.dumps({"model_cfg": self.config, "preprocess_cfg": look}, indent=1)
        (self.out / "open_clip_config.json").write_text(text + "\n")

    def save(self) -> None:
        from safetensors.torch import save_file

        state = {k: v.to(torch.float16).contiguous() for k, v in self.model.state_dict().items() if k != "attn_mask"}
        save_file(state, self.out / "open_clip_model.safetensors.part", metadata={"format": "pt"})
        (self.out / "open_clip_model.safetensors.part").chmod(0o644)
        (self.out / "open_clip_model.safetensors.part").replace(self.out / "open_clip_model.safetensors")

    def train(self, probe_every: float, save_after: float) -> None:
        begin = last = time.time()
        count = 0
        while (done := (time.time() - begin) / 60 / self.minutes) < 1:
            dense, pair = self.step(done, count)
            count += 1
            if time.time() - last > probe_every:
                last = time.time()
                print(
                    f"{done * self.minutes:.1f} min step {count} dense {dense:.3f} pair {pair:.3f} "
                    f"{json.dumps(self.probe())}",
                    flush=True,
                )
                if done > save_after:
                    self.save()
        self.save()
        print(f"end step {count} {json.dumps(self.probe())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25, help="wall clock")
    parser.add_argument("--out", type=Path, default=Path("mmtune/pocket/image"))
    parser.add_argument("--tokenizer", type=Path, default=Path("mmtune/pocket/llm"), help="folder with tokenizer.json")
    parser.add_argument("--packed", type=float, default=0.35, help="share of the time on crowded frames only")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--save-after", type=float, default=0.5, help="from this share on every probe saves a checkpoint"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args.minutes, args.out, args.tokenizer, args.packed, args.batch, args.lr, args.seed)
    trainer.train(probe_every=30, save_after=args.save_after)


if __name__ == "__main__":
    main()
