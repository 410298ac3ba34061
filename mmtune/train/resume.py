"""Save and restore everything that moves in a run: weights, optimizers, step, place in the data.

Only safetensors and JSON are written. A state is a sealed folder `state/step-NNNNNNNN`; older ones are deleted after
the new one is in place, and two are always kept, so that a damaged one has something to fall back to.
Random numbers need no state: each step draws from seeds made of (seed, step, rank), see `seed_step`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtune.checkpoint import seal
from mmtune.errors import CheckpointError, UsageError

_NAME = re.compile(r"step-(\d{8})")


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set the random state of Python, NumPy, torch and its devices to a function of (seed, step, rank)."""
    digest = hashlib.sha256(f"mmtune step {seed} {step} {rank}".encode()).digest()
    value = int.from_bytes(digest[:8], "little")
    random.seed(value)
    numpy.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)


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
        save_file(_plain(state.weights), draft / "weights.safetensors")
        for group, tensors in state.optimizers.items():
            save_file(_plain(tensors), draft / f"optimizer.{group}.safetensors")
        info = {"step": state.step, "groups": list(state.optimizers), **state.info}
        (draft / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")

    try:
        seal.write(target, fill)
    except OSError as error:
        raise CheckpointError(
            seen=f"the state of step {state.step} could not be written: {error}",
            expected=f"room and the right to write in {folder}",
            hint="earlier states are untouched; make room and go on with --resume",
        ) from error
    for path in list(_states(folder))[max(2, keep) :]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _states(folder: Path) -> Iterator[Path]:
    """Saved states, newest first; drafts have other names and are passed over."""
    if folder.is_dir():
        yield from sorted((p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), reverse=True)


def load(folder: Path, say: Callable[[str], None] = print) -> State | None:
    """The newest whole state, or none when nothing was ever saved. Damaged ones are named, then passed over.

    Raises:
        CheckpointError: states are there and not one is whole.
    """
    damaged = []
    for path in _states(folder):
        faults = seal.faults(path)
        if not faults:
            try:
                state = _read(path)
            except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
                faults = [str(error)]
            else:
                if damaged:
                    say(f"falling back to {path.name}")
                return state
        damaged.append(path.name)
        say(f"warning: {path.name} is damaged and is not used: {'; '.join(faults)}")
    if damaged:
        raise CheckpointError(
            seen=f"{len(damaged)} saved states in {folder}, all of them damaged",
            expected="at least one whole state",
            hint="start again in a new folder; what is damaged is named above",
        )
    return None


def _read(path: Path) -> State:
    info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    optimizers = {group: load_file(path / f"optimizer.{group}.safetensors") for group in info.pop("groups")}
    return State(info.pop("step"), load_file(path / "weights.safetensors"), optimizers, info)


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


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a run folder for this process. The system lets go of it when the process ends, however it ends.

    Raises:
        UsageError: another process is training in this folder, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock_file = (out / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            seen=f"the run folder {out} cannot be used: {error.strerror}",
            expected="a folder that is new or may be written",
            hint="give another one with --out",
        ) from error
    with lock_file as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(
                seen=f"{out} is in use by another run (process {holder})",
                expected="one run in a folder at a time",
                hint="wait for it, or give another folder",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
