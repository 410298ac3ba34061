"""Tuned layers of `peft` back into plain ones, by each method's own merge, and compared before anybody uses the result.

A layer is merged on a copy, so that the model stays as it is: layers inside out where tuners stand on each other, then
`merge` of the method itself, and what is left is the plain layer. Whether it computes what the tuned one did is tried
on random inputs, since some methods merge approximately, and some say nothing about what they can't merge.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

INPUTS = 4
"""Rows of random input that a merged layer is tried on."""
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between a tuned layer and the merged one, as a part of the largest output."""


@dataclass
class Merged:
    """A model without its tuned layers."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """Its tensors, by the names it has without tuners."""
    refused: list[str] = field(default_factory=list)
    """A line for each layer that cannot be merged, or computes something else when it is."""


def merged(model: nn.Module) -> Merged:
    """The tensors of a model with every tuned layer merged; the model itself is not changed.

    A layer on the meta device is merged without being tried.
    """
    result, inside = Merged(), ""
    state = model.state_dict()
    for name, module in model.named_modules():
        if (inside and name.startswith(inside)) or not _tuned(module):
            continue
        inside = f"{name}."
        state = {key: tensor for key, tensor in state.items() if not key.startswith(inside)}
        try:
            plain = _plain(copy.deepcopy(module))
        except Exception as error:  # peft raises ValueError, NotImplementedError, TypeError, AttributeError and others
            result.refused.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        state |= {f"{inside}{key}": tensor for key, tensor in plain.state_dict().items()}
        if wrong := _tried(module, plain):
            result.refused.append(f"{name}: {wrong}")
    result.state = {name: tensor.detach() for name, tensor in state.items()}
    return result


def _tuned(module: nn.Module) -> bool:
    """Whether a method of peft stands around this module."""
    return hasattr(module, "unload_and_optionally_merge_module") or (
        hasattr(module, "base_layer") and hasattr(module, "merge")
    )


def _plain(module: Any) -> nn.Module:
    """A copy of a tuned layer without its tuners. Raises whatever the method raises."""
    while _tuned(module):
        inner = getattr(module, "base_layer", None)
        if inner is not None and _tuned(inner):
            module.base_layer = _plain(inner)
        if hasattr(module, "unload_and_optionally_merge_module"):
            module = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            with torch.no_grad():
                module.merge(safe_merge=False)
            module = module.get_base_layer()
    return module


def _tried(tuned: nn.Module, plain: nn.Module) -> str:
    """What is wrong with a merged layer, if anything is."""
    weight = getattr(plain, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta:
        return ""
    generator = torch.Generator().manual_seed(0)
    if isinstance(plain, nn.Embedding):
        given = torch.arange(weight.shape[0], device=weight.device)[None]
    else:
        drawn = torch.randn(1, INPUTS, weight.shape[-1], generator=generator)
        given = drawn.to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            before, after = tuned(given).float(), plain(given).float()
        except Exception as error:
            return f"cannot be tried: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not bool(after.isfinite().all()):
        return "merged, it gives numbers that are not finite"
    off, scale = float((before - after).abs().max()), max(1.0, float(before.abs().max()))
    if off > scale * ROUNDING.get(weight.dtype, 1e-5):
        return f"merged, its output is off by {off:.2g} of {scale:.2g}"
    return ""
