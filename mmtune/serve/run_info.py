"""What the stored recipe of a run says about chatting, read without weights and without heavy packages."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune import config, paths
from mmtune.errors import ConfigError, UsageError
from mmtune.media import Limits
from mmtune.types import Kind

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor
    from mmtune.recipe import Recipe
    from mmtune.serve.engine import Engine


def to_stay(load: Callable[[], Engine]) -> Engine:
    """The engine that `load` reads, for a process that talks with it and ends.

    Importing and reading make a million objects that all stay. Looking among them for garbage, again and again and once
    more at the end, would be a fifth of the time to the first answer; so that waits until they are there, and passes
    them over from then on.
    """
    looking = gc.isenabled()
    gc.disable()
    try:
        return load()
    finally:
        gc.freeze()
        if looking:
            gc.enable()


def packaged_run() -> Path:
    """The run folder inside the package.

    Raises:
        UsageError: this installation was made without weights.
    """
    path = paths.PACKAGE / "pocket" / "chat"
    if not (path / "recipe.yaml").is_file():
        raise UsageError(
            seen="no run was named, and this installation holds no weights of its own",
            expected="the folder of a run, as `mmtune train` writes it",
            hint='mmtune chat RUN --image foo.jpg "What is this?"',
        )
    return path


def folder_of(run: Path | str | None) -> Path:
    """The folder of a run as a program names it; none and `mmtune:NAME` are inside the package."""
    return packaged_run() if run is None else Path(paths.resolve(str(run))).expanduser()


@dataclass(frozen=True)
class RunInfo:
    """What the recipe of a run says about chatting."""

    run: Path
    kinds: tuple[Kind, ...]
    """Kinds of media that some branch takes."""
    notice: str
    """The recipe's note on the model and its limits; empty without one."""
    max_tokens: int
    temperature: float
    device: str = "auto"
    experts: tuple[dict[str, Any], ...] = ()
    """Experts that the recipe names, as it writes them: a name and options."""
    limits: Limits | None = None
    """The most that an item of media may cost; none for the usual."""

    @property
    def packaged(self) -> bool:
        """Whether it is the run inside the package."""
        return self.run.resolve().is_relative_to(paths.PACKAGE)

    @property
    def name(self) -> str:
        """For people: the folder, or that it is the package's own."""
        return "the packaged model" if self.packaged else str(self.run)

    @classmethod
    def read(cls, run: Path, device: str = "auto") -> RunInfo:
        """Read the recipe of a run.

        The stored recipe has every default written out, so a look at the text is enough and the packages that the
        encoders stand on are not imported; it is checked in full when the weights are read. Where the text is not as
        expected it is checked now, which says what is wrong.

        Raises:
            CheckpointError: not the folder of a run.
            ConfigError: a recipe that cannot be used.
        """
        try:
            tree = config.read(run / "recipe.yaml")
            branches, chat = tree["model"]["branches"], tree["chat"]
            kinds = list(dict.fromkeys(kind for branch in branches.values() for kind in branch["kinds"]))
            settings = str(chat["notice"] or ""), int(chat["max_tokens"]), float(chat["temperature"])
            # runs of before there were any have none
            experts, limits = [dict(expert) for expert in chat.get("experts", ())], Limits(**tree.get("limits", {}))
        except (ConfigError, KeyError, TypeError, AttributeError, ValueError):
            from mmtune import registry
            from mmtune.checkpoint import store

            recipe = store.read_recipe(run)
            kinds = [
                kind
                for branch in recipe.model.branches.values()
                for kind in branch.kinds or registry.find("encoders", branch.encoder.name).kinds
            ]
            settings = recipe.chat.notice or "", recipe.chat.max_tokens, recipe.chat.temperature
            experts, limits = [expert.model_dump(mode="json") for expert in recipe.chat.experts], recipe.limits
        return cls(run, tuple(dict.fromkeys(kinds)), *settings, device, tuple(experts), limits)

    def check(self, kind: Kind, origin: str) -> None:
        """Refuse a medium that no branch of the run takes.

        Raises:
            UsageError: names the kind and those that would do.
        """
        if kind not in self.kinds:
            raise UsageError(
                seen=f"{origin} is {kind}, and {self.name} has no branch for that",
                expected=f"one of {', '.join(self.kinds)}" if self.kinds else "text only",
                hint="name a run that was trained with it",
            )

    def load(self, decoders: bool = False) -> Engine:
        """Read the weights, to talk with them. Raises as `parts` does.

        Args:
            decoders: import what decodes media too, so that no Ctrl-C of a person can cut that in the middle, which
                would leave half a package for the rest of the process.
        """
        if decoders:
            for kind in self.kinds:
                importlib.import_module(f"mmtune.media.{kind}")
        from mmtune.serve.engine import Engine

        model, processor, recipe = self.parts()
        return Engine(self.run, model, processor, recipe.chat.top_p)

    def parts(self) -> tuple[MultimodalModel, Processor, Recipe]:
        """Read the weights.

        Raises:
            CheckpointError, ConfigError, ModelError: what the parts raise.
            UsageError: a device that does not exist.
        """
        import torch

        from mmtune.checkpoint import store

        wish = self.device
        if wish == "auto":
            wish = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=wish)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                seen=f"device {wish}: {reason}", expected="a device that torch can use here", hint="--device cpu"
            ) from error
        return store.load_run(self.run, wish)
