"""What joint training with disjoint groups gains or costs, measured at pocket size.

    tools/claims joint [--steps 320] [--seeds 3] [--out FOLDER] [--write FILE]

LLaMA-Adapter V2 (arXiv 2304.15010, sections 3.1 and 3.2) trains on captions of pictures and on instructions in text
only, each moving parameters of its own, and says that the model then follows instructions about pictures although
it never saw one. Here captions are of clips of the pocket world, and instructions are questions about scenes told in
words, which ask for answers in a form that is new to the language model. Four ways of training, of equally many steps:

    disjoint   captions and instructions in turn; captions move the media's part, instructions the language model's
    one group  captions and instructions in turn; captions move all of it, instructions the language model's part,
               for text has nothing to say to the media's
    stages     captions for the first half, then instructions; groups as in disjoint
    instruct   instructions only; the media's part stays as drawn

each with three fusions: `early` (gated prompts in the lower layers, learned prompts in the upper ones: the paper),
`tokens` (media stand among the words), `late` (media are added to the learned prompts of the upper layers, as
LLaMA-Adapter's first version has it). The media's part and the language model's have one rate each, so
that ways differ in who moves what and in nothing else. Steps have equally many tokens; where media take no places among
them, a step has more clips. Asked of each run, about held-out scenes:

    clips      questions about clips, as they are in the world
    clips, asked form   the same, with a form asked for: needs what both streams teach, and no training shows it
    text       questions about scenes told in words, forms included
    caption    ROUGE-L of a description with the captions of the clip

Runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

CONNECTOR, TUNERS = "branches.sight.connector.*", ["@bias_norm", "@prompts"]
FUSIONS: dict[str, dict[str, list[str]]] = {
    "early": {"changes": [], "media": [CONNECTOR, "fusion.*"], "text": TUNERS},
    "tokens": {
        "changes": ["model.fusion={name: tokens}", "model.branches.sight.connector.match_scale=true"],
        "media": [CONNECTOR], "text": TUNERS,
    },
    "late": {
        "changes": [
            "model.branches.sight.connector.short=repeat",  # as many places for a picture as there are prompts
            "model.fusion={name: added_prompts, length: 72, layers: 3, absent: prompts}",
            "model.tuners=[{name: bias_norm, form: output, norms: all}]",
        ],
        "media": [CONNECTOR, "fusion.prompts.gates.*"], "text": ["@bias_norm", "fusion.prompts.weight"],
    },
}  # fmt: skip
"""How media enter: changes to the recipe, the part of the media, and the part that text trains."""
WAYS = {"disjoint": "disjoint", "one": "one group", "stages": "stages", "instruct": "instruct"}
"""Ways of training, and what they are called in the table."""
SCORES = {"clips": "clips", "formed": "clips, asked form", "text": "text", "caption": "caption"}
"""What is asked of a run, and its heading."""
TOKENS = 2560
"""Of a step. Where media take no places among the words, a step holds more clips."""
TOLD = 10
"""Questions about told scenes for each clip that is asked about; a clip has some ten questions, too."""


def recipe(way: str, fusion: str, seed: int, steps: int, rates: tuple[float, float], data: dict[str, str]) -> list[str]:
    """The changes to the recipe `pocket_joint` that make one cell of the table."""
    parts = FUSIONS[fusion]
    both = "[caption, instruct]" if way == "one" else "[instruct]"
    sight, speech = (
        f"groups.{name}={{match: {json.dumps(match)}, lr: {rate}, weight_decay: 0.01, streams: {streams}}}"
        for name, match, rate, streams in (
            ("sight", parts["media"], rates[0], "[caption]"),
            ("speech", parts["text"], rates[1], both),
        )
    )
    changes = [sight, speech, f"streams.caption.data=['{data['train']}']", f"streams.instruct.data=['{data['told']}']"]
    if way == "stages":
        half = steps // 2
        stages = f"[{{streams: [caption], steps: {half}}}, {{streams: [instruct], steps: {steps - half}}}]"
        changes += ["schedule.turns=stage", f"schedule.stages={stages}"]
    if way == "instruct":
        stream = f"{{data: ['{data['told']}'], format: {{name: llava}}, prompt: pocket}}"
        group = speech.removeprefix("groups.").replace("=", ": ", 1)
        changes = [
            f"groups={{{group}}}",
            f"streams={{instruct: {stream}}}",
            f"model.freeze={json.dumps(parts['media'])}",
        ]
    return [
        *parts["changes"], *changes, f"schedule.steps={steps}", f"schedule.warmup={max(1, min(40, steps // 10))}",
        f"run.seed={seed}", f"run.batch_tokens={TOKENS}", f"run.feature_cache={data['features']}",
        "run.save_every=0", "run.workers=0",
    ]  # fmt: skip


def cell(place: str, changes: list[str], data: dict[str, str], clips: int) -> dict[str, Any]:
    """Train and ask one run; its scores are kept beside it and taken from there the next time."""
    import torch

    from mmtune import config
    from mmtune.recipe import Recipe
    from mmtune.train.loop import train

    folder = Path(place)
    report = folder / "scores.json"
    wanted = {"changes": changes, "clips": clips}
    if report.is_file() and (known := json.loads(report.read_text(encoding="utf-8")))["made"] == wanted:
        return known
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        train(config.load(Recipe, "pocket_joint", changes), folder / "run", progress="plain")
        trained = time.monotonic() - began
        found = {"made": wanted, "seconds": round(trained, 1), "scores": ask(folder / "run", data, clips)}
    report.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def ask(run: Path, data: dict[str, str], clips: int) -> dict[str, dict[str, float]]:
    """Every score of a run, each with the number of questions that it rests on."""
    from claim_data import Described, Formed, Told

    from mmtune.eval.run import evaluate
    from mmtune.eval.tasks.base import TaskConfig
    from mmtune.eval.tasks.pocket_qa import Config as Clips
    from mmtune.eval.tasks.pocket_qa import PocketQA

    about = Clips()
    described = Described(about)
    tasks = {
        "clips": PocketQA(about),
        "formed": Formed(about),
        "text": Told(TaskConfig(name="told")),
        "caption": described,
    }
    found = {}
    for name, task in tasks.items():
        text = name == "text"
        report = evaluate(
            run, task, [data["told_test" if text else "test"]], limit=clips * TOLD if text else clips,
            max_tokens=120 if name == "caption" else 24, out=run / "eval" / f"{name}.json",
        )  # fmt: skip
        overall = report["scores"]["plain"]["overall"]
        found[name] = {"score": overall["accuracy"], "of": overall["total"]}
    found["caption"]["score"] = statistics.fmean(described.scores)
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(cells: dict[tuple[str, str], list[dict[str, Any]]], about: str) -> str:
    """All cells in Markdown: mean and standard deviation over the seeds."""
    counts = {name: one["of"] for name, one in next(iter(cells.values()))[0]["scores"].items()}
    lines = [
        f"{about} Mean ± standard deviation over seeds; questions of each score: "
        + ", ".join(f"{SCORES[name]} {count}" for name, count in counts.items()) + ".",
        "",
        "| fusion | trained | " + " | ".join(SCORES.values()) + " | seconds |",
        "|---|---|" + "---|" * (len(SCORES) + 1),
    ]  # fmt: skip
    for (fusion, way), runs in cells.items():
        scores = " | ".join(spread([one["scores"][name]["score"] for one in runs]) for name in SCORES)
        seconds = statistics.fmean(one["seconds"] for one in runs)
        lines.append(f"| {fusion} | {WAYS[way]} | {scores} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def make_data(base: Path, clips: int, held_out: int) -> dict[str, str]:
    """Shards of clips and of told scenes, training and held out; and where features are kept."""
    from claim_data import write
    from demo import make

    shards = base / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    return {
        "train": make(shards, clips, "train", 1, "easy"),
        "test": make(shards, held_out, "test", 1, "easy"),
        "told": write(shards, "train", clips),
        "told_test": write(shards, "test", held_out),
        "features": str(base / "features"),
    }


def joint(a: argparse.Namespace) -> str:
    """Train and ask every cell; returns the table."""
    base: Path = a.out.resolve()
    data = make_data(base, a.clips, a.held_out)
    wanted = {
        (fusion, way, seed): recipe(way, fusion, seed, a.steps, tuple(a.rates), data)
        for seed in range(a.seeds) for fusion in a.fusions for way in a.ways
    }  # fmt: skip
    places = {key: str(base / "-".join(map(str, key))) for key in wanted}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {(f, w): [] for f in a.fusions for w in a.ways}
    with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn")) as pool:
        tasks = {key: pool.submit(cell, places[key], changes, data, a.asked) for key, changes in wanted.items()}
        for (fusion, way, seed), task in tasks.items():
            try:
                found = task.result()
            except Exception:
                print(f"{places[fusion, way, seed]} failed; see log.txt there", file=sys.stderr)
                raise
            cells[fusion, way].append(found)
            scores = "  ".join(f"{SCORES[name]} {one['score']:.3f}" for name, one in found["scores"].items())
            print(f"{fusion:7} {WAYS[way]:10} seed {seed}  {scores}  {found['seconds']:.0f} s", flush=True)
    return table(
        cells,
        f"`tools/claims joint`: {a.steps} steps each, rates {a.rates[0]:g} (media) and {a.rates[1]:g} (language model),"
        f" {a.seeds} seeds, {a.clips} clips of level easy"
        " and as many told scenes.",
    )


def main() -> None:
    ask_for = argparse.ArgumentParser(
        prog="tools/claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask_for.add_argument("claim", choices=("joint",))
    ask_for.add_argument("--steps", type=int, default=320, help="of every run")
    ask_for.add_argument("--seeds", type=int, default=3)
    ask_for.add_argument("--rates", type=float, nargs=2, default=(4e-3, 2e-2), metavar=("MEDIA", "TEXT"),
                         help="peak learning rates of the media's part and of the language model's")  # fmt: skip
    ask_for.add_argument("--fusions", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    ask_for.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    ask_for.add_argument("--clips", type=int, default=4000, help="training clips, and training scenes told in words")
    ask_for.add_argument("--held-out", type=int, default=200, help="clips and scenes of the test split")
    ask_for.add_argument("--asked", type=int, default=40, help="held-out clips that a run is asked about")
    ask_for.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time, a thread each")
    ask_for.add_argument("--out", type=Path, default=ROOT / "runs" / "claims", help="where everything goes")
    ask_for.add_argument("--write", type=Path, metavar="FILE", help="put the table here, too")
    a = ask_for.parse_args()
    if a.steps < 2 or a.seeds < 1:
        ask_for.error("at least 2 steps and 1 seed")
    text = joint(a)
    print(f"\n{text}")
    if a.write:
        a.write.parent.mkdir(parents=True, exist_ok=True)
        a.write.write_text(text, encoding="utf-8")
        print(f"written to {a.write}")


if __name__ == "__main__":
    main()
