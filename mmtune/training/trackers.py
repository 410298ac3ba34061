"""Other programs that get the numbers of a run, beside metrics.jsonl: TensorBoard, and Weights & Biases where it is
installed.

A tracker that a recipe names and that is not installed stops the run before it begins; one that breaks later costs its
numbers only.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmtune import disk
from mmtune.errors import UsageError
from mmtune.output import Output

_errors = Output("stderr")


class Tracker(Protocol):
    """Takes numbers by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder; those after the step the run continues from are superseded."""

    def __init__(self, folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(disk.folder(folder / "tensorboard")), purge_step=start or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `mmtune`, or of WANDB_PROJECT, named as its folder. A run that goes on is the same one
    there: its id is in `wandb/mmtune-id` of the run folder."""

    def __init__(self, folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        import wandb

        own = disk.folder(folder / "wandb")
        if (own / "settings").exists():  # it could send the user's key to another server
            raise UsageError(f"{own / 'settings'}", "no settings of Weights & Biases in a run folder", "delete it")
        file = own / "mmtune-id"
        if not (start and file.is_file()):
            disk.write_file(file, os.urandom(4).hex())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mmtune"),
            name=folder.name,
            id=disk.read_text(file, 64).strip(),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )
        # its own count of steps refuses those that come again after a kill
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed. Raises UsageError."""
    if "wandb" in names:
        try:
            importlib.import_module("wandb")
        except ImportError as error:
            raise UsageError(
                seen=f"run.trackers names wandb, and the package cannot be imported: {error}",
                expected="wandb installed, or another tracker",
                hint="pip install 'mmtune[wandb]', or run.trackers=[tensorboard]",
            ) from error


def opened(names: Sequence[str], folder: Path, start: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """Trackers by name; one that cannot begin is reported and left out.

    Args:
        start: the step the run continues from.
        settings: the recipe, for trackers that show it.
    """
    found = []
    for name in names:
        try:
            found.append(KINDS[name](folder, start, settings))
        except Exception as error:  # any fault of a tracker is only a fault of the tracker
            _errors.say(f"note: nothing is logged to {name}: {error}")
    return found
