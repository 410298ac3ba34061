"""What becomes of a run in every published layout: the same model, or a refusal that names what has no place there.

    tools/fidelity [LAYOUT...] [--short] [--jobs N] [--write FILE]

Every method of `peft` that trains here, and every setting of an encoder, are put into a tiny run of each layout that
can be written; weights that would have trained are moved at random, and the run is exported. A cell of the table says
`=` where the export was written and, read back, computes what the run does to 1e-5 (for LLaVA also in transformers);
`refused` where it was refused with the name of the method or setting in the message and no files are left; anything
else is a fault and is listed. The exit status is 1 then. `--write` puts the table into a Markdown file; columns of that
file for layouts that are not tried stay as they are.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

Base = tuple[Path, list[str], str]
Case = tuple[str, list[str], Any, str, str]
SAME, REFUSED, FAULT, ABSENT = "=", "refused", "FAULT", ""
BOTH = {"target_modules": ["q_proj", "v_proj"]}
METHODS: dict[str, dict[str, Any]] = {
    "lora + dora": {"method": "lora", "r": 4, "use_dora": True, **BOTH},
    "lora + rslora": {"method": "lora", "r": 4, "use_rslora": True, **BOTH},
    "lora, ranks by layer": {"method": "lora", "r": 4, "rank_pattern": {"v_proj": 2}, **BOTH},
    "lora + a head that trains": {"method": "lora", "r": 4, "modules_to_save": ["lm_head"], **BOTH},
    "lora on the embedding": {"method": "lora", "r": 4, "target_modules": ["embed_tokens"]},
    "lora + tokens that train": {"method": "lora", "r": 4, "trainable_token_indices": [30, 31], **BOTH},
    "adalora": {"target_r": 2, "init_r": 4, **BOTH},
    "boft": {"boft_block_size": 4, **BOTH},
    "c3a": {"block_size": 8, **BOTH},
    "fourierft": {"n_frequency": 20, **BOTH},
    "ia3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ln_tuning": {"target_modules": ["input_layernorm"]},
    "oft": {"oft_block_size": 8, "r": 0, **BOTH},
    "p_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "road": {"group_size": 8, **BOTH},
    "trainable_tokens": {"token_indices": [30, 31], "target_modules": ["embed_tokens"]},
    "vblora": {"num_vectors": 8, "vector_length": 8, "topk": 2, "r": 2, **BOTH},
    "waveft": {"n_frequency": 20, **BOTH},
}
"""Options of methods that need more than the rank and where they go."""
RANKED = ("lora", "vera", "pvera", "hra", "miss", "gralora", "psoft", "randlora", "shira", "loha", "lokr", "lily")
IMAGE: dict[str, Any] = {
    "channels": "bgr", "size": 48, "resize": "pad", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.3, 0.2],
    "frames": 5, "rule": "first", "decode_side": 100, "random_crop": [0.5, 1.0], "chunk": 7,
}  # fmt: skip
LAYERS = {"layers": [-1, 0]}
SETTINGS: dict[str, dict[str, Any]] = {
    "hf_vision": {
        **IMAGE, "layer": -1, **LAYERS, "tokens": "all", "norm": True, "tokens ": "pooled", "resize ": "stretch",
    },
    "clip": {**IMAGE, "layer": -2, **LAYERS, "tokens": "patches", "norm": False, "project": False},
    "blip2_eva": {**IMAGE, **LAYERS, "tokens": "all", "norm": False},
    "imagebind_vision": {**IMAGE, **LAYERS, "tokens": "patches", "clip": 2},
    "imagebind_audio": {
        "frames": 2, "spacing": "short", "centre": "clip", "clip_seconds": 0.3, "rate": 8000, "mean": -4.0, "std": 8.0,
        "tokens": "patches", "chunk": 7, "length": 21, **LAYERS,
    },
    "p2p_points": {
        "points": 48, "normalise": False, "skip_origin": 0.1, "extent": 2.0, "up": "z", "views": "test", "near": 5,
        "object": 16, "train_views": 1, "chunk": 3,
    },
}  # fmt: skip
"""Encoder to settings that a run may have otherwise; a blank behind the name makes it another value of that setting."""
ELSEWHERE = {"name", "weights", "model", "revision", "fps"}
"""Where weights lie, and a number that needs another rule beside it."""
SIZES: dict[str, set[str]] = {
    "blip2_eva": {
        "patch",
        "trained_size",
        "vit_width",
        "vit_depth",
        "vit_heads",
        "vit_hidden",
        "queries",
        "cross_every",
    }
    | {f"qformer_{one}" for one in ("width", "depth", "heads", "hidden")},
    "imagebind_vision": {"tower_width", "depth", "heads", "out", "patch"},
    "imagebind_audio": {"tower_width", "depth", "heads", "out", "patch", "mels", "stride"},
    "p2p_points": {"image", "inner_width", "point_width", "colouring", "pool"}
    | {"theta", "phi", "scale", "shift", "spare", "background", "fine"},
}
"""Sizes that weights tell, so that a run with another one is another model; and what training draws, or plain colouring
has, which no layout holds."""
SHORT = {
    "llava_hf": ("lora + dora", "oft", "lily", "channels", "layer", "layers"),
    "pllava": ("lora", "norm", "layers"),
    "llama_adapter_v1": ("lora",),
    "eva": ("mean",),
}


@dataclass
class Table:
    """Kind to row to what became of it."""

    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def put(self, kind: str, row: str, cell: str, why: str = "") -> None:
        self.cells.setdefault(kind, {})[row] = cell
        if cell == FAULT:
            self.faults.append(f"{kind}, {row}: {why}")

    def lines(self) -> list[str]:
        """As Markdown, methods first."""
        kinds = list(self.cells)
        rows = list(dict.fromkeys(row for kind in kinds for row in self.cells[kind]))
        head = ["| | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
        return head + [
            f"| {row} | " + " | ".join(self.cells[kind].get(row, ABSENT) for kind in kinds) + " |"
            for row in rows
        ]

    @classmethod
    def read(cls, text: str) -> Table:
        """The table of a page."""
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        found = cls()
        for row in rows[2:]:
            for kind, cell in zip(rows[0][1:], row[1:], strict=True):
                if cell:
                    found.put(kind, row[0], cell, "see the earlier run")
        return found

    def counts(self) -> str:
        total = Counter(cell for rows in self.cells.values() for cell in rows.values())
        return (
            f"{sum(total.values())} exports of {len(self.cells)} layouts: {total[SAME]} equal when loaded back, "
            f"{total[REFUSED]} refused by name, {total[FAULT]} otherwise"
        )


def methods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method that trains here, as (row, settings of the tuner)."""
    from mmtune.tuners.hf_peft import methods as offered

    for name in offered():
        more = METHODS.get(name, {"r": 4, **BOTH} if name in RANKED else BOTH)
        yield name, {"name": "hf_peft", "method": name, "adapter": "more", **more}
    for row, settings in METHODS.items():
        if "method" in settings:
            yield row, {"name": "hf_peft", "adapter": "more", **settings}


def based(kind: str, folder: Path) -> Base:
    """A tiny run that is exported to a kind, options of the export, and the branch whose encoder is changed."""
    from mmtune.checkpoint import convert, store
    from tests.checkpoint.foreign import runs
    from tests.checkpoint.foreign.made import make

    made = make(kind, folder / kind / "published")
    changes = [] if kind == "p2p" else made.changes  # those of its tiny run are no part of the layout
    run = convert.import_checkpoint(kind, made.words, folder / kind / "run", made.options, changes)
    if (run / "encoder.yaml").is_file():
        run = runs.around(run, folder / kind / "around")
    return run, list(made.export or ()), next(iter(store.read_recipe(run).model.branches), "")


def cases(run: Path, branch: str) -> Iterator[Case]:
    """(row, changes, edit of the recipe, names that are moved, the word that a refusal has to say) of a run."""
    from mmtune import config
    from mmtune.checkpoint import store

    yield "as it is", [], None, "", ""
    for row, tuner in methods():

        def edit(tree: dict[str, Any], tuner: dict[str, Any] = tuner) -> None:
            tree["model"]["tuners"] = [*tree["model"]["tuners"], tuner]
            if not any("@hf_peft" in group["match"] for group in tree["groups"].values()):
                tree["groups"]["more"] = {"match": ["@hf_peft"], "lr": 0.01}

        yield row, [], edit, "llm.", "hf_peft"
    if branch:
        encoder = store.read_recipe(run).model.branches[branch].encoder
        for row, value in SETTINGS[encoder.name].items():
            name = row.strip()
            shown = row if row == name else f"{name}: {value}"
            yield shown, [f"model.branches.{branch}.encoder.{name}={config.dump(value).strip()}"], None, "", name


def one(kind: str, base: Base, case: Case, folder: Path) -> Any:
    """(cell, why) for one case; (none, "") where the setting does not fit the run at all."""
    from mmtune.checkpoint import convert
    from mmtune.errors import MmtuneError
    from tests.checkpoint.foreign.runs import varied

    run, options, _ = base
    _, changes, edit, moved, word = case
    here = Path(tempfile.mkdtemp(dir=folder))
    try:
        changed = varied(run, changes, moved, edit) if changes or edit else None
    except (MmtuneError, ImportError):
        return None, ""  # such a run cannot be made, so nobody exports it
    try:
        if changed is None:
            convert.export_checkpoint(run, kind, here / "out", options)
        else:
            convert.export_opened(changed, kind, here / "out", options)
    except MmtuneError as error:
        left, text = sorted(path.name for path in here.iterdir()), str(error)
        named = bool(word) and (word in text or "tuner" in text or "trained" in text)
        return (REFUSED, "") if named and not left else (FAULT, f"{text} (left behind: {left or 'nothing'})")
    except Exception:
        return FAULT, traceback.format_exc()
    finally:
        shutil.rmtree(here)
    return SAME, ""


def of_kind(kind: str, short: bool) -> Table:
    """What becomes of every case of one kind."""
    import torch

    from mmtune.checkpoint.foreign import _files
    from tests.checkpoint.foreign.inside import converter

    torch.set_num_threads(1)
    table = Table()
    with (
        warnings.catch_warnings(action="ignore"),
        mock.patch.object(_files, "convert", converter()),
        tempfile.TemporaryDirectory(prefix="mmtune-fidelity-") as name,
    ):
        folder = Path(name)
        base = based(kind, folder)
        for case in cases(base[0], base[2]):
            if short and case[0] not in SHORT.get(kind, ()):
                continue
            cell, why = one(kind, base, case, folder)
            if cell is not None:
                table.put(kind, case[0], cell, why)
    print(f"{kind}: {dict(Counter(table.cells.get(kind, {}).values()))}", file=sys.stderr, flush=True)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="LAYOUT")
    parser.add_argument("--short", action="store_true", help="few cases of few kinds")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table as Markdown")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="layouts that are tried at once")
    options = parser.parse_args()
    from mmtune import registry
    from mmtune.checkpoint import convert

    every = [kind for kind in registry.names(convert.ROOM) if convert.writes(registry.find(convert.ROOM, kind))]
    if wrong := sorted(set(options.kinds) - set(every)):
        parser.error(f"no layout {', '.join(wrong)} that can be written; there are {', '.join(every)}")
    kinds = options.kinds or (list(SHORT) if options.short else every)
    began, table = time.monotonic(), Table()
    if options.jobs == 1:
        parts = [of_kind(kind, options.short) for kind in kinds]
    else:
        from mmtune.children import isolated

        with isolated(), ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(of_kind, kinds, [options.short] * len(kinds)))
    for part in parts:
        table.cells |= part.cells
        table.faults += part.faults
    print("\n".join(table.lines()))
    print(f"\n{table.counts()}  ({time.monotonic() - began:.0f} s)")
    for fault in table.faults:
        print(f"\nFAULT {fault}")
    if options.write:
        whole = Table.read(options.write.read_text(encoding="utf-8")) if options.write.is_file() else Table()
        cells = {**whole.cells, **table.cells}
        options.write.write_text(page(Table({kind: cells[kind] for kind in sorted(cells)})), encoding="utf-8")
    return 1 if table.faults else 0


def page(table: Table) -> str:
    """The Markdown file."""
    return "\n".join(
        [
            "# What becomes of a run in other layouts",
            "",
            "Made by `tools/fidelity --write docs/fidelity.md`, on tiny models in float32. `=`: written, read back and",
            "the same to 1e-5 (LLaVA also in transformers). `refused`: refused with the name of what has no place in",
            "the layout, and no files are left. Empty: such a run cannot be made.",
            "",
            f"{table.counts()}.",
            "",
            *table.lines(),
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
