"""The main job from nothing: shards of real MP4 files, a trained video chat model, its score, a picture, a talk.

    tools/demo [--out FOLDER] [--clips N] [--steps N] [--connector pool|video_qformer]

Every step is an `mmtune` command and is printed before it runs, so each can be repeated by hand. Shards and
features that are there already are used again; a run folder of an earlier demo is set aside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QFORMER = (
    "{name: video_qformer, queries: 32, width: 128, depth: 2, heads: 4, frames: 8, dropout: 0.0, pool: 3, "
    "token_positions: true, norm: true, out_norm: true, match_scale: true}"
)
"""The Q-Former at the size of the pocket world."""


def mmtune(*words: object, capture: bool = False) -> str:
    """One `mmtune` command, printed first; the demo ends with its code when it fails."""
    command = [sys.executable, "-P", "-m", "mmtune", *words]
    shown = shlex.join(["mmtune", *(str(w) for w in words)])
    print(f"\n$ {shown}", flush=True)
    done = subprocess.run(
        [str(w) for w in command], text=True, stdout=subprocess.PIPE if capture else None, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return (done.stdout or "").strip()


def world() -> str:
    """A digest of what draws clips and says who sees them: shards of another world are made again."""
    total = hashlib.sha256()
    for path in sorted((ROOT / "mmtune" / "data" / "world").glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def make(folder: Path, clips: int, split: str, seed: int, level: str) -> str:
    """Shards of one split; returns their pattern."""
    pattern = str(folder / f"{level}-{split}-*.tar")
    note = folder / f"{level}-{split}.json"
    wanted = {"clips": clips, "seed": seed, "world": world()}
    if not note.exists() or json.loads(note.read_text()) != wanted:
        for old in folder.glob(f"{level}-{split}-*"):
            old.unlink()
        workers = min(2, os.cpu_count() or 1, 1 + clips // 100)  # a second process takes longer to begin than few clips
        mmtune("data", "make", "pocket", "--out", folder, "--clips", clips, "--seed", seed, "--level", level,
               "--split", split, "--workers", workers)  # fmt: skip
        note.write_text(json.dumps(wanted))
    return pattern


def held_out_clip(shard: Path, folder: Path) -> tuple[Path, list[dict]]:
    """The first clip of a shard as a file, and what can be asked about it."""
    with tarfile.open(shard) as tar:
        facts = json.load(tar.extractfile("0000000.json"))  # type: ignore[arg-type]
        clip = folder / "clip.mp4"
        clip.write_bytes(tar.extractfile("0000000.mp4").read())  # type: ignore[union-attr]
    return clip, facts["questions"]


def main() -> None:
    ask = argparse.ArgumentParser(
        prog="tools/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="where everything goes")
    ask.add_argument("--clips", type=int, default=6000, help="training clips")
    ask.add_argument("--held-out", type=int, default=200, help="clips to ask about")
    ask.add_argument("--steps", type=int, default=1600, help="training steps")
    ask.add_argument("--level", choices=("easy", "full"), default="easy", help="how much happens in a clip")
    ask.add_argument("--connector", choices=("pool", "video_qformer"), default="pool")
    a = ask.parse_args()
    started = time.time()
    out: Path = a.out.resolve()
    data = out / "shards"
    data.mkdir(parents=True, exist_ok=True)
    print(f"everything goes to {out}")

    train = make(data, a.clips, "train", 1, a.level)
    test = make(data, a.held_out, "test", 1, a.level)

    chat = out / a.connector
    if chat.exists():
        chat.rename(out / f"{a.connector}-before-{int(time.time())}")
    changes = [f"streams.caption.data=['{train}']", f"streams.instruct.data=['{train}']",
               f"eval.data=['{test}']", f"run.feature_cache={out / 'features'}",
               f"schedule.steps={a.steps}", f"schedule.warmup={min(40, a.steps // 10)}"]  # fmt: skip
    if a.connector == "video_qformer":
        changes.append(f"model.branches.sight.connector={QFORMER}")
    began = time.time()
    mmtune("train", "pocket", *changes, "--out", chat)
    trained = time.time() - began

    report = out / f"{a.connector}.json"
    mmtune("eval", chat, "--task", "pocket_qa", "--data", test, "--all-controls", "--json", report)
    ceiling = [sys.executable, ROOT / "tools" / "pocket" / "ceiling.py", "--level", a.level]
    print("\nwhat bounds this from above: the language model's accuracy on true notes instead of media", flush=True)
    subprocess.run(ceiling, check=True)
    picture = out / f"{a.connector}.png"
    subprocess.run([sys.executable, ROOT / "tools" / "picture.py", chat, report, test, "--out", picture], check=True)

    clip, questions = held_out_clip(sorted(data.glob(f"{a.level}-test-*.tar"))[0], out)
    still, moving = (next(q for q in questions if q["temporal"] is t) for t in (False, True))
    for q in (still, moving):
        answer = mmtune("chat", chat, "--video", clip, q["question"], capture=True)
        print(f"{answer}      (true answer: {q['answer']})")

    print(
        f"\ndone in {(time.time() - started) / 60:.1f} minutes, {trained / 60:.1f} of them training."
        f"\n  shards   {data}\n  run      {chat}\n  scores   {report}\n  picture  {picture}"
        f"\nnext:\n  mmtune chat {chat} --video {clip}\n  mmtune show pocket\n  mmtune list"
    )


if __name__ == "__main__":
    main()
