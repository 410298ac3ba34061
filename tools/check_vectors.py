"""Run every vector file below some folders against our code.

    tools/check_vectors DIR... [--only TEXT]

For each output: the largest absolute error, the tolerance, pass or fail; totals at the end. Outputs whose name, or
whose case, ends in `_quirk` are defects of the published code that no weights depend on: they are listed as not
reproduced and count as neither. The exit status is 1 when an output fails or is given by no case, and when a file has
no case.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vectors._base import Case, Got, Vector, read

QUIRK = "_quirk"
TENSORS = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin")
"""Files that may be meant as vectors: one that no JSON explains fails, where a README does not."""


def cases() -> dict[str, Case]:
    """Kind of vector to its case, of every module in tools/vectors."""
    found: dict[str, Case] = {}
    for file in sorted((Path(__file__).parent / "vectors").glob("[a-z]*.py")):
        new = importlib.import_module(f"vectors.{file.stem}").CASES
        if twice := found.keys() & new.keys():
            raise SystemExit(f"two cases for {', '.join(sorted(twice))}")
        found |= new
    return found


def quirk(name: str) -> bool:
    """Whether an output or the case that it belongs to is marked as a defect."""
    return any(part.endswith(QUIRK) for part in name.split("/"))


def compare(vector: Vector, got: Got) -> tuple[bool, str]:
    """(passed, what to print)"""
    want = vector.outputs[got.name] if got.want is None else got.want
    value = got.value
    if not isinstance(want, Tensor):
        return value == want, "equal" if value == want else f"{_short(value)} is not {_short(want)}"
    if not isinstance(value, Tensor) or value.shape != want.shape:
        return False, f"{list(value.shape) if isinstance(value, Tensor) else _short(value)} is not {list(want.shape)}"
    if not want.is_floating_point():
        wrong = int((value != want).sum())
        return not wrong, "equal" if not wrong else f"{wrong} of {want.numel()} differ"
    atol, rtol = vector.tolerance(got.name)
    error = (value.double() - want.double()).abs()
    fine = bool((error <= atol + rtol * want.double().abs()).all())  # false where a value is not a number
    return fine, f"error {error.max().item() if error.numel() else 0.0:.2e}  tolerance {atol:.0e} + {rtol:.0e} x"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def check(path: Path, known: dict[str, Case]) -> tuple[int, int, int]:
    """Print a file's outputs -> (passed, failed, not reproduced)."""
    try:
        vector = read(path)
    except (OSError, ValueError) as error:
        print(f"{path}: FAIL cannot be read: {error}")
        return 0, 1, 0
    case = known.get(vector.kind)
    if case is None:
        print(f"{path}: FAIL no case for {vector.kind!r}")
        return 0, 1, 0
    print(f"{path} ({vector.kind})")
    passed = failed = 0
    given: set[str] = set()
    try:
        with torch.no_grad():
            for got in case(vector):
                given.add(got.name)
                if quirk(got.name):
                    continue
                fine, text = compare(vector, got)
                passed, failed = passed + fine, failed + (not fine)
                print(f"  {'pass' if fine else 'FAIL'}  {got.name:40} {text}")
    except Exception:
        failed += 1
        print("  FAIL  stopped:\n" + traceback.format_exc())
    quirks = sorted(name for name in {*vector.outputs, *given} if quirk(name))
    for name in quirks:
        print(f"  ----  {name:40} a defect of the published code, not reproduced")
    for name in sorted(vector.outputs.keys() - given - {*quirks}):
        failed += 1
        print(f"  FAIL  {name:40} no value of ours")
    if not passed and not failed and not quirks:
        failed += 1
        print("  FAIL  the case gave nothing")
    return passed, failed, len(quirks)


def _explained(file: Path) -> bool:
    """Whether a JSON beside a tensor file tells what it holds."""
    return file.suffix == ".safetensors" and file.with_suffix(".json").is_file()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folders", nargs="+", type=Path)
    ask.add_argument("--only", default="", help="only files whose path holds this text")
    a = ask.parse_args()
    files: list[Path] = []
    for folder in a.folders:
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not a folder")
        json_files = sorted(folder.rglob("*.json"))
        alone = [f for f in sorted(folder.rglob("*")) if f.suffix in TENSORS and not _explained(f)]
        files += [file for file in json_files + alone if a.only in str(file)]
    if not files:
        raise SystemExit("no vector files there")
    known = cases()
    results = [check(file, known) for file in files]
    passed, failed, quirks = (sum(column) for column in zip(*results, strict=True))
    print(f"{len(files)} files: {passed} outputs pass, {failed} fail, {quirks} defects not reproduced")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
