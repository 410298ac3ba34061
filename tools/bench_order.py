"""How full packed rows are, and how fast training is, in several orders of the same samples.

The samples are the docstrings of Python's standard library: a question for each, answered by the docstring. They are
read from the installed Python, so they are there on every machine, and their lengths are those of real text.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import statistics
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtune import config
from mmtune.data.orders.base import TOKENS, Order, OrderConfig, Samples

SHARDS = 8
PASSED = ("test", "lib2to3", "idlelib", "site-packages")
"""What is no part of the library that people read."""


class Alike(Order):
    """Samples of one length next to each other, drawn anew for each epoch: the megabatches of `transformers`."""

    Config = OrderConfig
    megabatch = 512

    @property
    def columns(self) -> tuple[str, ...]:
        return (TOKENS,)

    def keys(self, samples: Samples, seed: int, epoch: int) -> Sequence[np.ndarray]:
        place = np.argsort(np.argsort(samples.drawn(seed, epoch), kind="stable"), kind="stable")
        return place // self.megabatch, -samples.columns[TOKENS]


def docstrings() -> Iterator[tuple[str, str]]:
    """Name and docstring of each module, class and function of the standard library, each text once. Nothing is
    imported: the sources are parsed."""
    folder, seen = Path(inspect.__file__).parent, set[str]()
    for path in sorted([*folder.glob("*.py"), *folder.glob("[a-z]*/*.py")]):
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        if module.startswith(PASSED):
            continue
        for name, node in _named(ast.parse(path.read_bytes()), module):
            text = ast.get_docstring(node) or ""
            if len(text) > 20 and text not in seen:
                seen.add(text)
                yield name, text


def _named(node: ast.AST, name: str) -> Iterator[tuple[str, Any]]:
    """A module, its classes and functions, and theirs, by name."""
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _named(child, f"{name}.{child.name}")


def write_shards(folder: Path, samples: int) -> int:
    """Shards of about so many records, taken evenly from all; returns how many they are."""
    every = list(docstrings())
    records = every[:: max(1, len(every) // samples)]
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(number, len(records), SHARDS):
                path, text = records[index]
                turns = [{"from": "human", "value": f"What does {path} do?"}, {"from": "gpt", "value": text}]
                data = json.dumps({"id": path, "conversations": turns}).encode()
                info = tarfile.TarInfo(f"{index:06d}.json")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return len(records)


def order(samples: int, length: int, rows: int) -> None:
    """Measure and print the table of `tools/bench order`."""
    from mmtune import registry

    names = {"shuffle": "shuffle", "one length together": f"{__name__}:Alike", "length_grouped": "length_grouped"}
    registry.allow([names["one length together"]])
    with tempfile.TemporaryDirectory() as folder:
        count = write_shards(Path(folder), samples)
        print(f"{count} docstrings, rows of {length} tokens, {rows} rows a step, one epoch\n")
        print("| order | steps | rows filled | samples a step | tokens/s, quickest quarter of the steps |")
        print("|---|---|---|---|---|")
        for name, spelled in names.items():
            found = _train(Path(folder), spelled, length, rows)
            tokens, taken = (sum(row[key] for row in found) for key in ("tokens", "samples"))
            fill = 100 * tokens / (rows * length * len(found))
            # whatever else a machine does makes steps slower, none quicker
            speed = statistics.quantiles([row["tokens_per_second"] for row in found], n=4)[2]
            print(f"| {name} | {len(found)} | {fill:.1f} % | {taken / len(found):.1f} | {speed:.0f} |", flush=True)


def _train(folder: Path, order: str, length: int, rows: int) -> list[dict[str, Any]]:
    """The steps of an epoch of the packaged language model on the shards."""
    import mmtune

    recipe = config.read("pocket", [])
    run = {
        "length": length, "batch_tokens": rows * length, "too_long": "drop", "workers": 0, "save_every": 0,
        "trackers": [], "max_bad_fraction": 1.0, "max_bad_in_a_row": 10**6,
    }  # fmt: skip
    recipe |= {
        "model": {**recipe["model"], "branches": {}},
        "streams": {"text": {"data": [f"{folder}/*.tar"], "format": "llava", "prompt": "pocket", "order": order}},
        "groups": {"norms": {"match": ["llm.*norm*"], "lr": 1e-4}},
        "schedule": {"epochs": 1},
        "run": run,
        "eval": {},
    }
    out = Path(tempfile.mkdtemp(dir=folder))
    mmtune.train(recipe, out, progress="off")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in steps if "tokens" in row]
