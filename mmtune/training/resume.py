"""Save and restore everything that moves in a run: weights, optimizers, step, position in the data.

Only safetensors and JSON are written. A state is a sealed folder `state/step-NNNNNNNN`; older ones are deleted after
the new one is in place, and two are always kept, so that a damaged one has something to fall back to. A damaged one is
put aside as `step-NNNNNNNN.damaged`, so that it does not count as one of the two.
Random numbers need no state: each step draws from seeds made of (seed, step, rank), see `seed_step`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mmtune import disk, dtypes, renamed, weights_file
from mmtune.checkpoint import seal, tensors
from mmtune.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")
_LEFT = re.compile(r"\.(step-\d{8})\.(draft|old)")
MOST = 256 << 20
"""Largest run.json that is read, bytes; digests of the indexes of a million shards take half of it."""
DEEPEST = 40
"""Most levels in it."""

Count = Annotated[int, Field(ge=0, le=2**53)]


class _Part(BaseModel):
    """Strict, because a run folder may come from elsewhere."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _OrderState(_Part):
    epoch: Count
    order: dict[str, Any]


class _Place(_Part):
    epoch: Count
    position: Count
    order: _OrderState | None = None


class _Positions(_Part):
    step: Count
    streams: dict[str, _Place]
    measures: dict[str, float] = {}


class _LedgerPosition(_Part):
    bytes: Count
    sha256: str
    good: Count
    bad: Count
    row: Count
    notes: dict[str, Count] = {}


class _Best(_Part):
    measure: str
    step: Count
    value: float | None


class _Validation(_Part):
    last: Count = 0
    best: _Best | None = None


class _Info(_Part):
    """What of run.json a run continues with."""

    facts: dict[str, Any]
    positions: _Positions
    ledger: _LedgerPosition
    nonfinite_steps: Count
    recent: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    micro_step_parts: Annotated[int, Field(ge=1, le=2**20)]
    validation: _Validation = _Validation()


def check(info: Any) -> None:
    """Look at the numbers and names of a state. Raises CheckpointError for what no run writes."""
    try:
        _Info.model_validate(info)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise CheckpointError(
            seen=f"run.json of a saved state: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            expected="a state as `mmtune train` writes it",
            hint="begin a new run with these weights: run.init_from=FOLDER",
        ) from error


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set the random state of Python, NumPy, torch and its devices to a function of (seed, step, rank)."""
    digest = hashlib.sha256(f"mmtune step {seed} {step} {rank}".encode()).digest()
    value = int.from_bytes(digest[:8], "little")
    random.seed(value)
    numpy.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of a step that are the same on every rank, and leave the random state of torch alone."""
    digest = hashlib.sha256(f"mmtune draw {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


@dataclass(frozen=True)
class State:
    """A saved moment of a run, after `step` steps."""

    step: int
    weights: dict[str, Tensor]
    optimizers: dict[str, dict[str, Tensor]]
    info: dict[str, Any]


def save(folder: Path, state: State, keep: int = 2) -> Path:
    """Write a state into the state folder, sealed, then delete all but the newest `keep` (at least 2).

    Raises:
        CheckpointError: the disk took no more; earlier states are untouched.
    """
    target = folder / f"step-{state.step:08d}"

    def fill(draft: Path) -> None:
        tensors.write(draft / "weights.safetensors", state.weights)
        for group, moments in state.optimizers.items():
            tensors.write(draft / f"optimizer.{group}.safetensors", moments)
        info = {"step": state.step, "groups": list(state.optimizers), **state.info}
        disk.put(draft / "run.json", [json.dumps(info, indent=1).encode()])

    try:
        seal.write(target, fill)
    except OSError as error:
        raise CheckpointError(
            seen=f"the state of step {state.step} could not be written: {error}",
            expected=f"room and the right to write in {folder}",
            hint="earlier states are untouched; make room and go on with --resume",
        ) from error
    whole = list(_states(folder))
    for path in whole[max(2, keep) :]:
        disk.remove(path)
    for path in folder.glob("step-*.damaged"):
        if path.name < whole[: max(2, keep)][-1].name:
            disk.remove(path)
    return target


def _states(folder: Path) -> Iterator[Path]:
    """Saved states, newest first; drafts have other names and are passed over."""
    if folder.is_dir():
        yield from sorted((p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), reverse=True)


def exists(folder: Path) -> bool:
    """Whether a state was ever saved here, whole or not."""
    return any(True for _ in _states(folder))


def load(folder: Path, say: Callable[[str], None] = print, step: int | None = None) -> State | None:
    """The newest whole state, or None when nothing was ever saved. Damaged ones are named, then passed over.

    Args:
        step: take the state of this step and no other, because another rank found it to be the newest.

    Raises:
        CheckpointError: states are there and not one is whole.
    """
    damaged = []
    for path in _states(folder):
        if step is not None and path.name != f"step-{step:08d}":
            continue
        faults = seal.faults(path)
        if not faults:
            try:
                state = _read(path)
            except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError, CheckpointError) as error:
                faults = [str(error)]
            else:
                if damaged:
                    say(f"falling back to {path.name}")
                return state
        damaged.append(path.name)
        say(f"warning: {path.name} is damaged and is not used: {'; '.join(faults)}")
    if step is not None and not damaged:
        raise CheckpointError(
            seen=f"no saved state of step {step} in {folder}, where the first rank found one",
            expected="one run folder for all ranks",
            hint="put it on a disk that every machine mounts at the same path",
        )
    if damaged:
        raise CheckpointError(
            seen=f"{len(damaged)} saved states in {folder}, all of them damaged",
            expected="at least one whole state",
            hint="start again in a new folder; what is damaged is named above",
        )
    return None


def recover(folder: Path) -> None:
    """Clear away what killed writes left beside the states. For the one process that holds the run folder."""
    if folder.is_dir():
        for name in {found[1] for path in folder.iterdir() if (found := _LEFT.fullmatch(path.name))}:
            seal.recover(folder / name)


def put_aside(folder: Path, step: int) -> None:
    """Rename the states after `step`, which are damaged: the run goes on before them and will write these steps again.

    For the one process that holds the run folder.
    """
    for path in list(_states(folder)):
        if path.name > f"step-{step:08d}":
            aside = path.with_name(path.name + ".damaged")
            disk.remove(aside)
            os.rename(path, aside)


def _read(path: Path) -> State:
    info = json.loads(disk.read_text(path / "run.json", MOST))
    if _depth(info) > DEEPEST:
        raise ValueError(f"run.json is nested more than {DEEPEST} deep")
    step, groups = info.pop("step"), info.pop("groups")
    if path.name != f"step-{step:08d}" or any("/" in group for group in groups):
        raise ValueError(f"run.json says step {step}, groups {groups}"[:200])
    moments = {group: weights_file.read(path / f"optimizer.{group}.safetensors") for group in groups}
    optimizers = {group: renamed.tensors(held) for group, held in moments.items()}
    weights = renamed.tensors(weights_file.read(path / "weights.safetensors"))
    dtypes.require_finite(weights, str(path / "weights.safetensors"))
    return State(step, weights, optimizers, renamed.keys(info, renamed.STATE))


def _depth(tree: Any) -> int:
    """Levels of a plain tree."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        ]
    return depth


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain trees differ, as `a.b.c: old -> new` lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(set(old) | set(new), key=str):
            here = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                lines.append(f"{here}: {_short(old.get(key))} -> {_short(new.get(key))}")
            else:
                lines += differences(old[key], new[key], here)
        return lines
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
