"""A run that was read back, for Python: its parts by name, and questions to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmtune import registry
from mmtune.errors import UsageError
from mmtune.serve import run_info
from mmtune.serve.answer import Answer
from mmtune.serve.conversation import Conversation
from mmtune.serve.experts import Panel, Spec, brief
from mmtune.serve.settings import Settings
from mmtune.serve.terminal import say
from mmtune.types import KINDS

if TYPE_CHECKING:
    from mmtune.llm.base import Tokenizer
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor
    from mmtune.recipe import Recipe
    from mmtune.serve.engine import Engine


Experts = Sequence[Spec] | Literal["of_run"]
"""Experts that read the media too, as ["ocr"]; "of_run" for those that the recipe of the run names."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A run with its parts.

    Once it has been talked with, the branches of `model` take features that the conversation keeps, not pixels; to
    compute with the model and to talk, load the run twice.
    """

    folder: Path
    model: MultimodalModel
    processor: Processor
    recipe: Recipe
    info: run_info.RunInfo
    """What the recipe says about chatting."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the language model."""
        return self.processor.tokenizer

    def chat(
        self,
        system: str | None = None,
        settings: Settings | None = None,
        experts: Experts = (),
    ) -> Conversation:
        """A new conversation.

        Args:
            system: text of a system turn.
            settings: how answers are drawn; the recipe's own when none are given.
            experts: experts that read the media too.

        Raises:
            ConfigError: an expert that there is not.
        """
        return _conversation(self.info, self._engine, system, settings, experts)

    def ask(self, text: str, **more: Any) -> Answer:
        """One question in a conversation of its own.

        Args:
            more: image=, video=, audio= and points= of `Conversation.ask`; max_tokens=, temperature= and seed= of
                `Settings`.

        Raises:
            UsageError: an argument of another name, and what `Conversation.ask` and `Settings.change` refuse.
        """
        talk = self.chat()
        media = {name: more.pop(name) for name in KINDS if name in more}
        for name, value in more.items():
            if name not in vars(talk.settings):
                known = ", ".join(f"{one}=" for one in (*KINDS, *vars(talk.settings)))
                raise UsageError(f"ask({name}=...)", known, "chat(system=..., experts=...) for a conversation")
            talk.settings.change(name, value)
        return talk.ask(text, **media)

    def __repr__(self) -> str:
        return f"<Loaded {self.folder}: model, processor, tokenizer, recipe, plan, chat(), ask()>"

    @cached_property
    def _engine(self) -> Engine:
        from mmtune.serve.engine import Engine

        return Engine(self.folder, self.model, self.processor, self.recipe.chat.top_p)


def load(run: Path | str | None = None, device: str = "auto", allow_code: Sequence[str] = ()) -> Loaded:
    """Read a run: `run = mmtune.load("runs/one")`, then `run.model`, `run.processor`, `run.recipe`, `run.ask("...")`.

    Args:
        run: run folder; none takes the small model inside the package.
        device: auto, cpu, cuda, ...
        allow_code: classes outside mmtune that the run may import, see `mmtune.registry.allow`.

    Raises:
        MmtuneError: whatever reading the run raises.
    """
    registry.allow(allow_code)
    info = run_info.RunInfo.read(run_info.folder_of(run), device=device)
    return Loaded(info.run, *info.parts(), info)


def chat(
    run: Path | str | None = None,
    system: str | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    experts: Experts = (),
    allow_code: Sequence[str] = (),
) -> Conversation:
    """A conversation with a run: `talk = mmtune.chat("runs/one")`, then `talk.ask("What is this?", image="a.png")`.

    Args:
        run: run folder; none takes the small model inside the package.
        system: text of a system turn.
        device: auto, cpu, cuda, ...
        settings: how answers are drawn; the recipe's own when none are given.
        experts: experts that read the media too.
        allow_code: classes outside mmtune that the run may import, see `mmtune.registry.allow`.

    Raises:
        MmtuneError: whatever reading the run raises, or an expert that there is not.
    """
    registry.allow(allow_code)
    info = run_info.RunInfo.read(run_info.folder_of(run), device=device)
    return _conversation(info, None, system, settings, experts)


def _conversation(
    info: run_info.RunInfo, engine: Engine | None, system: str | None, settings: Settings | None, experts: Experts
) -> Conversation:
    settings = settings or Settings(max_tokens=info.max_tokens, temperature=info.temperature)
    of_run = experts == "of_run"
    panel = Panel(() if of_run else experts, of_run=info.experts if of_run else (), limits=info.limits)
    if info.experts and not experts:
        say(f"(experts that the run names are off: {brief(info.experts)}; experts='of_run' turns them on)")
    return Conversation(engine or info.load(), system, settings, panel)
