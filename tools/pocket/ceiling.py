"""The text ceiling of the pocket language model: its accuracy when it is given true notes instead of media.

    python tools/pocket/ceiling.py [--llm FOLDER] [--scenes 200] [--level easy|full] [--json FILE]

Scenes come from the test split, which no part of the model ever saw. Two forms of notes (see notes.py): `moments`, what
is in each place at each of eight moments, one position each, which is what a pooling connector can hand over; and
`facts`, one fact per position with changes said outright, which is what queries can hand over. No model that reads
the same language model through a connector can be expected to do better than the better of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from train_llm import FORMS, TEMPORAL, Writer, examination, examine, share
from transformers import LlamaForCausalLM

from mmtune.data.world.scene import LEVELS


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--llm", type=Path, default=Path(__file__).resolve().parents[2] / "mmtune" / "pocket" / "llm")
    ask.add_argument("--scenes", type=int, default=200)
    ask.add_argument("--level", choices=LEVELS, default="easy")
    ask.add_argument("--forms", nargs="+", choices=FORMS, default=["moments", "facts"])
    ask.add_argument("--json", type=Path)
    a = ask.parse_args()
    torch.manual_seed(0)
    writer = Writer(a.llm)
    model = LlamaForCausalLM.from_pretrained(a.llm, dtype=torch.float32, local_files_only=True).eval()
    scores = {form: examine(model, examination(writer, form, a.level, "test", a.scenes, "ceiling")) for form in a.forms}
    kinds = sorted({kind for score in scores.values() for kind in score})
    print(
        f"text ceiling, level {a.level}, {a.scenes} scenes of the test split\n{'':14}"
        + "".join(f"{f:>16}" for f in scores)
    )
    rows = {
        "overall": None,
        "temporal": TEMPORAL,
        "static": tuple(k for k in kinds if k not in (*TEMPORAL, "describe")),
    }
    table = {name: {form: share(score, types) for form, score in scores.items()} for name, types in rows.items()}
    for name, values in table.items():
        print(f"{name:14}" + "".join(f"{v:16.3f}" for v in values.values()))
    for kind in kinds:
        cells = [(score.get(kind) or [0, 0]) for score in scores.values()]
        print(f"{kind:14}" + "".join(f"{g / n:9.3f} ({n:4})" if n else f"{'':16}" for g, n in cells))
    if a.json:
        counts = {form: {k: {"right": g, "asked": n} for k, (g, n) in score.items()} for form, score in scores.items()}
        a.json.write_text(
            json.dumps({"level": a.level, "scenes": a.scenes, "summary": table, "types": counts}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
