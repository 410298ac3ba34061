"""What joint training with disjoint groups gains or costs, measured at pocket size.

    tools/claims rates   try learning rates on the validation split, disjoint groups, one seed
    tools/claims joint   train and ask every cell of the table, on the test split

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
LLaMA-Adapter's first version has it). For each fusion the media's part and the language model's have one rate each,
the best of `tools/claims rates`, so that ways differ in who moves what and in nothing else. Steps have equally many
tokens; where media take no tokens among them, a step has more clips. Asked of each run, about held-out scenes:

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
FUSIONS: dict[str, dict[str, Any]] = {
    "early": {"changes": [], "media": [CONNECTOR, "fusion.*"], "text": TUNERS, "rates": (4e-3, 2e-2)},
    "tokens": {
        "changes": ["model.fusion={name: tokens}", "model.branches.sight.connector.match_scale=true"],
        "media": [CONNECTOR], "text": TUNERS, "rates": (1e-2, 8e-3),
    },
    "late": {
        "changes": [
            "model.branches.sight.connector.short=repeat",  # as many tokens for a picture as there are prompts
            "model.fusion={name: added_prompts, length: 72, layers: 3, absent: prompts}",
            "model.tuners=[{name: bias_norm, form: output, norms: all}]",
        ],
        "media": [CONNECTOR, "fusion.prompts.gates.*"], "text": ["@bias_norm", "fusion.prompts.weight"],
        "rates": (1e-2, 2e-2),
    },
}  # fmt: skip
"""How media enter: changes to the recipe, the media's part, the part that text trains, and the rates of the two."""
GRID = [(2e-3, 2e-2), (4e-3, 2e-2), (1e-2, 2e-2), (4e-3, 8e-3), (1e-2, 8e-3)]
"""Peak learning rates (media, text) that `tools/claims rates` tries."""
WAYS = {"disjoint": "disjoint", "one": "one group", "stages": "stages", "instruct": "instruct"}
"""Ways of training, and what they are called in the table."""
SCORES = {"clips": "clips", "formed": "clips, asked form", "text": "text", "caption": "caption"}
"""What is asked of a run, and its heading."""
DATA_SEED, LEVEL = 1, "easy"
TOKENS = 2560
"""Of a step. Where media take no tokens among the words, a step holds more clips."""
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
        changes += ["schedule.interleave=stage", f"schedule.stages={stages}"]
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
    from mmtune.training.loop import train

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
            run, task, [data["told_asked" if text else "asked"]], limit=clips * TOLD if text else clips,
            max_tokens=120 if name == "caption" else 24, out=run / "eval" / f"{name}.json",
        )  # fmt: skip
        overall = report["scores"]["plain"]["overall"]
        found[name] = {"score": overall["accuracy"], "of": overall["total"]}
    found["caption"]["score"] = statistics.fmean(described.scores)
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(cells: dict[tuple[str, str], list[dict[str, Any]]], second: str, said: str) -> str:
    """All cells in Markdown: mean and standard deviation over the seeds."""
    counts = {name: one["of"] for name, one in next(iter(cells.values()))[0]["scores"].items()}
    lines = [
        f"{said} Mean ± standard deviation over seeds; questions of each score: "
        + ", ".join(f"{SCORES[name]} {count}" for name, count in counts.items()) + ".",
        "",
        f"| fusion | {second} | " + " | ".join(SCORES.values()) + " | mean | seconds |",
        "|---|---|" + "---|" * (len(SCORES) + 2),
    ]  # fmt: skip
    for (fusion, name), runs in cells.items():
        scores = " | ".join(spread([one["scores"][which]["score"] for one in runs]) for which in SCORES)
        seconds = statistics.fmean(one["seconds"] for one in runs)
        lines.append(f"| {fusion} | {name} | {scores} | {mean(runs):.3f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def mean(runs: list[dict[str, Any]]) -> float:
    """Of all scores and seeds: what rates are picked by."""
    return statistics.fmean(one["scores"][name]["score"] for one in runs for name in SCORES)


def make_data(base: Path, clips: int, held_out: int, split: str) -> dict[str, str]:
    """Shards of clips and of told scenes, for training and, of `split`, for asking; and where features are kept."""
    from claim_data import write
    from demo import make

    shards = base / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    return {
        "train": make(shards, clips, "train", DATA_SEED, LEVEL),
        "asked": make(shards, held_out, split, DATA_SEED, LEVEL),
        "told": write(shards, "train", clips),
        "told_asked": write(shards, split, held_out),
        "features": str(base / "features"),
    }


def run_all(wanted: dict[str, list[str]], data: dict[str, str], a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train and ask the cells, `a.jobs` at a time; says each when it is done."""
    from mmtune.children import isolated

    done = {}
    with isolated(), ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn")) as pool:
        tasks = {
            name: pool.submit(cell, str(a.out.resolve() / name), changes, data, a.asked)
            for name, changes in wanted.items()
        }
        for name, task in tasks.items():
            try:
                found = done[name] = task.result()
            except Exception:
                pool.shutdown(wait=False, cancel_futures=True)
                print(f"{a.out / name} failed; see log.txt there", file=sys.stderr)
                raise
            scores = "  ".join(f"{SCORES[which]} {one['score']:.3f}" for which, one in found["scores"].items())
            print(f"{name:22} {scores}  {found['seconds']:.0f} s", flush=True)
    return done


def joint(a: argparse.Namespace) -> str:
    """The table: every fusion and way, over the seeds."""
    data = make_data(a.out.resolve(), a.clips, a.held_out, "test")
    wanted = {
        f"{fusion}-{way}-{seed}": recipe(way, fusion, seed, a.steps, FUSIONS[fusion]["rates"], data)
        for seed in range(a.seeds) for fusion in a.fusions for way in a.ways
    }  # fmt: skip
    done = run_all(wanted, data, a)
    cells = {
        (fusion, WAYS[way]): [done[f"{fusion}-{way}-{seed}"] for seed in range(a.seeds)]
        for fusion in a.fusions for way in a.ways
    }  # fmt: skip
    rates = "; ".join(f"{name} {FUSIONS[name]['rates'][0]:g} and {FUSIONS[name]['rates'][1]:g}" for name in a.fusions)
    return table(cells, "trained", f"{about(a)}, {a.seeds} seeds; rates of media and language model: {rates}.")


def rates(a: argparse.Namespace) -> str:
    """Every fusion with every pair of rates, on the validation split; the best by the mean of all scores."""
    data = make_data(a.out.resolve(), a.clips, a.held_out, "val")
    names = {(fusion, pair): f"{fusion}-rates-{pair[0]:g}-{pair[1]:g}" for fusion in a.fusions for pair in GRID}
    wanted = {
        name: recipe("disjoint", fusion, 0, a.steps, pair, data) for (fusion, pair), name in names.items()
    }  # fmt: skip
    done = run_all(wanted, data, a)
    cells = {(fusion, f"{pair[0]:g}, {pair[1]:g}"): [done[name]] for (fusion, pair), name in names.items()}
    best = {fusion: max(GRID, key=lambda pair: mean([done[names[fusion, pair]]])) for fusion in a.fusions}
    said = "; ".join(f"{fusion} {pair[0]:g} and {pair[1]:g}" for fusion, pair in best.items())
    return table(cells, "rates", f"{about(a)}, validation split, disjoint groups, seed 0. Best mean: {said}.")


def about(a: argparse.Namespace) -> str:
    return (
        f"`tools/claims {a.claim}`: {a.steps} steps each, {a.clips} clips of level {LEVEL} and as many told scenes,"
        f" questions about {a.asked} clips and {a.asked * TOLD} told scenes"
    )


def main() -> None:
    ask_for = argparse.ArgumentParser(
        prog="tools/claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask_for.add_argument("claim", choices=("joint", "rates"))
    ask_for.add_argument("--steps", type=int, default=320, help="of every run")
    ask_for.add_argument("--seeds", type=int, default=3)
    ask_for.add_argument("--fusions", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    ask_for.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    ask_for.add_argument("--clips", type=int, default=4000, help="training clips, and training scenes told in words")
    ask_for.add_argument("--held-out", type=int, default=200, help="clips and scenes of the split that is asked")
    ask_for.add_argument("--asked", type=int, default=40, help="held-out clips that a run is asked about")
    ask_for.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time, a thread each")
    ask_for.add_argument("--out", type=Path, default=ROOT / "runs" / "claims", help="where everything goes")
    ask_for.add_argument("--write", type=Path, metavar="FILE", help="put the table here, too")
    a = ask_for.parse_args()
    if a.steps < 2 or a.seeds < 1:
        ask_for.error("at least 2 steps and 1 seed")
    text = {"joint": joint, "rates": rates}[a.claim](a)
    print(f"\n{text}")
    if a.write:
        a.write.parent.mkdir(parents=True, exist_ok=True)
        a.write.write_text(text, encoding="utf-8")
        print(f"written to {a.write}")


if __name__ == "__main__":
    main()
