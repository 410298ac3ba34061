"""Train the pocket language model on text of the pocket world, and only on text.

    python tools/pocket/train_llm.py --out FOLDER --minutes 110 --decay 20 [--resume FOLDER] [--stages ...]

A row is one user turn that opens with notes of a scene, followed by a dozen questions. In most rows each question sees
the notes and itself only (a block mask; positions restart), in the others the turns follow each other as in a chat.
Notes take three forms (see notes.py): what is in each place at each moment, one fact per bag, and plain written text
in quote marks; some rows are small talk and instructions without notes.

Training opens with drills (`STAGES`): short rows about one skill, which in the runs tried was learnt far sooner so than
in the mixture (one run each, no ablation). In the mixture that follows, types that are answered worst are asked most.

Matrices are trained by Muon, the rest by AdamW; the rate is constant after a warm-up and falls linearly to zero in
the last --decay minutes. Writes a transformers Llama folder (safetensors) beside the tokenizer made before.
Scenes come from the training split only; accuracies printed are over scenes of the validation split.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from notes import CHANGES, UNMARKED, Bag, chatter, facts, halves, marks, moments, quoted, sounds
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mmtune.data.world import language
from mmtune.data.world.language import CAPTION_PROMPTS, HEARD, TEMPORAL, Question, describe, questions
from mmtune.data.world.scene import DIRECTIONS, Scene, Solid, draw_scene

ORDERED = ("order", "before", "when", "half")
"""Types that rest on which change came first."""
FORMS = ("moments", "facts", "quoted")


def lean_reference(solid: Solid, rng: random.Random) -> str:
    """How questions name a solid while the model learns: mostly by one feature alone.

    Looking a thing up by its shape is learnt last, and a full name lets the model get by without it.
    """
    return rng.choices((f"the {language.name(solid)}", f"the {solid.colour} object", f"the {solid.shape}"), (2, 3, 5))[
        0
    ]


def build(vocabulary: int, width: int, depth: int, inner: int, heads: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2, initializer_range=width**-0.5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # output projections start small, so that a deep stack starts near the identity
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * depth) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * depth) ** -0.5)
    return model


class Writer:
    """Turns scenes into rows of ids: a prefix of bags, then turns."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.ids = lru_cache(maxsize=200_000)(
            lambda text: tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        )

        self.spans = lru_cache(maxsize=100_000)(
            lambda text: self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        )

    def bag(self, bag: Bag) -> list[tuple[int, float]]:
        return [(i, w) for word, w in bag for i in self.ids(word)]

    def plain(self, text: str) -> list[list[tuple[int, float]]]:
        return [[(i, 1.0)] for i in self.ids(text)]

    def prefix(self, form: str, bags: list[Bag], quotes: list[tuple[str, str]]) -> list[list[tuple[int, float]]]:
        out = self.plain("<|bos|>") + self.plain("<|user|>")
        if form in ("moments", "facts"):
            out += self.plain("<|media|>") + [self.bag(b) for b in bags] + self.plain("<|/media|>")
        for source, text in quotes:
            out += self.plain("<|quote|>") + self.plain(f"{source}: {text}") + self.plain("<|/quote|>")
        return out

    def ends(self, text: str, phrase: str) -> list[int]:
        """Index of the token that ends each occurrence of a phrase, as a whole word, in a text."""
        spans = self.spans(text)
        stops = (found.end() for found in re.finditer(rf"\b{re.escape(phrase)}\b", text))
        return [next(i for i, (_, end) in enumerate(spans) if end >= stop) for stop in stops]

    def turn(self, asked: str, answer: str, first: bool) -> tuple[list[int], list[int]]:
        """(ids, labels already shifted) of one question and its answer."""
        head = [
            *(() if first else self.ids("<|user|>")),
            *self.ids(asked),
            *self.ids("<|end|>"),
            *self.ids("<|assistant|>"),
        ]
        tail = [*self.ids(answer), *self.ids("<|end|>")]
        return head + tail, [-100] * (len(head) - 1) + tail + [-100]


class Row:
    """One sequence: prefix bags, turn ids, labels, block numbers, positions, and the type of each block."""

    def __init__(
        self,
        writer: Writer,
        prefix: list,
        turns: list[Question],
        chained: bool,
        marked: Sequence[tuple[int, int]] = (),
        scene: Scene | None = None,
    ) -> None:
        self.prefix, self.types = prefix, [q.type for q in turns]
        self.marks = [*[UNMARKED] * 3, *marked][: len(prefix)]
        """Of the prefix, whose bags begin at its fourth position; see notes.marks."""
        self.mentions: list[tuple[int, int]] = []
        """(index into ids, turn of its change: 0 none, 1 first, 2 last) of solids that questions about order name."""
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.blocks: list[int] = []
        self.positions: list[int] = []
        for block, q in enumerate(turns, 1):
            ids, labels = writer.turn(q.question, q.answer, first=not chained or block == 1)
            start = len(prefix) + (len(self.ids) if chained else 0)
            if scene and q.type in ORDERED and len(scene.events) == 2:
                skip = len(self.ids) + (chained and block > 1)
                self.mentions += [(skip + i, turn) for i, turn in mentions(writer, scene, q.question)]
            self.ids += ids
            self.labels += labels
            self.blocks += [block] * len(ids)
            self.positions += range(start, start + len(ids))
        self.chained = chained


def mentions(writer: Writer, scene: Scene, asked: str) -> list[tuple[int, int]]:
    """(index of the token that ends a name, turn of the named solid's change) for the solids that a question names."""
    out = []
    for solid in scene.solids:
        turn = scene.events.index(solid) + 1 if solid.event else 0
        ways = (solid.shape, f"{solid.colour} object")
        out += [(i, turn) for way in ways for i in writer.ends(asked, way)]
    return out


def collate(rows: list[Row], embedding: nn.Embedding, noise: float, multiple: int = 1) -> dict[str, Tensor]:
    count = len(rows)
    longest = max(len(r.prefix) for r in rows)
    tail = max(len(r.ids) for r in rows)
    tail += -(longest + tail) % multiple
    width = max(len(b) for r in rows for b in r.prefix)
    bag = torch.zeros(count, longest, width, dtype=torch.long)
    weight = torch.zeros(count, longest, width)
    ids = torch.zeros(count, tail, dtype=torch.long)
    labels = torch.full((count, tail), -100)
    block = torch.full((count, longest + tail), -1)
    position = torch.zeros(count, longest + tail, dtype=torch.long)
    chained = torch.tensor([r.chained for r in rows])
    marked = torch.full((count, longest, 2), -100)
    mentioned = torch.full((count, tail), -100)
    for i, row in enumerate(rows):
        for j, words in enumerate(row.prefix):
            bag[i, j, : len(words)] = torch.tensor([w[0] for w in words])
            weight[i, j, : len(words)] = torch.tensor([w[1] for w in words])
        marked[i, : len(row.marks)] = torch.tensor(row.marks)
        for index, turn in row.mentions:
            mentioned[i, index] = turn
        n, p = len(row.ids), len(row.prefix)
        ids[i, :n], labels[i, :n] = torch.tensor(row.ids), torch.tensor(row.labels)
        block[i, :p], block[i, longest : longest + n] = 0, torch.tensor(row.blocks)
        position[i, :p], position[i, longest : longest + n] = torch.arange(p), torch.tensor(row.positions)
    if noise:
        many = (weight > 0).sum(-1, keepdim=True) > 1
        weight = weight * torch.where(many, 0.7 + 0.6 * torch.rand_like(weight), 1.0)
    summed = (embedding(bag) * weight[..., None]).sum(2)
    rms = embedding.weight.pow(2).mean().sqrt()
    summed = summed * (rms / summed.pow(2).mean(-1, keepdim=True).add(1e-9).sqrt())
    if noise:
        summed = summed + many * noise * torch.rand(count, 1, 1) * rms.detach() * torch.randn_like(summed)
    length = longest + tail
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    same = (block[:, None, :] == 0) | (block[:, :, None] == block[:, None, :]) | chained[:, None, None]
    allowed = (seen & same & (block[:, None, :] >= 0)) | torch.eye(length, dtype=torch.bool)
    return {
        "embeds": torch.cat([summed, embedding(ids)], 1), "labels": labels, "position": position,
        "blocks": block[:, longest:],
        "marks": marked,
        "mentions": mentioned,
        "mask": torch.zeros(count, 1, length, length).masked_fill_(~allowed[:, None], torch.finfo(torch.float32).min),
    }  # fmt: skip


class Marker(nn.Module):
    """Reads from the middle of the model what has changed so far, at each position of a note, and a layer later, at
    each name that a question about order gives, in which turn the named thing changes.

    A crutch for learning, thrown away afterwards. What it adds has not been measured apart from the rest.
    """

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.layer, self.kinds = layer, 1 + len(DIRECTIONS) + len(CHANGES)
        self.read = nn.Linear(width, self.kinds + 3)
        self.name = nn.Linear(width, 3)

    def forward(self, states: Sequence[Tensor], marked: Tensor, mentioned: Tensor) -> tuple[Tensor, float, float]:
        """states of all layers [B,T,D], marked [B,P,2], mentioned [B,Q] of the last Q places

        -> (loss, share of right marks of what has changed, share of right turns)
        """
        loss, noticed, named = states[0].sum() * 0, math.nan, math.nan
        chosen = marked[..., 0] >= 0
        if (marked[..., 0] > 0).any():
            logits, target = self.read(states[self.layer][:, : marked.shape[1]][chosen]), marked[chosen]
            kind, turn = logits[:, : self.kinds], logits[:, self.kinds :]
            weight = torch.where(target[:, 0] > 0, 1.0, 0.3)
            each = sum(F.cross_entropy(x, t, reduction="none") for x, t in ((kind, target[:, 0]), (turn, target[:, 1])))
            changed = target[:, 0] > 0
            right = (kind.argmax(-1) == target[:, 0]) & (turn.argmax(-1) == target[:, 1]) & changed
            loss, noticed = loss + (each * weight).sum() / weight.sum(), (right.sum() / changed.sum()).item()
        told = mentioned >= 0
        if told.any():
            logits = self.name(states[self.layer + 1][:, -mentioned.shape[1] :][told])
            loss = loss + F.cross_entropy(logits, mentioned[told])
            named = (logits.argmax(-1) == mentioned[told]).float().mean().item()
        return loss, noticed, named


def answer(
    model: LlamaForCausalLM, batch: dict[str, Tensor], marker: Marker | None = None
) -> tuple[Tensor, Tensor, Tensor, tuple[float, float]]:
    """(mean loss, whether each supervised token was the likeliest, loss and accuracies of the marker)"""
    tail = batch["labels"].shape[1]
    states = model.model(
        inputs_embeds=batch["embeds"], attention_mask=batch["mask"], position_ids=batch["position"], use_cache=False,
        output_hidden_states=marker is not None,
    )  # fmt: skip
    hidden = states.last_hidden_state[:, -tail:]
    extra, *marked = (
        marker(states.hidden_states, batch["marks"], batch["mentions"])
        if marker
        else (hidden.sum() * 0, math.nan, math.nan)
    )
    chosen = batch["labels"] != -100
    logits = model.lm_head(hidden[chosen])
    target = batch["labels"][chosen]
    right = torch.ones_like(batch["labels"], dtype=torch.bool)
    right[chosen] = logits.argmax(-1) == target
    return F.cross_entropy(logits, target), right, extra, tuple(marked)


def tally(rows: list[Row], batch: dict[str, Tensor], right: Tensor, into: dict[str, list[int]]) -> None:
    """Exact answers per type: every token of an answer has to be right, which is greedy decoding's own condition."""
    for i, row in enumerate(rows):
        for j, kind in enumerate(row.types):
            into[kind][0] += int(right[i][batch["blocks"][i] == j + 1].all())
            into[kind][1] += 1


class Stage(NamedTuple):
    """A drill: one skill alone, on short rows, until it is there. What takes an hour in a mixture takes minutes so."""

    minutes: float
    types: tuple[str, ...]
    forms: tuple[str, ...]
    levels: tuple[str, ...] = ("easy",)
    most: tuple[int | None, ...] = (None,)
    """Solids of a scene, at most; drawn from these."""
    least: int = 3
    """Fewest questions that a scene must offer."""
    without: str = ""
    """Questions that hold this word are left out."""


STAGES = {
    "look": Stage(5, ("colour", "shape", "size", "position"), ("still", "still", "facts"), most=(2, 3, 3)),
    "change": Stage(5, ("event", "direction", "does"), ("sparse",), most=(1, 2, 2, 3)),
    "told": Stage(3, ("order", "before", "when", "half"), ("facts",), most=(2, 2, 3), least=4),
    "half": Stage(5, ("half", "middle", "event"), ("cut", "sparse", "sparse"), most=(2, 2, 3), least=4),
    "before": Stage(6, ("order", "before", "when", "half"), ("sparse", "sparse", "facts"), most=(2, 2, 3), least=4),
    "first": Stage(3, ("order", "before"), ("sparse", "sparse", "facts"), most=(2, 2, 3), least=3, without="last"),
    "order": Stage(6, ("order", "before", "when"), ("sparse", "sparse", "facts"), most=(2, 2, 3), least=4),
    "sets": Stage(3, ("count", "list", "exists", "compare"), ("still",)),
    "full": Stage(
        5, ("texture", "text", "speed", "size", "direction"), ("sparse", "still", "facts"), ("full",), least=2
    ),
    "speed": Stage(4, ("speed", "which"), ("whole",), ("full",), most=(2, 3, 4), least=1),
    "words": Stage(6, ("colour", "shape", "size", "position", "event", "order", "text"), ("quoted",), ("easy", "full")),
    "heard": Stage(2, HEARD, ("facts",), ("full",), least=2),
}
"""Drills in the order in which they are held, before the mixture of everything."""


class Teacher:
    """Draws rows; asks more of what is answered badly."""

    def __init__(self, writer: Writer, rng: random.Random, turns: int) -> None:
        self.writer, self.rng, self.turns = writer, rng, turns
        self.full = 0.45
        self.whole = 0.5
        self.aside: list[str] = []
        self.known: dict[str, float] = defaultdict(lambda: 0.3)

    def ask(self, scene: Scene, still: bool, heard: bool, count: int) -> list[Question]:
        pool = {q.question: q for _ in range(3) for q in questions(scene, self.rng, still=still, heard=heard)}
        drawn = sorted(
            pool.values(), key=lambda q: self.rng.random() ** (1 / (1.08 - self.known[q.type]) ** 1.5), reverse=True
        )
        return drawn[:count]

    def drill(self, stage: Stage) -> Row:
        """A short row of one stage: few types, each asked several times, little to read."""
        rng = self.rng
        while True:
            scene = draw_scene(rng, rng.choice(stage.levels), "train", rng.choice(stage.most))
            form = rng.choice(stage.forms)
            if form == "still":
                scene = scene.snapshot(0.0)
            heard = bool({*HEARD} & {*stage.types})
            asked = [q for _ in range(6) for q in questions(scene, rng, still=form == "still", heard=heard)]
            asked += [q for _ in range(2) for q in halves(scene, rng)]
            if stage.without:
                asked = [q for q in asked if stage.without not in q.question]
            if form == "sparse":
                asked = [q for q in asked if q.type != "speed"]  # how fast cannot be told from few moments
            if form == "cut":
                asked = [q for q in asked if q.type in ("middle", "half") and "last" not in q.question]
            pool = {q.question: q for q in asked if q.type in stage.types}
            if len(pool) >= stage.least:
                break
        turns = sorted(pool.values(), key=lambda q: rng.random())[: self.turns]
        bags: list[Bag] = []
        marked: list[tuple[int, int]] = []
        quotes: list[tuple[str, str]] = []
        if form == "still":
            bags = moments(scene, 1)
        elif form == "whole":
            bags, marked = moments(scene), marks(scene)
        elif form in ("sparse", "cut"):
            bags, marked = self.sparse(scene, form == "cut")
        elif form == "facts":
            bags = facts(scene, rng, heard)
        else:
            quotes = [("caption", describe(scene))]
        prefix = self.writer.prefix("quoted" if quotes else "moments", bags, quotes)
        return Row(self.writer, prefix, turns, chained=False, marked=marked, scene=scene)

    def sparse(self, scene: Scene, cut: bool = False) -> tuple[list[Bag], list[tuple[int, int]]]:
        """A few of the eight moments, the first and the last among them, and one in the middle for two events.

        cut: nothing after the middle.
        """
        bags, marked = moments(scene, 8), marks(scene, 8)
        kept = {0, 7, *self.rng.sample(range(1, 7), self.rng.choice((0, 0, 1, 2, 3)))}
        if len(scene.events) == 2:
            kept.add(self.rng.choice((3, 3, 4)))
        if cut:
            kept = {moment for moment in kept if moment < 3} | {3}
        chosen = [9 * moment + place for moment in sorted(kept) for place in range(9)]
        return [bags[i] for i in chosen], [marked[i] for i in chosen]

    def weakest(self, count: int) -> list[str]:
        """Types to practise next, drawn by how badly they are answered."""
        types = [t for t in self.known if t not in ("describe", "chatter", *self.aside)]
        return sorted(types, key=lambda t: self.rng.random() ** (1 / (1.03 - self.known[t])), reverse=True)[:count]

    def practice(self, wanted: list[str]) -> Row:
        """A row that asks a few types only, several times each: what is rare in ordinary rows is learnt here."""
        rng = self.rng
        while True:
            level = "full" if rng.random() < self.full or {"text", "texture", "speed", *HEARD} & {*wanted} else "easy"
            scene = draw_scene(rng, level, "train")
            heard = bool({*HEARD} & {*wanted})
            form = "facts" if heard else rng.choices(FORMS, (0.62, 0.2, 0.18))[0]
            sparse = form == "moments" and rng.random() > self.whole
            pool = {q.question: q for _ in range(6) for q in questions(scene, rng, heard=heard) if q.type in wanted}
            pool = {k: q for k, q in pool.items() if not (sparse and q.type == "speed")}
            if pool:
                break
        marked: list[tuple[int, int]] = []
        if form == "facts":
            bags = facts(scene, rng, heard)
        else:
            bags, marked = self.sparse(scene) if sparse else (moments(scene), marks(scene))
        quotes = [("caption", describe(scene))] if form == "quoted" else []
        asked = sorted(pool.values(), key=lambda q: rng.random())[:9]
        marked = marked if form == "moments" else []
        return Row(
            self.writer, self.writer.prefix(form, bags, quotes), asked, chained=False, marked=marked, scene=scene
        )

    def row(self, share: float) -> Row:
        """share: how much of the training is over, for the curriculum."""
        rng, writer = self.rng, self.writer
        if rng.random() < 0.05:
            turns = [Question("chatter", *chatter(rng)) for _ in range(rng.randint(2, 6))]
            return Row(writer, writer.prefix("none", [], []), turns, chained=rng.random() < 0.5)
        level = "full" if rng.random() < min(self.full, 0.1 + share) else "easy"
        most = 1 if rng.random() < 0.5 - 10 * share else 2 if rng.random() < 0.8 - 6 * share else None
        scene = draw_scene(rng, level, "train", most)
        form = rng.choices(FORMS, (0.64, 0.2, 0.16))[0]
        still = form == "moments" and rng.random() < 0.12
        heard = level == "full" and form != "quoted" and rng.random() < 0.3
        quotes: list[tuple[str, str]] = []
        bags: list[Bag] = []
        marked: list[tuple[int, int]] = []
        if still:
            scene = scene.snapshot(0.0)
            bags = moments(scene, 1)
        elif form == "moments":
            group = 1 if rng.random() < 0.75 else 2
            bags, marked = moments(scene, 8, group), marks(scene) if group == 1 else []
        elif form == "facts":
            bags = facts(scene, rng, heard)
        else:
            quotes = quoted(scene, rng)
        if form == "moments" and heard:
            bags = bags + sounds(scene)
        if form != "quoted" and scene.sign and rng.random() < 0.15:
            quotes = [("ocr", scene.sign.text)]
        chained = rng.random() < 0.3
        if form == "quoted" and quotes[0][0] == "ocr" and len(quotes) == 1:
            asked = [q for q in questions(scene, rng) if q.type == "text"]
        else:
            asked = self.ask(scene, still, heard, rng.randint(3, 7) if chained else self.turns)
            if rng.random() < 0.5:
                asked.insert(
                    rng.randrange(len(asked) + 1), Question("describe", rng.choice(CAPTION_PROMPTS), describe(scene))
                )
        return Row(writer, writer.prefix(form, bags, quotes), asked, chained, marked, scene)


def examination(writer: Writer, form: str, level: str, split: str, scenes: int, seed: str) -> list[Row]:
    """Every type once per scene, on held-out scenes."""
    rng = random.Random(f"{seed}:{form}:{level}")
    rows = []
    for _ in range(scenes):
        scene = draw_scene(rng, level, split)
        heard = level == "full" and form == "facts"
        bags = moments(scene) if form == "moments" else facts(scene, rng, heard) if form == "facts" else []
        quotes = [("caption", describe(scene))] if form == "quoted" else []
        asked = [*questions(scene, rng, heard=heard), Question("describe", CAPTION_PROMPTS[0], describe(scene))]
        rows.append(Row(writer, writer.prefix(form, bags, quotes), asked, chained=False))
    return rows


@torch.no_grad()
def examine(model: LlamaForCausalLM, rows: list[Row]) -> dict[str, list[int]]:
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        batch = collate(part, model.get_input_embeddings(), 0.0)
        tally(part, batch, answer(model, batch)[1], score)
    return score


def share(
    score: dict[str, list[int]], types: tuple[str, ...] | None = None, out: tuple[str, ...] = ("describe", "chatter")
) -> float:
    kept = [v for k, v in score.items() if k not in out and (types is None or k in types)]
    return sum(v[0] for v in kept) / max(1, sum(v[1] for v in kept))


def line(score: dict[str, list[int]]) -> str:
    each = " ".join(f"{k} {v[0] / v[1]:.2f}" for k, v in sorted(score.items()))
    return f"{share(score):.3f} temporal {share(score, TEMPORAL):.3f} | {each}"


def optimizers(model: nn.Module, marker: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*rest, *marker.parameters()], lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tokenizer", type=Path, default=Path("mmtune/pocket/llm"))
    ask.add_argument("--out", type=Path, required=True)
    ask.add_argument("--minutes", type=float, default=110, help="minutes of training, the fall included")
    ask.add_argument("--decay", type=float, default=20, help="minutes over which the rate falls at the end")
    ask.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="drills to hold first")
    ask.add_argument("--width", type=int, default=128)
    ask.add_argument("--depth", type=int, default=6)
    ask.add_argument("--inner", type=int, default=352)
    ask.add_argument("--heads", type=int, default=4)
    ask.add_argument("--rows", type=int, default=10, help="scenes per step")
    ask.add_argument("--turns", type=int, default=12)
    ask.add_argument("--rate", type=float, default=3e-3)
    ask.add_argument("--noise", type=float, default=0.3)
    ask.add_argument("--seed", type=int, default=1)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument(
        "--resume", type=Path, help="a folder written before: start from its weights, and hold only the --stages named"
    )
    a = ask.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    writer = Writer(a.tokenizer)
    model = build(len(writer.tokenizer), a.width, a.depth, a.inner, a.heads)
    if a.resume:
        model = LlamaForCausalLM.from_pretrained(a.resume, dtype=torch.float32, local_files_only=True)
    a.out.mkdir(parents=True, exist_ok=True)
    print(f"{sum(p.numel() for p in model.parameters())} weights, {len(writer.tokenizer)} tokens", flush=True)
    marker = Marker(a.width, a.depth // 2)
    opts = optimizers(model, marker, a.rate)
    teacher = Teacher(writer, random.Random(f"llm:{a.seed}:{a.resume}"), a.turns)
    exams = {(f, lv): examination(writer, f, lv, "val", 32, "train") for f in FORMS for lv in ("easy", "full")}
    start = logged = time.time()
    language._ref = lean_reference
    ends = dict(zip(a.stages, itertools.accumulate(STAGES[name].minutes for name in a.stages), strict=True))
    lately: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    """Right answers of the drill held since the last report."""
    steps, running, average, drilled, noticed = 0, defaultdict(lambda: [0, 0]), 0.0, 0.0, [0.0, 0.0]
    control = a.out / "control.json"  # {"threads": 2, "minutes": 100}: read while training
    while True:
        if steps % 50 == 0 and control.exists():
            wish = json.loads(control.read_text())
            torch.set_num_threads(wish.get("threads", a.threads))
            teacher.full, teacher.whole = wish.get("full", teacher.full), wish.get("whole", teacher.whole)
            teacher.aside = wish.get("aside", teacher.aside)
            a.minutes, a.decay = wish.get("minutes", a.minutes), wish.get("decay", a.decay)
        spent = (time.time() - start) / 60
        if spent >= a.minutes:
            break
        rate = a.rate * min(1.0, (steps + 1) / 100) * min(1.0, max(0.01, (a.minutes - spent) / a.decay))
        for opt in opts:
            opt.param_groups[0]["lr"] = rate
        stage = next((name for name, end in ends.items() if spent < end), None)
        if stage and steps % 6:
            rows = [teacher.drill(STAGES[stage]) for _ in range(a.rows)]
        elif not stage and steps % 2 and teacher.known:
            wanted = teacher.weakest(3)
            rows = [teacher.practice(wanted) for _ in range(a.rows)]
        else:
            rows = [teacher.row(spent / a.minutes) for _ in range(a.rows)]
        batch = collate(rows, model.get_input_embeddings(), a.noise)
        loss, right, extra, marked = answer(model, batch, marker)
        (loss + 0.5 * extra).backward()
        noticed = [
            old if math.isnan(new) else 0.95 * old + 0.05 * new for old, new in zip(noticed, marked, strict=True)
        ]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        average = loss.item() if steps == 0 else 0.98 * average + 0.02 * loss.item()
        if stage and steps % 6:
            drilled = loss.item() if not drilled else 0.95 * drilled + 0.05 * loss.item()
        if stage and steps % 6:
            tally(rows, batch, right, lately)
        elif not stage and not steps % 2:
            tally(rows, batch, right, running)
        steps += 1
        if steps % 40 == 0:
            for kind, (good, all_) in running.items():
                teacher.known[kind] = 0.6 * teacher.known[kind] + 0.4 * good / all_
            running.clear()
        if time.time() - logged > (60 if stage else 240):
            logged = time.time()
            state = (
                f"rate {rate:.4f} {stage or 'everything'} {drilled:.3f} noticed {noticed[0]:.2f} named {noticed[1]:.2f}"
            )
            print(f"{spent:.1f} min step {steps} loss {average:.3f} {state}", flush=True)
            if lately:
                print(f"   lately: {line(lately)}", flush=True)
                lately.clear()
            for (form, level), rows in exams.items():
                print(f"   {form:8} {level}: {line(examine(model, rows))}", flush=True)
            model.save_pretrained(a.out)
    model.save_pretrained(a.out)
    for (form, level), rows in exams.items():
        print(f"   {form:8} {level}: {line(examine(model, rows))}", flush=True)


if __name__ == "__main__":
    main()
