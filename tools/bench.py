"""How long things take on this machine.

    tools/bench start [--runs N] [--cold] [--against FOLDER]
    tools/bench order [--samples N] [--length TOKENS] [--rows N] [--steps N]

`start`: from pressing return to the end of `import mmtune`, of `mmtune --help`, and of the first answer of
`mmtune chat --image` with the packaged model. Each is a process of its own, N times, in turns with the others, so that
a busy minute falls on all alike; medians are printed, and the processor time beside them, which a busy machine changes
less.

`order`: how full rows are, and how many tokens a second trains, in orders that know lengths and in those that do not;
see tools/bench_order.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "How many objects are there?"


def picture(folder: Path) -> Path:
    """A picture of the drawn world, of the kind that the packaged model knows."""
    from mmtune.data.world.draw import clip
    from mmtune.data.world.scene import draw_scene
    from mmtune.data.world.video import jpeg

    path = folder / "picture.jpg"
    path.write_bytes(jpeg(clip(draw_scene(random.Random("bench"), "easy", "test"))[0]))
    return path


def commands(image: Path) -> dict[str, list[str]]:
    """What is measured: a name and the arguments after `python`."""
    return {
        "python -c pass": ["-c", "pass"],
        "import mmtune": ["-c", "import mmtune"],
        "mmtune --help": ["-m", "mmtune", "--help"],
        "first answer": ["-m", "mmtune", "chat", "--image", str(image), QUESTION],
    }


def timed(words: list[str], checkout: Path) -> tuple[float, float]:
    """Wall clock and processor seconds of one process. Raises SystemExit with what it said, when it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, text=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} in {checkout} ended with {done.returncode}:\n{done.stderr}")
    if "chat" in words and not done.stdout.strip():
        raise SystemExit(f"{' '.join(words)} in {checkout} gave no answer")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def forget(*folders: Path) -> None:
    """Ask the system to drop these folders' files from its memory; what a running process has mapped stays."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                file = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)


def start(runs: int, cold: bool, against: Path | None) -> None:
    """Measure and print the table of `tools/bench start`."""
    checkouts = {"here": ROOT} | ({"there": against.resolve()} if against else {})
    for name, path in checkouts.items():
        if not (path / "mmtune" / "__main__.py").is_file():
            raise SystemExit(f"{name}: {path} is not a checkout of mmtune")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands(picture(Path(folder))).items():
            for turn in range(runs + (not cold)):
                for checkout, path in checkouts.items():
                    if cold:
                        forget(Path(sys.prefix), path / "mmtune")
                    took = timed(words, path)
                    if turn or cold:  # the first fills the system's memory of the files
                        found.setdefault((name, checkout), []).append(took)
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}; ", end=""
    )
    print(f"medians of {runs} {'cold ' * cold}starts, least and most in brackets\n")
    print("| | seconds | processor seconds |\n|---|---|---|")
    for (name, checkout), took in found.items():
        label = name + (f", {checkout}" if against else "")
        print(f"| {label} | {_spread([t[0] for t in took])} | {_spread([t[1] for t in took])} |")
    if against:
        for name in commands(Path()):
            ours, theirs = (
                [statistics.median(t[k] for t in found[name, c]) for k in (0, 1)] for c in ("here", "there")
            )
            print(f"{name}: here / there = {ours[0] / theirs[0]:.2f} of the seconds, {ours[1] / theirs[1]:.2f} of the "
                  f"processor seconds")  # fmt: skip


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    ask = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = ask.add_subparsers(dest="task", required=True)
    begin = tasks.add_parser("start", help="import, --help, and the first answer of a chat")
    begin.add_argument("--runs", type=int, default=5, help="processes of each kind")
    begin.add_argument("--cold", action="store_true", help="with the files not in the system's memory")
    begin.add_argument(
        "--against", type=Path, metavar="FOLDER", help="another checkout, measured in turns with this one"
    )
    packing = tasks.add_parser("order", help="full rows, by the order of samples")
    packing.add_argument("--samples", type=int, default=3000, help="docstrings that are trained on, about")
    packing.add_argument("--length", type=int, default=512, help="tokens of a row")
    packing.add_argument("--rows", type=int, default=4, help="rows of a step")
    packing.add_argument("--steps", type=int, default=35, help="steps of each order that are timed")
    a = ask.parse_args()
    if min(value for value in vars(a).values() if type(value) is int) < 1:
        ask.error("counts are at least 1")
    if a.task == "order":
        sys.path.insert(0, str(ROOT))  # it names an order of its own as tools.bench_order:Alike
        from tools import bench_order

        bench_order.order(a.samples, a.length, a.rows, a.steps)
    else:
        start(a.runs, a.cold, a.against)


if __name__ == "__main__":
    main()
