"""Builds the other models of a recipe: runs that objectives ask, frozen, and able to read the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from mmtune.checkpoint import probe, store
from mmtune.dtypes import Precision
from mmtune.errors import ConfigError, MmtuneError
from mmtune.frozen_model import FrozenModel
from mmtune.model import Branch, MultimodalModel
from mmtune.other_models import OtherModel
from mmtune.recipe import Recipe
from mmtune.training.distributed import Runtime
from mmtune.training.estimate import size

_PRECISION: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class OtherModels:
    """Built and placed."""

    models: dict[str, FrozenModel]
    digests: dict[str, str]
    """SHA-256 of each, over all tensors as they are held: what a run is resumed with."""

    def digests_now(self) -> dict[str, str]:
        """The same, taken again."""
        return {name: store.digest(model.state_dict()) for name, model in self.models.items()}


def build(recipe: Recipe, trained: MultimodalModel, runtime: Runtime, say: Callable[[str], None]) -> OtherModels:
    """The models of the section `models`, on the device of the run. Every rank calls this.

    Args:
        trained: the model that the run trains, whose batches they will read.
        say: gets a line for each.

    Raises:
        ConfigError: one that reads text or media in another way.
        CheckpointError, ModelError: one that cannot be loaded.
    """
    models = {name: _placed(name, section, trained, runtime) for name, section in recipe.models.items()}
    for name, model in models.items():
        held = size(sum(tensor.nbytes for tensor in model.state_dict().values()))
        say(f"model     {name}: frozen, {held}, from {recipe.models[name].run}")
    others = OtherModels(models, {})
    others.digests.update(others.digests_now())
    return others


def _placed(name: str, section: OtherModel, trained: MultimodalModel, runtime: Runtime) -> FrozenModel:
    try:
        model, _, _ = store.load_run(section.run)
    except MmtuneError as error:
        error.seen = f"models.{name}: {error.seen}"
        error.hint = "; ".join(filter(None, [error.hint, f"models.{name}.run=FOLDER, where it is elsewhere by now"]))
        raise
    runtime.barrier()  # a rank whose disk is slow is waited for
    if wrong := list(_differences(trained, model)):
        raise ConfigError(
            f"models.{name}, the run {section.run}, cannot read what this run reads:\n  " + "\n  ".join(wrong),
            "the same tokenizer, and each branch of this run with the same preparation and tokens of media",
            "train both from the same parts; connectors, tuners and sizes of the language model may differ",
        )
    model.llm.step_callbacks.clear()  # of a tuner that has learned by now
    precision = runtime.precision if section.dtype is None else _PRECISION[section.dtype]
    runtime.parallelize(model, precision=precision)
    return FrozenModel(model, lambda: runtime.autocast(precision))


def _differences(trained: MultimodalModel, other: MultimodalModel) -> Iterator[str]:
    """Why batches made for one model are nothing for another, in words."""
    if trained.llm.tokenizer.fingerprint() != other.llm.tokenizer.fingerprint():
        yield "another tokenizer: the same id is another word"
    if trained.fusion.uses_placeholders != other.fusion.uses_placeholders:
        which = (
            "this run, and not in the other" if trained.fusion.uses_placeholders else "the other, and not in this run"
        )
        yield f"media take tokens in {which}"
    for name, branch in trained.branches.items():
        if name not in other.branches:
            yield f"no branch {name}; there are {', '.join(other.branches) or 'none'}"
            continue
        for kind in branch.kinds:
            if not _reads_alike(branch, other.branches[name], kind, trained.fusion.uses_placeholders):
                yield f"branch {name}: {kind} is prepared in another way, or has another number of tokens"


def _reads_alike(one: Branch, other: Branch, kind: probe.Kind, uses_placeholders: bool) -> bool:
    """Whether two branches ask the same of an item, make the same of it, and give it as many tokens."""
    if kind not in other.kinds:
        return False
    asked = [replace(branch.encoder.sampling(kind), seed=None) for branch in (one, other)]
    if asked[0] != asked[1]:
        return False
    item = probe.item(one.encoder, kind)
    made = [branch.encoder.prepare(item) for branch in (one, other)]
    if made[0].shape != made[1].shape or not torch.equal(*made):
        return False
    frames = range(1, max(one.encoder.max_frames, other.encoder.max_frames) + 1)
    tokens = [
        [branch.connector.num_tokens(made[0], branch.encoder), *map(branch.connector.tokens_out, frames)]
        for branch in (one, other)
    ]
    return not uses_placeholders or tokens[0] == tokens[1]
