"""The picture of a run: a held-out clip with a question, its true answer and the model's, and the loss curve.

    python tools/picture.py RUN REPORT SHARDS --out FILE.png

REPORT is what `mmtune eval --json` wrote, SHARDS a pattern of the shards it asked about.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mmtune.data.shards import Corpus
from mmtune.media import Sampling, load
from mmtune.types import MediaRef

SHOWN = 3
"""Clips on the sheet."""


def chosen(report: dict) -> list[list[dict]]:
    """Answers to show: the first video clips with a temporal question, wrong answers first, four answers each."""
    by_clip: dict[str, list[dict]] = {}
    for answer in report["answers"]["plain"]:
        by_clip.setdefault(answer["id"].rsplit("#", 1)[0], []).append(answer)
    clips = [answers for answers in by_clip.values() if any(a["temporal"] for a in answers)]
    wrong = [c for c in clips if any(not a["right"] for a in c)][:1]
    right = [c for c in clips if all(a["right"] for a in c)][: SHOWN - len(wrong)]
    picked = []
    for answers in right + wrong:
        order = sorted(answers, key=lambda a: (a["right"], not a["temporal"]))
        picked.append(order[:4])
    return picked


def frames_of(corpus: Corpus, clip: str) -> list:
    for key in corpus.samples():
        record = corpus.record(key)
        if record.id == clip:
            media = load(MediaRef("video", record.files["mp4"], clip), Sampling(frames=8))
            return list(media.data.permute(0, 2, 3, 1).numpy())
    raise SystemExit(f"no clip {clip} in these shards")


def curve(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Loss by stream, averaged over 20 steps."""
    raw: dict[str, list[tuple[int, float]]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(text)
        stream = row.get("stream")
        if stream:
            raw.setdefault(stream, []).append((row["step"], row[f"loss/{stream}"]))
    out = {}
    for stream, points in raw.items():
        groups = [points[i : i + 20] for i in range(0, len(points), 20)]
        out[stream] = ([g[-1][0] for g in groups], [sum(v for _, v in g) / len(g) for g in groups])
    return out


def draw(run: Path, report: dict, patterns: list[str], out: Path) -> None:
    corpus = Corpus(patterns)
    picked = chosen(report)
    figure = plt.figure(figsize=(11, 2.3 * len(picked) + 2.6))
    grid = figure.add_gridspec(len(picked) + 1, 1, hspace=0.5)
    for row, answers in enumerate(picked):
        frames = frames_of(corpus, answers[0]["id"].rsplit("#", 1)[0])
        inner = grid[row].subgridspec(2, len(frames), height_ratios=(1, 0.9), hspace=0.05, wspace=0.05)
        for column, frame in enumerate(frames):
            axes = figure.add_subplot(inner[0, column])
            axes.imshow(frame)
            axes.axis("off")
        axes = figure.add_subplot(inner[1, :])
        axes.axis("off")
        for line, a in enumerate(answers):
            mark, colour = ("right", "#1a7f37") if a["right"] else ("WRONG", "#b42318")
            text = f"{a['question']}   truth: {a['truth']}   model: {a['answer']}   ({mark})"
            axes.text(0.0, 0.85 - 0.25 * line, text, fontsize=9, color=colour, family="monospace")
    axes = figure.add_subplot(grid[-1])
    for stream, (steps, losses) in curve(run).items():
        axes.plot(steps, losses, label=stream)
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110, bbox_inches="tight")
    print(f"picture: {out}")


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("run", type=Path)
    ask.add_argument("report", type=Path)
    ask.add_argument("shards", nargs="+")
    ask.add_argument("--out", type=Path, required=True)
    a = ask.parse_args()
    draw(a.run, json.loads(a.report.read_text()), a.shards, a.out)
