"""Every method of the `peft` package that changes a model in place, by its own name: lora, ia3, vera, oft, glora ...

    tuners:
      - {name: hf_peft, method: lora, r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}

Options are those of the method's own config class and are checked against it; nothing of `peft` is written again, and
only the language model is touched. Most methods begin as the model was; a few of peft's defaults do not (fourierft
wants init_weights: true).

Not offered: methods that put prompts around the text, which `peft` does outside the model; adalora, whose budget has
to be moved in every training step; poly and xlora, which want a task or trained adapters with every call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ConfigDict, model_validator

from mmtune.errors import ModelError
from mmtune.llm.base import LLM
from mmtune.registry import nearest
from mmtune.tuners.base import Tuner, TunerConfig

_OURS = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"}
"""Options of a peft config that follow from the place where the model stands."""
_REFUSED = {"adalora", "adaption_prompt", "cartridge", "poly", "shadow", "xlora"}
"""Methods that need more of their surroundings than a model, see above."""


class Config(TunerConfig):
    """Besides `method`, every option of the method's peft config."""

    model_config = ConfigDict(extra="allow")

    name: str = "hf_peft"
    method: str
    """Name of the method as peft spells it, in small letters: lora, ia3, vera, boft, oft, ..."""
    adapter: str = "default"
    """Name of the adapter inside the parameter names; two tuners of one model need two names."""

    @model_validator(mode="after")
    def _known(self) -> Config:
        known = methods()
        if self.method not in known:
            raise ValueError(f"method {self.method!r} is not one of {', '.join(nearest(self.method, sorted(known)))}")
        kind = known[self.method]
        fields = {field.name for field in dataclasses.fields(kind) if field.init} - _OURS
        strange = sorted(set(self.options) - fields)
        if strange:
            listed = ", ".join(nearest(strange[0], sorted(fields)))
            raise ValueError(f"{self.method} has no option {', '.join(strange)}; it has {listed}")
        try:
            kind(**self.options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.method}: {error}") from error
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the config class of peft."""
        return dict(self.model_extra or {})


def methods() -> dict[str, type]:
    """Name of every method offered here to its peft config class."""
    from peft import PromptLearningConfig

    found = {}
    for kind, (config, tuner) in _table().items():
        if tuner is not None and kind not in _REFUSED and not issubclass(config, PromptLearningConfig):
            found[kind] = config
    return found


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

    def apply(self, llm: LLM) -> list[str]:
        """Raises ModelError when peft refuses, or finds nothing to change."""
        config = self.config
        model = getattr(llm, "model", None)
        if model is None:
            raise ModelError(
                seen=f"hf_peft on {type(llm).__name__}", expected="a language model of transformers (llm: hf)"
            )
        before = {id(parameter) for parameter in llm.parameters() if parameter.requires_grad}
        try:
            kind, change = _table()[config.method]
            change(model, kind(**config.options), adapter_name=config.adapter)
        except Exception as error:  # peft raises ValueError, TypeError, NotImplementedError and others
            raise ModelError(
                seen=f"peft refuses {config.method}: {error}",
                expected="options that fit the language model",
                hint="look at target_modules; the names are those of llm.model.named_modules()",
            ) from error
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
