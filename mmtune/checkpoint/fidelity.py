"""An export counts only after it was read back, by our own importer of the layout and by the library that owns the
layout, and gave the numbers of the run.

An export that differs is refused, and the error names the settings that differ, because a layout drops silently what
it has no field for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune import config, dtypes
from mmtune.checkpoint import probe, store
from mmtune.checkpoint.build_run import Made
from mmtune.checkpoint.foreign.base import Foreign, Opened, ReadBack, tuner_name
from mmtune.checkpoint.probe import Answer, Question
from mmtune.errors import CheckpointError, MmtuneError
from mmtune.types import Example, Kind, Media

SHALLOW = 8
"""Layers up to which the tolerance is that of the dtype; it grows with deeper models, as rounding errors do."""
TEXT = "USER: what is this? a red circle"

Make = Callable[[], Any]
"""Makes a run (`Made`), or an encoder with its weights."""
Read = Callable[[Foreign, ReadBack, Path], tuple[dict[str, Any], Make]]
"""Reads an export: gives its recipe as a tree, and the function that builds it. From `convert`."""


@dataclass
class Comparison:
    """Answers of the run itself, computed before anything is written."""

    layout: str
    dtype: torch.dtype
    """Dtype of the export."""
    layers: int
    answers: list[tuple[Question, Answer]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the layout leaves out without changing the model: reported to the user."""
    worst: float = 0.0
    """Largest difference so far, as a part of the largest value."""

    @property
    def tolerance(self) -> float:
        return dtypes.ROUNDING[self.dtype] * max(1.0, self.layers / SHALLOW)

    def report(self) -> list[str]:
        """Lines for the person who exports."""
        how = f"the same to {self.worst:.1g} of the largest value" if self.worst else "the same to the last digit"
        how = f"read back and compared with the run: {how}"
        return [*dict.fromkeys(self.notes), f"written in {dtypes.name_of(self.dtype)}; {how}"]

    def close(self, what: str, ours: Tensor, theirs: Tensor, settings: str = "") -> None:
        """Raises CheckpointError for two tensors that differ by more than the type of the export explains."""
        if ours.shape != theirs.shape:
            raise self._other(f"{what} is {list(ours.shape)} in the run and {list(theirs.shape)} there", settings)
        if not ours.numel():
            return
        if not bool(ours.isfinite().all()):
            raise CheckpointError(
                f"{self.layout}: {what} of the run itself are not finite",
                "a run that works, to compare the export with it",
                "look at its losses; train it again, or from an earlier state",
            )
        off, scale = float((ours.float() - theirs.float()).abs().max()), max(1.0, float(ours.float().abs().max()))
        if not off <= scale * self.tolerance:  # also true where theirs are NaN
            raise self._other(f"{what} is off by {off:.2g} of {scale:.2g}", settings)
        self.worst = max(self.worst, off / scale)

    def _other(self, what: str, settings: str = "") -> CheckpointError:
        return CheckpointError(
            f"{self.layout}: read back, the export is another model: {what}"
            + (f"; different settings: {settings}" if settings else ""),
            f"the model of the run, to {self.tolerance:.0e}",
            "the layout has no field for these settings; keep the run folder, or train without them",
        )

    def pictures(self) -> Iterator[tuple[Media, Example, Tensor]]:
        for question, answer in self.answers:
            if question.kind == "image" and question.media is not None:
                yield question.media, answer.example, answer.logits


def check(comparison: Comparison, foreign: Foreign, run: Opened, folder: Path, scratch: Path, read: Read) -> None:
    """Read an export back and compare it with the run.

    The run answers first and its weights are freed, so that memory for one model is enough.

    Raises:
        CheckpointError: the export cannot be read, or is another model.
    """
    backs = foreign.read_back(run, folder, scratch)
    heard: dict[str, Heard] = {}
    if foreign.imports == "encoder":
        heard = {branch: _hear(run.model.branches[branch].encoder) for back in backs for branch in back.branches}
    else:
        apart = {branch for back in backs for branch in back.apart}
        questions = probe.questions(run.model)
        comparison.answers = [(one, probe.ask(run.model, one, one.branch, one.branch in apart)) for one in questions]
    run.model.to("meta")
    for back in backs:
        tree: dict[str, Any] = {}
        try:
            tree, make = read(foreign, back, scratch)
            made = make()
        except MmtuneError as error:
            settings = _settings_unlike(run, back, tree)
            raise CheckpointError(
                f"{comparison.layout}: the export cannot be read back: {error.seen}"
                + (f"; different settings: {settings}" if settings else ""),
                error.expected,
                "the layout has no field for these settings; keep the run folder, or train without them"
                if settings
                else error.hint or "keep the run folder; the layout cannot hold this run",
            ) from error
        if isinstance(made, Made):
            _whole(comparison, run, back, made)
        else:
            for branch in back.branches:
                _encoder(comparison, run, branch, made, heard[branch])
        del made, make
    foreign.outside(folder, comparison)


Heard = dict[Kind, tuple[Tensor, Tensor]]
"""Kind of item to the prepared probe and the encoder's tokens for it."""


def _hear(encoder: Any) -> Heard:
    return {kind: probe.features(encoder, probe.item(encoder, kind)) for kind in encoder.kinds}


def _encoder(comparison: Comparison, run: Opened, branch: str, made: Any, heard: Heard) -> None:
    """Compare an encoder that was read back alone."""
    settings = _unlike(run.recipe.model.branches[branch].encoder, made.config)
    for kind, (item, tokens) in heard.items():
        if kind not in made.kinds:
            raise comparison._other(f"branch {branch} takes no {kind}", settings)
        again, seen = probe.features(made, probe.item(run.model.branches[branch].encoder, kind))
        comparison.close(f"the input of the encoder of {branch} for a probe ({kind})", item, again, settings)
        comparison.close(f"the features of {branch} for a probe ({kind})", tokens, seen, settings)


def _whole(comparison: Comparison, run: Opened, back: ReadBack, made: Made) -> None:
    """Compare a run that was read back whole."""
    model, recipe = made.model, made.recipe
    _say_prompt(comparison, run, back, recipe)
    _same_words(comparison, run.model, model)
    for question, answer in comparison.answers:
        if question.branch is None:
            settings = _words_unlike(run, recipe)
            _compare(comparison, "the logits of a text", answer, probe.ask(model, question, None), settings)
            continue
        there = back.branches.get(question.branch, question.branch)
        if there not in model.branches:
            raise comparison._other(f"it has no branch {question.branch}")
        settings = _parts_unlike(run.recipe.model.branches[question.branch], recipe.model.branches[there])
        if question.branch in back.apart:
            again = probe.ask(model, question, there, apart=True)
            _compare(comparison, f"the logits behind the encoder of {question.branch}", answer, again, settings)
            continue
        if question.kind not in model.branches[there].kinds:
            comparison.notes.append(
                f"branch {question.branch}: {question.kind} is not part of the layout and is left out"
            )
            continue
        what = f"branch {question.branch} ({question.kind})"
        mine = run.model.branches[question.branch].encoder.sampling(question.kind)
        if mine != (other := model.branches[there].encoder.sampling(question.kind)):
            raise comparison._other(f"{what} takes {mine} in the run and {other} there", settings)
        again = probe.ask(model, question, there)
        if answer.item is not None and again.item is not None:
            comparison.close(f"{what}: the input of the encoder for a probe", answer.item, again.item, settings)
        if answer.seen is not None and again.seen is not None:
            comparison.close(f"{what}: the features of a probe", answer.seen, again.seen, settings)
        _compare(comparison, f"{what}: the logits for a probe", answer, again, settings)


def _compare(comparison: Comparison, what: str, ours: Answer, theirs: Answer, settings: str) -> None:
    if len(ours.example) != len(theirs.example):
        raise comparison._other(
            f"{what}: {len(ours.example)} tokens in the run and {len(theirs.example)} there", settings
        )
    words = min(ours.logits.shape[1], theirs.logits.shape[1])  # the export may have a token more, for pictures
    comparison.close(what, ours.logits[:, :words], theirs.logits[:, :words], settings)


def _say_prompt(comparison: Comparison, run: Opened, back: ReadBack, recipe: Any) -> None:
    mine, there = run.recipe.chat.prompt, back.prompt or recipe.chat.prompt
    if mine != there:
        comparison.notes.append(f"the run talks with the prompt `{mine}`, readers of this layout with `{there}`")
    else:
        comparison.notes.append(f"the prompt is `{mine}`")
    comparison.notes += back.notes


def _same_words(comparison: Comparison, ours: Any, theirs: Any) -> None:
    """Both tokenizers give the same ids."""
    pairs = [(one.llm.tokenizer.encode(TEXT), one.llm.tokenizer.bos, one.llm.tokenizer.eos) for one in (ours, theirs)]
    if pairs[0] != pairs[1]:
        raise comparison._other(
            f"the tokenizer gives {pairs[0]} in the run and {pairs[1]} there for {TEXT!r}, begin and end"
        )


def _settings_unlike(run: Opened, back: ReadBack, tree: dict[str, Any]) -> str:
    """The settings in which the branches of a run differ from those of a tree that was read back."""
    found = []
    for branch, section in run.recipe.model.branches.items():
        if "encoder" in tree:
            parts = {"encoder": tree["encoder"]} if branch in back.branches else {}
        else:
            parts = (tree.get("model") or {}).get("branches", {}).get(back.branches.get(branch, branch), {})
        for part in sorted({"encoder", "connector"} & parts.keys()):
            ours, entry = getattr(section, part), parts[part]
            if entry.get("name") != ours.name:
                found.append(f"{part} {ours.name} (there {entry.get('name')})")
            elif settings := _unlike(ours, config.validate(type(ours), entry, part)):
                found.append(f"{part} {settings}")
    return "; ".join(found)


def _unlike(ours: Any, theirs: Any) -> str:
    """The settings in which two sections differ."""
    mine, there = (dict(probe.settings(one.model_dump(mode="json"))) for one in (ours, theirs))
    return ", ".join(
        f"{key}: {_short(mine.get(key))} (there {_short(there.get(key))})"
        for key in mine
        if mine.get(key) != there.get(key)
    )


def _parts_unlike(ours: Any, theirs: Any) -> str:
    found = {part: _unlike(getattr(ours, part), getattr(theirs, part)) for part in ("encoder", "connector")}
    return "; ".join(f"{part} {settings}" for part, settings in found.items() if settings)


def _words_unlike(run: Opened, there: Any) -> str:
    """Parts of the language model that a layout may have dropped: tuners, and weights that trained without one."""
    tuned = {name for names in run.model.tuned.values() for name in names}
    groups = store.groups_of(run.model, run.recipe)
    trained = [n for named in groups.values() for n, _ in named if n.startswith("llm.") and n not in tuned]
    lists = [", ".join(map(tuner_name, recipe.model.tuners)) or "none" for recipe in (run.recipe, there)]
    found = [f"tuners {lists[0]} (there {lists[1]})"] if lists[0] != lists[1] else []
    found += [f"trained {', '.join(trained[:4])}{', ...' if len(trained) > 4 else ''}"] if trained else []
    return "; ".join(found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
