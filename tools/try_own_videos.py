"""One's own videos through the whole way: shards, index, check, a short training, an answer.

    tools/try_own_videos FOLDER [--json FILE] [--out FOLDER] [--steps N] [--recipe RECIPE] [KEY=VALUE]...

FILE holds conversations in LLaVA's spelling (a JSON list of records with `video` and `conversations`), its names of
videos relative to FOLDER. Without it a conversation is made of each video's name and length:

    What is this clip called?    its file name in small letters, `-` and `_` as blanks
    How long is it?              the length in the container, as "about 7 seconds"

Every step is an `mmtune` command and is printed before it runs. The first that fails ends this with its code; so do
records that cannot be used, a loss that does not fall, and an empty answer. The model is the small one of the package
with a new connector, and its language model is trained along, because it knows no words but those of its drawn world.
So this tells whether files and conversations are fit for training, not how well a real model would do on them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av

from mmtune.data._names import SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
NAMED, LONG = "What is this clip called?", "How long is it?"
VIDEOS = tuple(suffix for suffix, kind in SUFFIXES.items() if kind == "video")
"""Ends of the names of videos."""
EDGE = 5
"""Steps at the beginning and at the end whose mean losses are compared."""


def run(*words: object) -> str:
    """One command of `python -m`, printed first and shown as it goes; returns what it wrote to stdout.

    Raises SystemExit with its code when it fails.
    """
    command = [str(word) for word in words]
    shown = command if command[0] == "mmtune" else ["python", "-m", *command]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    said = []
    with subprocess.Popen([sys.executable, "-P", "-m", *command], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        print(f"this step ended with code {process.returncode}; nothing after it was tried", file=sys.stderr)
        raise SystemExit(process.returncode)
    return "".join(said).strip()


def talk(path: Path) -> dict[str, Any]:
    """The conversation about a video that nothing was written about."""
    try:
        with av.open(str(path)) as container:
            seconds = (container.duration or 0) / av.time_base
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be opened: {error}") from error
    name = re.sub(r"[-_\s]+", " ", path.stem).strip().lower()
    said = [("human", f"<video>\n{NAMED}"), ("gpt", name), ("human", LONG), ("gpt", f"about {seconds:.0f} seconds")]
    return {"video": path.name, "conversations": [{"from": who, "value": text} for who, text in said]}


def talks(folder: Path) -> list[dict[str, Any]]:
    """A conversation for every video of a folder, in the order of their names."""
    found = sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in VIDEOS)
    if not found:
        raise SystemExit(f"{folder} holds no file that ends in {', '.join(VIDEOS)}")
    return [talk(path) for path in found]


def question(folder: Path, records: list[dict[str, Any]]) -> tuple[Path, str, str]:
    """The first video that something is asked about, the question, and the answer in the file."""
    for record in records:
        said = record.get("conversations") or []
        if isinstance(record.get("video"), str) and len(said) > 1:
            asked, answer = (re.sub(r"<video>\s*", "", turn["value"]).strip() for turn in said[:2])
            named = folder / record["video"]
            path = named if named.is_file() else next(folder.glob(f"{record['video']}.*"), named)
            return path, asked, answer
    raise SystemExit("no record has a `video` and `conversations`")


def losses(out: Path) -> tuple[float, float]:
    """Mean loss of the first and of the last steps of a run."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [value for row in rows for key, value in row.items() if key.startswith("loss/")]
    edge = max(1, min(EDGE, len(values) // 2))
    return sum(values[:edge]) / edge, sum(values[-edge:]) / edge


def whole_way(folder: Path, out: Path, file: Path | None, steps: int, recipe: str, changes: list[str]) -> str:
    """Shards, index, check, training, chat; returns the answer. Raises SystemExit at the first step that fails."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty; give another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    if file is None:
        file = out / "talks.json"
        file.write_text(json.dumps(talks(folder), indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"conversations made of names and lengths: {file}")
    path, asked, answer = question(folder, json.loads(file.read_text(encoding="utf-8")))

    shards = out / "shards"
    run("mmtune", "data", "convert", file, "--media", folder, "--out", shards)
    pattern = str(shards / "*.tar")
    stream = {"data": [pattern], "format": {"name": "llava"}, "prompt": "pocket"}
    groups = {
        "connector": {"match": ["branches.sight.connector.*"], "lr": 2e-3},
        "speech": {"match": ["llm.*"], "lr": 1e-3},
    }
    recipe_changes = [
        f"streams={json.dumps({'own': stream})}",
        f"groups={json.dumps(groups)}",
        f"run.feature_cache={json.dumps(str(out / 'features'))}",
        "run.workers=0",
        f"schedule.steps={steps}",
        f"schedule.warmup={max(1, steps // 20)}",
        *changes,
    ]
    run("mmtune", "data", "index", pattern)
    said = run("mmtune", "data", "check", pattern, "--recipe", recipe, *recipe_changes)
    counts = re.search(r"(\d+) of \d+ records looked at: (\d+) usable", said)
    if counts is None or counts[1] != counts[2]:
        raise SystemExit("some records cannot be used, for the reasons above; nothing was trained")
    model = out / "run"
    run("mmtune", "train", recipe, *recipe_changes, "--out", model)
    first, last = losses(model)
    print(f"\nloss: {first:.3f} in the first steps, {last:.3f} in the last")
    if not last < first:
        raise SystemExit("the loss did not fall")
    got = run("mmtune", "chat", model, "--video", path, asked)
    if not got:
        raise SystemExit("the answer is empty")
    print(f"(in the file: {answer})\n\nThe whole way works on these files. Go on with:\n  mmtune chat {model}")
    return got


def main() -> None:
    ask = argparse.ArgumentParser(
        prog="tools/try_own_videos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("folder", type=Path, help="videos: " + ", ".join(VIDEOS))
    ask.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="further changes to the recipe")
    ask.add_argument("--json", type=Path, metavar="FILE", help="conversations in LLaVA's spelling")
    ask.add_argument("--out", type=Path, default=ROOT / "runs" / "own_videos", help="where everything goes")
    ask.add_argument("--steps", type=int, default=60, help="training steps")
    ask.add_argument("--recipe", default="pocket", help="a recipe whose branch `sight` takes videos")
    ask.add_argument("--again", action="store_true", help="remove what an earlier run of this command left in --out")
    a = ask.parse_intermixed_args()  # a change may stand behind an option
    if not a.folder.is_dir():
        ask.error(f"{a.folder} is no folder")
    if a.json and not a.json.is_file():
        ask.error(f"{a.json} is no file")
    if a.steps < 2:
        ask.error("--steps is at least 2")
    if a.again and (a.out / "shards").is_dir():
        shutil.rmtree(a.out)
    whole_way(a.folder.resolve(), a.out.resolve(), a.json, a.steps, a.recipe, a.changes)


if __name__ == "__main__":
    main()
