"""Accuracy against training time, of the demo's model.

    tools/curve [--minutes 0.5 1 2 4] [--out FOLDER] [--write FILE] [--connector pool|video_qformer] [KEY=VALUE]...

One run is trained and stopped at each of the minutes, evaluated on the same held-out questions, and taken up again
(`run.stop_after_minutes`, `--resume`), up to the end of its schedule. Minutes count training steps only: neither the
start of the program, nor the one pass of the frozen encoder, nor the evaluation. Rates follow the one schedule of the
run, so a point in the middle is not what a shorter schedule would have reached. Shards are those of `tools/demo` and
are made where they are not there; a second call goes on with the run and measures no point twice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from demo import QFORMER, ROOT, make, mmtune

from mmtune.data.shards import Corpus

ROWS = ("overall", "static", "temporal")


def records_for(pattern: str, questions: int) -> tuple[int, int]:
    """How many records, from the first on, hold at least so many questions, and how many they hold."""
    total = count = 0
    corpus = Corpus([pattern], say=lambda line: print(line, file=sys.stderr))
    for count, record in enumerate(corpus, 1):
        total += len(json.loads(record.files["json"])["questions"])
        if total >= questions:
            return count, total
    return count, total


def progress(run: Path) -> tuple[int, float]:
    """Steps done and saved, and the minutes they took."""
    step = max((int(path.name.removeprefix("step-")) for path in run.glob("state/step-????????")), default=0)
    seconds = sum(row["samples"] / row["samples_per_second"] for row in rows(run, step) if row["samples_per_second"])
    return step, seconds / 60


def rows(run: Path, step: int) -> list[dict[str, Any]]:
    """What was noted of the steps up to this one."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [row for line in lines if (row := json.loads(line))["step"] <= step]


def train(run: Path, changes: list[str], until: float, steps: int) -> bool:
    """Train on until so many minutes are done or the schedule ends; returns whether it ended.

    A step that is under way is finished, so that the minutes come out a little longer.
    """
    step, done = progress(run)
    if step >= steps:
        return True
    if until > done:
        limit = f"run.stop_after_minutes={'null' if math.isinf(until) else f'{until - done:.4f}'}"
        if (run / "recipe.yaml").is_file():
            mmtune("train", run, limit, "--resume")
        else:
            mmtune("train", "pocket", *changes, limit, "--out", run)
    return progress(run)[0] >= steps


def point(run: Path, out: Path, pattern: str, records: int) -> dict[str, Any]:
    """The scores of the run as it is now; taken from the report of an earlier call where there is one."""
    step, minutes = progress(run)
    report = out / f"step-{step:06d}.json"
    if not report.is_file():
        mmtune("eval", run, "--task", "pocket_qa", "--data", pattern, "--limit", records, "--json", report)
    scores = json.loads(report.read_text(encoding="utf-8"))["scores"]["plain"]
    losses = [value for row in rows(run, step)[-20:] for key, value in row.items() if key.startswith("loss/")]
    return {
        "minutes": round(minutes, 2),
        "step": step,
        "loss": sum(losses) / len(losses),
        **{row: scores[row] for row in ROWS},
    }


def table(points: list[dict[str, Any]], questions: int, about: str) -> str:
    """The curve as a page in Markdown."""
    first = points[0]
    counts = ", ".join(f"{first[row]['total']} {row}" for row in ROWS[1:])
    lines = [
        f"Accuracy against training time: {about}. {questions} held-out questions ({counts}), the same at each point;"
        " 95 % intervals in brackets.",
        "",
        "| minutes | step | loss | " + " | ".join(ROWS) + " |",
        "|---|---|---|" + "---|" * len(ROWS),
    ]
    for one in points:
        scores = " | ".join(f"{s['accuracy']:.3f} ({s['low']:.3f}..{s['high']:.3f})" for s in (one[r] for r in ROWS))
        lines.append(f"| {one['minutes']:.1f} | {one['step']} | {one['loss']:.3f} | {scores} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    ask = argparse.ArgumentParser(
        prog="tools/curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="further changes to the recipe")
    ask.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1, 2, 3, 4, 6, 8], help="where to stop and ask")
    ask.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="where the demo's shards lie")
    ask.add_argument("--clips", type=int, default=6000, help="training clips")
    ask.add_argument("--held-out", type=int, default=200, help="clips of the test split")
    ask.add_argument("--questions", type=int, default=300, help="questions at each point, at least")
    ask.add_argument("--steps", type=int, default=1600, help="length of the schedule")
    ask.add_argument("--level", choices=("easy", "full"), default="easy", help="how much happens in a clip")
    ask.add_argument("--connector", choices=("pool", "video_qformer"), default="pool")
    ask.add_argument("--write", type=Path, metavar="FILE", help="put the table here, too")
    a = ask.parse_args()
    base: Path = a.out.resolve()
    out = base / f"curve-{a.level}-{a.connector}"
    out.mkdir(parents=True, exist_ok=True)
    (base / "shards").mkdir(exist_ok=True)
    training = make(base / "shards", a.clips, "train", 1, a.level)
    held_out = make(base / "shards", a.held_out, "test", 1, a.level)
    records, questions = records_for(held_out, a.questions)
    changes = [f"streams.caption.data=['{training}']", f"streams.instruct.data=['{training}']",
               f"run.feature_cache={base / 'features'}", f"schedule.steps={a.steps}",
               f"schedule.warmup={min(40, a.steps // 10)}", "run.save_every=0"]  # fmt: skip
    if a.connector == "video_qformer":
        changes.append(f"model.branches.sight.connector={QFORMER}")
    changes += a.changes
    if (note := out / "changes.json").is_file() and json.loads(note.read_text()) != changes:
        raise SystemExit(f"{out} holds a curve of other settings; remove it, or give another --out")
    note.write_text(json.dumps(changes, indent=1))

    run, points = out / "run", {}
    for until in [*sorted(a.minutes), math.inf]:
        ended = train(run, changes, until, a.steps)
        one = point(run, out, held_out, records)
        points[one["step"]] = one
        if ended:
            break
    about = f"level {a.level}, connector {a.connector}, {a.steps} steps on {a.clips} clips"
    text = table(list(points.values()), questions, about)
    print(f"\n{text}")
    for path in (out / "curve.md", a.write):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written to {path}")


if __name__ == "__main__":
    main()
