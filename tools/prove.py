"""What the program promises, shown by breaking things.

    tools/prove [NAME...] [--short]

Each proof is a file in tools/proofs and prints one line: how many cases held, of how many. Without names all of them
run. The exit status is 1 when one is broken, which is also the case when a planted fault did not fire. `--short` takes
few cases of each, for the test suite. `tools/prove mutants` takes each guard away in turn and looks for a broken proof.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

LAST = "mutants"


def names() -> list[str]:
    """All proofs; the one about the others comes last."""
    found = sorted(file.stem for file in (ROOT / "tools" / "proofs").glob("[a-z]*.py"))
    return [name for name in found if name != LAST] + [name for name in found if name == LAST]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--short", action="store_true", help="few cases of each")
    parser.add_argument("--list", action="store_true", help="name the proofs")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names()))
        return 0
    if wrong := sorted(set(options.names) - set(names())):
        parser.error(f"no proof {', '.join(wrong)}; there are {', '.join(names())}")
    _warm_up()

    from proofs._base import Verdict

    # in the short form the mutants are left out: they run the other proofs many times
    chosen = options.names or [name for name in names() if not (options.short and name == LAST)]
    broken = []
    for name in chosen:
        began = time.monotonic()
        try:
            verdict = importlib.import_module(f"proofs.{name}").prove(options.short)
        except Exception:
            verdict = Verdict(name, "cases", broken=[traceback.format_exc()])
        print(f"{verdict.line()}  {time.monotonic() - began:.0f} s", flush=True)
        for text in verdict.broken[:12]:
            print(f"    {text}", flush=True)
        if len(verdict.broken) > 12:
            print(f"    and {len(verdict.broken) - 12} more", flush=True)
        if not verdict.holds:
            broken.append(name)
    return 1 if broken else 0


def _warm_up() -> None:
    """Import once what every forked run needs, and start no threads."""
    import torch

    torch.set_num_threads(1)
    for name in ("torch.utils.tensorboard", "transformers", "open_clip", "peft", "accelerate", "safetensors.torch"):
        importlib.import_module(name)
    for name in ("mmtune.training.loop", "mmtune.llm.hf", "mmtune.encoders.clip", "mmtune.tuners.hf_peft"):
        importlib.import_module(name)


if __name__ == "__main__":
    raise SystemExit(main())
