"""Biases, scales and norms of a language model: the tuning of LLaMA-Adapter V2.

Three forms, where W is frozen, b starts at 0 and s at 1:

    output   s * (W x + b), s of output width: the paper (arXiv 2304.15010, section 3.1)
    input    W (s * x) + b, s of input width: the released 65B code
    bias     W x + b: the released 7B weights, on all matrices but those of keys and values

A fresh model computes what it did, to the bit: b and s are separate operations, which zeros and ones pass through.
Linear layers keep their names and get `bias` and `scale` beside `weight`; where a model has a bias already it is opened
instead. Norms keep their names and are opened. What trains is held in float32, whatever the base is held in.

Works on any decoder of transformers whose layers are made of `nn.Linear`. `peft` keeps a closed list of method names
(`peft.utils.peft_types.PeftType`), so this method cannot be registered with it; `hf_peft` may follow this tuner in a
recipe, and then wraps the tuned layers.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.config import Words
from mmtune.errors import ModelError
from mmtune.llm.base import LLM
from mmtune.tuners.base import Tuner, TunerConfig

Form = Literal["output", "input", "bias"]


class Config(TunerConfig):
    name: str = "bias_norm"
    form: Form = "output"
    """output: s * (W x + b), the paper; input: W (s * x) + b, the 65B code; bias: W x + b."""
    bias: bool = True
    """Whether there is b; without it a bias of the model itself stays as it is."""
    linears: Words = ("*",)
    """Globs over the names of linear layers inside a decoder layer, as q_proj or mlp.*; [] leaves them alone."""
    layers: tuple[int, ...] | None = None
    """Decoder layers, 0 is the lowest and -1 the uppermost; null takes all."""
    norms: Literal["none", "layers", "all"] = "all"
    """Norms that are opened: those of the chosen layers, or with them the one after the last layer."""

    @model_validator(mode="after")
    def _something(self) -> Config:
        if self.linears and self.form == "bias" and not self.bias:
            raise ValueError("form: bias without a bias changes nothing; for norms alone say `linears: []`")
        return self


class TunedLinear(nn.Linear):
    """A linear layer with what this tuner adds; keys `weight`, `bias` and, unless the form is `bias`, `scale`.

    `added` names the parameters that train.
    """

    def __init__(self, base: nn.Linear, form: Form, bias: bool = True) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=False)
        self.form = form
        self.weight = base.weight
        placement: dict[str, Any] = {"device": base.weight.device, "dtype": torch.float32}
        # A bias of the model itself stays inside the product, as rounding differs when it is added after it.
        self.fused = base.bias is not None
        if base.bias is not None:
            self.bias = _opened(base.bias) if bias else base.bias
        elif bias:
            self.bias = nn.Parameter(torch.zeros(base.out_features, **placement))
        self.added = ("bias",) * bias + ("scale",) * (form != "bias")
        self.scale: nn.Parameter | None = None
        if form != "bias":
            self.scale = nn.Parameter(
                torch.ones(base.in_features if form == "input" else base.out_features, **placement)
            )
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """[...,in] -> [...,out]"""
        if self.scale is not None and self.form == "input":
            x = x * self.scale.to(x.dtype)
        if self.fused:
            y = F.linear(x, self.weight, self.bias.to(self.weight.dtype))
        else:
            y = F.linear(x, self.weight)
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        if self.scale is not None and self.form == "output":
            y = y * self.scale.to(y.dtype)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}"


class BiasNorm(Tuner):
    """Puts `TunedLinear` in the place of linear layers and opens norms."""

    Config = Config

    def apply(self, llm: LLM) -> list[str]:
        """Raises ModelError when a layer does not exist, a glob matches nothing, or a linear layer is not plain."""
        config = self.config
        layers = _layers(llm)
        chosen = _chosen(config.layers, layers)
        names: list[str] = []
        if config.linears:
            names += _tune(llm, chosen, config)
        if config.norms != "none":
            names += _open_norms(llm, chosen, layers if config.norms == "all" else None)
        if not names:
            raise ModelError(
                seen="bias_norm without linears and without norms", expected="something to tune", hint="set `norms`"
            )
        return names


def _layers(llm: LLM) -> list[str]:
    """Full name of every decoder layer, lowest first: what holds an attention module."""
    names = {id(module): name for name, module in llm.named_modules()}
    return [names[id(site)].rpartition(".")[0] for site in llm.attention_modules()]


def _chosen(wanted: tuple[int, ...] | None, layers: list[str]) -> list[str]:
    if wanted is None:
        return layers
    strange = [layer for layer in wanted if not -len(layers) <= layer < len(layers)]
    if strange or not wanted:
        raise ModelError(
            seen=f"bias_norm with layers {list(wanted)}",
            expected=f"numbers from 0 to {len(layers) - 1}, or from -{len(layers)} to -1",
        )
    indexes = sorted({layer % len(layers) for layer in wanted})
    return [layers[index] for index in indexes]


def _tune(llm: LLM, layers: list[str], config: Config) -> list[str]:
    globs = config.linears
    names, used = [], set()
    for layer in layers:
        found = {
            name: module for name, module in llm.get_submodule(layer).named_modules() if isinstance(module, nn.Linear)
        }
        strange = [name for name, module in found.items() if type(module) is not nn.Linear or "base_layer" in name]
        if strange:
            raise ModelError(
                seen=f"{layer}.{strange[0]} is a {type(found[strange[0]]).__name__} that something made before",
                expected="plain linear layers",
                hint="list bias_norm before other tuners; a quantized base cannot be tuned this way",
            )
        for name, module in found.items():
            hits = {glob for glob in globs if fnmatchcase(name, glob) or fnmatchcase(name.rpartition(".")[2], glob)}
            used |= hits
            if hits:
                tuned = TunedLinear(module, config.form, config.bias)
                llm.set_submodule(f"{layer}.{name}", tuned)
                names += [f"{layer}.{name}.{parameter}" for parameter in tuned.added]
    empty = [glob for glob in globs if glob not in used]
    if empty:
        known = [name for name, module in llm.get_submodule(layers[0]).named_modules() if isinstance(module, nn.Linear)]
        raise ModelError(
            seen=f"bias_norm: no linear layer matches {', '.join(empty)}",
            expected=f"globs over {', '.join(known) or 'nn.Linear, of which this model has none'}",
        )
    return names


def _open_norms(llm: LLM, layers: list[str], every: list[str] | None) -> list[str]:
    """Open the norms inside `layers`, and with `every` those beside them: in the decoder, but in no layer."""
    inside = {f"{layer}.{name}": m for layer in layers for name, m in llm.get_submodule(layer).named_modules()}
    if every is not None:
        decoder = every[0].rpartition(".")[0].rpartition(".")[0]
        around = llm.get_submodule(decoder).named_children()
        inside |= {f"{decoder}.{name}" if decoder else name: module for name, module in around}
    names = []
    for name, module in inside.items():
        if not _is_norm(module):
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, _opened(parameter))
            names.append(f"{name}.{key}")
        module.register_forward_hook(_same_type)
    if not names:
        raise ModelError(
            seen=f"no norm in {', '.join(layers[:2])}", expected="norms with parameters", hint="set `norms: none`"
        )
    return names


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _opened(parameter: nn.Parameter) -> nn.Parameter:
    """The same parameter in float32: itself when it is."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _same_type(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    """A float32 weight would turn what a half-precision norm gives to float32, which the next frozen matrix refuses."""
    return out.to(given[0].dtype)
