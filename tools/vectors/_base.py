"""What a case of `tools/check_vectors` is: a function from one vector file to our values for its outputs.

A vector is a `NAME.json`, with `NAME.safetensors` beside it where there are tensors: weights by their published names,
inputs, and the outputs that the published code gave. Sizes, seeds and options are read from the file, so a case
serves every file of its layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("weights/", "state_dict/")


@dataclass(frozen=True)
class Vector:
    """One vector file."""

    path: Path
    """Of the JSON."""
    facts: dict[str, Any]
    """The JSON."""
    tensors: dict[str, Tensor]
    """Everything in the safetensors file beside it; empty when there is none."""

    @property
    def kind(self) -> str:
        """`system`, or `system/module` where the file names a module: the key of a case.

        A sample rate at the end of a module, as in `audio_preproc_44k`, is one of its sizes.
        """
        module = re.sub(r"_\d+k$", "", self.facts.get("module") or "")
        return f"{self.facts.get('system', '?')}{f'/{module}' if module else ''}"

    @property
    def weights(self) -> dict[str, Tensor]:
        """Published name to tensor."""
        return {n.removeprefix(p): t for p in WEIGHTS for n, t in self.tensors.items() if n.startswith(p)}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {n.removeprefix("inputs/"): t for n, t in self.tensors.items() if n.startswith("inputs/")}

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {n.removeprefix("outputs/"): t for n, t in self.tensors.items() if n.startswith("outputs/")}

    def tolerance(self, name: str) -> tuple[float, float]:
        """(atol, rtol) of an output: of its case where the file gives one for each case, else of the file."""
        case = self.facts.get("cases", {}).get(name.partition("/")[0], {})
        given = case.get("tolerance") if isinstance(case, dict) else None
        given = given or self.facts.get("tolerance")
        if isinstance(given, dict) and "atol" in given:
            return float(given["atol"]), float(given["rtol"])
        return (float(given),) * 2 if isinstance(given, float) else (1e-5, 1e-5)


@dataclass(frozen=True)
class Got:
    """Our value for one output."""

    name: str
    """Of the output in the file, or a name of its own for a value of a table."""
    value: Any
    """A tensor, or a plain value, which is compared exactly."""
    want: Any = None
    """The published value where it is not the tensor `outputs/<name>`."""


Case = Callable[[Vector], Iterator[Got]]


def read(path: Path) -> Vector:
    """The vector of a JSON file. Raises OSError, and ValueError for what is no JSON object or no tensor file."""
    if path.suffix != ".json":
        raise ValueError("no JSON of this name beside it, which would tell what it holds")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key) or "", str) for key in ("system", "module")):
        raise ValueError("no JSON object with the system, and at most the module, that it is of")
    tensors = path.with_suffix(".safetensors")
    if not tensors.is_file():
        return Vector(path, facts, {})
    try:
        return Vector(path, facts, load_file(tensors))
    except SafetensorError as error:
        raise ValueError(f"{tensors.name}: {error}") from error
