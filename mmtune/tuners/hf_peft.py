"""Every method of the `peft` package by its own name: lora, ia3, vera, oft, glora, adalora, prefix_tuning ...

    tuners:
      - {name: hf_peft, method: lora, r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}

Options are those of the method's own config class and are checked against it; nothing of `peft` is written again, and
only the language model is touched. Most methods begin as the model was; a few of peft's defaults do not (fourierft
wants init_weights: true, c3a an init_weights that is not true, unilora and vblora begin near it), and learned text
before the text (prompt_tuning, p_tuning, prefix_tuning) cannot.

adalora moves its budget in every step, see `_budget`; its total_step is the schedule's. Text before the text is put
there as keys and values, see `_soft`.

Not offered, by method: adaption_prompt, which is the tuner `prompts` here, with a gate for each head and on any
decoder; cpt, multitask_prompt_tuning and poly, which ask with every call for what a batch does not say; xlora, which
asks for trained adapters; cartridge and shadow, which are made in ways of their own. By option: what asks for data, for
places of tokens or for a loss of its own, see `_REFUSED_OPTIONS`.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from pydantic import ConfigDict, model_validator

from mmtune.errors import ModelError
from mmtune.llm.base import LLM
from mmtune.registry import nearest, suggest
from mmtune.tuners._budget import UNKNOWN, Budget
from mmtune.tuners._prefix import PrefixEncoder
from mmtune.tuners.base import Tuner, TunerConfig

_OURS = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"}
_OURS |= {"peft_version", "total_step", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"}
"""Options of a peft config that follow from the place where the model stands, or from the schedule."""
_PREFIX_METHODS = {"prompt_tuning": "PromptEmbedding", "p_tuning": "PromptEncoder", "prefix_tuning": "PrefixEncoder"}
"""Methods that put learned text before the text, and peft's module for it."""
_REFUSED = {
    "adaption_prompt": "the tuner `prompts` is this method, for any decoder and with a gate for each head",
    "cartridge": "it begins as the keys and values of a text, which a command of its own makes",
    "cpt": "it asks with every call which tokens are examples; prompt_tuning does not",
    "multitask_prompt_tuning": "it asks with every call for the number of a task; prompt_tuning does not",
    "poly": "it asks with every call for the number of a task; lora does not",
    "shadow": "it runs a second network beside the model, which decoding with a cache does not know",
    "xlora": "it mixes adapters that were trained before",
}
"""Methods that need more of their surroundings than there is here, with what to do instead."""
_DATA = ("eva", "corda", "lora_ga", "loftq")
_REFUSED_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {
        "alora_invocation_tokens": "places of tokens with every call",
        "arrow_config": "adapters that were trained before",
        "eva_config": "data before training begins",
        "corda_config": "data before training begins",
        "lora_ga_config": "data before training begins",
        "loftq_config": "a base that is quantized",
        "kasa_config": "a loss of its own",
        "monteclora_config": "a loss of its own",
        "layer_replication": "another number of layers",
        "megatron_config": "a model of Megatron",
    },
    "adamss": {"use_asa": "freezing and opening parameters while training goes on"},
}
"""Options that would be without effect, or wrong, without what they ask for."""


class Config(TunerConfig):
    """Besides `method`, every option of the method's peft config."""

    model_config = ConfigDict(extra="allow")

    name: str = "hf_peft"
    method: str
    """Name of the method as peft spells it, in small letters: lora, ia3, vera, boft, oft, ..."""
    adapter: str = "default"
    """Name of the adapter inside the parameter names; two tuners of one model need two names."""

    @classmethod
    def values_of(cls, field: str) -> list[str]:
        return sorted(methods()) if field == "method" else []

    @model_validator(mode="after")
    def _known(self) -> Config:
        known = methods()
        if self.method in _REFUSED:
            raise ValueError(f"method {self.method!r} is not offered: {_REFUSED[self.method]}")
        if self.method not in known:
            listed = suggest(self.method, sorted(known), "tuners hf_peft")
            raise ValueError(f"method {self.method!r} is not one of {listed}")
        fields = {field.name for field in dataclasses.fields(known[self.method]) if field.init} - _OURS
        strange = sorted(set(self.options) - fields)
        if strange:
            listed = ", ".join(nearest(strange[0], sorted(fields)))
            raise ValueError(f"{self.method} has no option {', '.join(strange)}; it has {listed}")
        if wrong := _unfit(self.method, self.options):
            raise ValueError(f"{self.method}: {wrong}")
        try:
            settings(self)
        except (TypeError, ValueError, ImportError) as error:
            raise ValueError(f"{self.method}: {error}") from error
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the config class of peft."""
        return dict(self.model_extra or {})


def _unfit(method: str, options: dict[str, Any]) -> str | None:
    """What is wrong with options that peft itself takes."""
    for name, wants in _REFUSED_OPTIONS.get(method, {}).items():
        if options.get(name):
            return f"{name} is not offered: it asks for {wants}"
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_DATA):
        return f"init_lora_weights: {start} is not offered: it asks for data, or a quantized base, before training"
    if method in _PREFIX_METHODS and not options.get("num_virtual_tokens"):
        return "num_virtual_tokens is missing"
    if method == "adalora" and options.get("target_r", 8) >= options.get("init_r", 12):
        return "target_r must be smaller than init_r, or no rank would ever be given up"
    return None


def methods() -> dict[str, type]:
    """Name of every method offered here to its peft config class."""
    from peft import PromptLearningConfig

    found = {}
    for kind, (config, tuner) in _table().items():
        offered = kind in _PREFIX_METHODS if issubclass(config, PromptLearningConfig) else tuner is not None
        if offered and kind not in _REFUSED:
            found[kind] = config
    return found


def settings(config: Config) -> Any:
    """The method's own config. Raises what peft raises."""
    more = {"total_step": UNKNOWN} if config.method == "adalora" else {}
    return _table()[config.method][0](**config.options, **more)


def _table() -> dict[str, tuple[type, Any]]:
    """Method name to its config class, and to the class that changes a model, if there is one."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return {
        kind.value.lower(): (config, PEFT_TYPE_TO_TUNER_MAPPING.get(kind))
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }


class HfPeft(Tuner):
    """Hands the model to peft and lists what it added or opened."""

    Config = Config
    config: Config

    def apply(self, llm: LLM) -> list[str]:
        """Raises ModelError when peft refuses, or finds nothing to change."""
        config = self.config
        model = llm.model
        if model is None:
            raise ModelError(
                seen=f"hf_peft on {type(llm).__name__}, which has no model of transformers",
                expected="one that has (llm: hf)",
            )
        if config.method in _PREFIX_METHODS:
            return _add_prefix(llm, config)
        before = {id(parameter) for parameter in llm.parameters() if parameter.requires_grad}
        try:
            with _quiet():
                made = _table()[config.method][1](model, settings(config), adapter_name=config.adapter)
        except Exception as error:  # peft raises ValueError, TypeError, NotImplementedError and others
            empty = any(parameter.is_meta for parameter in model.parameters())
            raise ModelError(
                seen=f"peft refuses {config.method}: {error}",
                expected="options that fit the language model",
                hint="this method looks at the weights, so it cannot be built without them"
                if empty and "meta" in str(error)
                else "look at target_modules; the names are those of llm.model.named_modules()",
            ) from error
        if config.method == "adalora":
            llm.step_callbacks[f"adalora.{config.adapter}"] = Budget(made, config.adapter)
        opened = []
        for name, parameter in llm.named_parameters():
            if id(parameter) in before:
                # peft freezes whatever is not its own; what another tuner opened stays open.
                parameter.requires_grad_(True)
            elif parameter.requires_grad:
                opened.append(name)
        if not opened:
            raise ModelError(
                seen=f"{config.method} added nothing to {type(model).__name__}", expected="at least one new parameter"
            )
        return opened


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars of peft, and without its warning of a second adapter, which is meant where it is made."""
    with warnings.catch_warnings(record=True) as told, redirect_stderr(io.StringIO()):
        yield
    for one in told:
        if not str(one.message).startswith("Already found a `peft_config`"):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _add_prefix(llm: LLM, config: Config) -> list[str]:
    """Put virtual tokens before every segment of `llm`."""
    import peft

    llm.require("prefix", f"hf_peft with {config.method}")
    if llm.prefix is not None:
        raise ModelError(seen=f"{config.method} after another method of its kind", expected="one text before the text")
    peft_config = settings(config)
    direct = config.method == "prefix_tuning"
    peft_config.token_dim = llm.kv_heads * llm.head_width if direct else llm.width
    peft_config.num_layers, peft_config.num_attention_heads = llm.depth, llm.kv_heads
    peft_config.num_transformer_submodules = 1
    if getattr(peft_config, "encoder_hidden_size", 1) is None:
        peft_config.encoder_hidden_size = peft_config.token_dim
    words = (llm.model.get_input_embeddings(),) if config.method == "prompt_tuning" else ()
    with torch.device(next(llm.parameters()).device):
        encoder = getattr(peft, _PREFIX_METHODS[config.method])(peft_config, *words)
    llm.prefix = PrefixEncoder(encoder.float(), peft_config.num_virtual_tokens, direct).requires_grad_(False)
    return [f"prefix.{name}" for name, _ in llm.prefix.named_parameters()]
