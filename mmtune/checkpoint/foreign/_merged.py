"""A language model with its tuners merged into its matrices, for layouts that have no place for them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune import registry
from mmtune.checkpoint.foreign.base import Opened, tuner_name
from mmtune.errors import CheckpointError
from mmtune.tuners import _merge


def language_model(run: Opened) -> dict[str, Tensor]:
    """The state of `llm.model` under the names it has without tuners; every merged layer was tried against its own.

    Raises:
        CheckpointError: layers that cannot be merged, or compute something else when they are; tensors of a tuner that
            belong to no matrix, such as prompts, biases and scales. All are listed.
    """
    llm = run.model.llm
    if llm.model is None:
        raise CheckpointError(
            f"the language model `{run.recipe.model.llm.name}`, which has no model of transformers",
            "one that has (llm: hf): this layout is made of its tensors",
            "keep the run folder: `mmtune chat` and `mmtune eval` take it as it is",
        )
    done = _merge.merged(llm.model)
    tuners = ", ".join(tuner_name(one) for one in run.recipe.model.tuners) or "no tuner"
    if done.refused:
        more = f"\n  and {len(done.refused) - 4} more" if len(done.refused) > 4 else ""
        raise CheckpointError(
            f"a language model tuned by {tuners}, which cannot be merged into its matrices:\n  "
            + "\n  ".join(done.refused[:4])
            + more,
            "tuners that peft merges into the model exactly, such as lora, dora, loha or oft",
            "keep the run folder: `mmtune chat` and `mmtune eval` take it as it is",
        )
    with torch.device("meta"):
        section = run.recipe.model.llm
        plain = registry.find("llm", section.name)(section).model.state_dict()
    extra = sorted(done.state.keys() - plain.keys())
    # what a tuner keeps beside the model itself, such as adapter prompts
    inside = {id(tensor) for tensor in llm.model.state_dict(keep_vars=True).values()}
    beside = [name for name, tensor in llm.state_dict(keep_vars=True).items() if id(tensor) not in inside]
    if extra or beside:
        raise CheckpointError(
            f"a language model tuned by {tuners}, which leaves " + ", ".join([*extra, *beside][:8]),
            "a plain language model, or one whose tuners can be merged (lora)",
            "export to the layout that belongs to the tuner",
        )
    return done.state
