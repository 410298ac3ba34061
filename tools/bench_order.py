"""How full packed rows are, and how fast training is, in several orders of the same samples.

The samples are the docstrings of Python's standard library: a question for each, answered by the docstring. They are
read from the installed Python, so they are there on every machine, and their lengths are those of real text.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.data.build import loader_of
from mmtune.data.loader import Loader
from mmtune.data.orders.base import TOKENS, Order, OrderConfig, Samples
from mmtune.recipe import Recipe
from mmtune.types import IGNORE, Batch

SHARDS = 8
STRIDE = 5
"""Of so many steps one is timed: an order may begin with samples that are not like the others."""
ORDERS = {
    "shuffle": "shuffle",
    "one length together": f"{__name__}:Alike",
    "length_grouped": "length_grouped",
}
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


def order(samples: int, length: int, rows: int, steps: int) -> None:
    """Measure and print the table of `tools/bench order`.

    Fullness is that of a whole epoch. For speed, some steps of each order are computed forward and backward by the
    packaged language model, in turns with the others, so that a busy minute of the machine falls on all alike.
    """
    from mmtune import registry

    registry.allow([ORDERS["one length together"]])
    with tempfile.TemporaryDirectory() as folder:
        count = write_shards(Path(folder), samples)
        recipe = _recipe(folder, length, rows)
        model = models.build(recipe.model, weights=True)
        model.llm.requires_grad_(True)
        loaders = {name: _loader(recipe, model, spelled) for name, spelled in ORDERS.items()}
        feeds = {name: loader.steps() for name, loader in loaders.items()}
        found = {name: _Found() for name in ORDERS}
        for _ in range(steps):
            for name, feed in feeds.items():
                for _ in range(STRIDE):
                    batch, tokens = found[name].take(next(feed)[1])
                begun = time.process_time()
                model(batch)[batch.labels != IGNORE].float().square().mean().backward()
                found[name].seconds += time.process_time() - begun
                found[name].trained += tokens
        for name, loader in loaders.items():
            while loader.positions(found[name].steps)["streams"]["text"]["epoch"] == 0:
                found[name].take(next(feeds[name])[1])
    print(f"{count} docstrings, rows of {length} tokens, {rows} rows a step; speed of {steps} steps\n")
    print("| order | steps of an epoch | rows filled | tokens per processor second |\n|---|---|---|---|")
    for name, one in found.items():
        fill = 100 * one.tokens / (rows * length * one.steps)
        print(f"| {name} | {one.steps} | {fill:.1f} % | {one.trained / one.seconds:.0f} |")


@dataclass
class _Found:
    """Sums over the steps of an order."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    trained: int = 0
    """Tokens of the steps that were timed."""

    def take(self, batches: Sequence[Batch]) -> tuple[Batch, int]:
        """The batch of a step, and its tokens."""
        (batch,) = batches
        tokens = int((batch.segments > 0).sum())
        self.steps += 1
        self.tokens += tokens
        return batch, tokens


def _recipe(folder: str, length: int, rows: int) -> Recipe:
    tree = config.read("pocket", [])
    tree |= {
        "model": {**tree["model"], "branches": {}},
        "streams": {"text": {"data": [f"{folder}/*.tar"], "format": "llava", "prompt": "pocket"}},
        "groups": {"llm": {"match": ["llm.*"], "lr": 1e-4}},
        "run": {"length": length, "batch_tokens": rows * length, "too_long": "drop", "max_bad_in_a_row": 10**6},
        "schedule": {"steps": 1},
        "eval": {},
    }
    return config.validate(Recipe, tree)


def _loader(recipe: Recipe, model: models.MultimodalModel, order: str) -> Loader:
    tree = config.merge(recipe.model_dump(mode="json"), {"streams": {"text": {"order": order}}, "run": {"workers": 0}})
    asked = config.validate(Recipe, tree)
    return loader_of(asked, {"text": store.processor_for(asked, model, "pocket")}, pad=model.llm.tokenizer.pad)
