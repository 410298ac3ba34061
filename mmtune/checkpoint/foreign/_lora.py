"""A language model with what tuners added folded into its matrices, for layouts that have no place for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtune import registry
from mmtune.checkpoint.foreign.base import Opened
from mmtune.errors import CheckpointError


def folded(run: Opened) -> dict[str, Tensor]:
    """The state of `llm.model` under the names it has without tuners.

    Every layer that can say what it adds to its matrix (LoRA and its kin do) is folded in; a plain weight that was
    opened is taken as it is.

    Raises:
        CheckpointError: tensors of a tuner that cannot be folded in, listed.
    """
    model: nn.Module = run.model.llm.model
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not (hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")):
            continue
        own = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        for key in own:
            del state[key]
        for key, value in own.items():
            if key.startswith(f"{name}.base_layer."):
                state[f"{name}.{key.removeprefix(f'{name}.base_layer.')}"] = value
        weight = state[f"{name}.weight"]
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter).to(weight)
        state[f"{name}.weight"] = weight
    with torch.device("meta"):
        section = run.recipe.model.llm
        plain = registry.find("llm", section.name)(section).model.state_dict()
    extra = sorted(state.keys() - plain.keys())
    # what a tuner keeps beside the model itself, such as adapter prompts
    inside = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    beside = [name for name, tensor in run.model.llm.state_dict(keep_vars=True).items() if id(tensor) not in inside]
    if extra or beside:
        raise CheckpointError(
            f"a language model tuned by {', '.join(tuner.name for tuner in run.recipe.model.tuners)}, which leaves "
            + ", ".join([*extra, *beside][:8]),
            "a plain language model, or one whose tuners can be folded in (lora)",
            "export to the layout that belongs to the tuner",
        )
    return {name: tensor.detach() for name, tensor in state.items()}
