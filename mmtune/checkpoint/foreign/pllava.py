"""PLLaVA in the layout of its repositories: a LLaVA folder whose language model is wrapped by peft.

    language_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight
    language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight

Whole folders hold everything. What a training run without DeepSpeed saves, the projector and the LoRA pairs alone,
stands on the LLaVA folder it was tuned from (role `base`). The pairs stay pairs here: their scale at inference,
lora_alpha / rank, is chosen at import, since the published scripts run the weights at a smaller one (4) than
they were trained with (32).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from mmtune.checkpoint.foreign import _llava, _llava_out
from mmtune.checkpoint.foreign._llava import SIGHT, Layout
from mmtune.checkpoint.foreign.base import (
    HERE,
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Piece,
    ReadBack,
    Role,
    Source,
)  # fmt: skip
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError, ConfigError

WRAP = "base_model.model."
LINEARS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
PAIR = re.compile(r".*\.layers\.\d+\.\w+\.(\w+)\.lora_([AB])\.default\.weight")
OURS = "llm.model.model."


class Config(ForeignConfig):
    lora_alpha: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """For import, which needs it: scale of the LoRA times its rank. Trained with 32; the published scripts run the 7B,
    13B and 34B weights with 4, which the paper calls post-training optimisation."""
    prompt: str = "pllava"
    """Prompt template: pllava for 7B and 13B, pllava_34b for 34B, and those of the benchmarks."""


class Pllava(Foreign):
    """See the module."""

    Config = Config
    config: Config
    about: ClassVar[str] = "PLLaVA, peft-wrapped as its repositories have it"
    roles: ClassVar[tuple[Role, ...]] = (
        Role("folder", "folder with config.json and weights, whole or projector and LoRA alone"),
        Role("base", "LLaVA folder in transformers' layout, for projector and LoRA alone", optional=True),
    )

    @staticmethod
    def table(tuned: Collection[str], layout: Layout | None = None, wrapped: bool = True, whole: bool = True) -> KeyMap:
        """The names of a folder.

        Args:
            tuned: linear layers that have a LoRA, such as q_proj.
            wrapped: whether their own matrices are called `base_layer`, as peft does since 0.6.
            whole: whether the parts that were not trained are there as well.
        """
        layout = layout or Layout(model=f"language_model.{WRAP}model.", head=f"language_model.{WRAP}lm_head.weight")
        rules = _llava.projector(layout, "linear_1", "linear_2")
        layer = f"{layout.model}layers.{{i}}."
        for block, names in LINEARS.items():
            for name in names:
                if name in tuned:
                    pair = f"{block}.{name}.lora_{{half}}.default.weight"
                    rules.append(Rule(layer + pair, f"{OURS}layers.{{i}}.{pair}"))
                if whole:
                    inner = "base_layer." if name in tuned and wrapped else ""
                    theirs = f"{layer}{block}.{name}.{inner}weight"
                    rules.append(Rule(theirs, f"llm:model.layers.{{i}}.{block}.{name}.weight"))
        if whole:
            rules += _llava.tower(layout)
            rules += [
                Rule(f"{layout.model}embed_tokens.weight", "llm:model.embed_tokens.weight"),
                Rule(f"{layout.model}norm.weight", "llm:model.norm.weight"),
                Rule(f"{layer}{{norm}}.weight", "llm:model.layers.{i}.{norm}.weight"),
                Rule(layout.head, "llm:lm_head.weight", optional=True),
            ]
        return KeyMap(rules, ignore=_llava.UNUSED)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        source = sources["folder"]
        if self.config.lora_alpha is None:
            raise ConfigError(
                "pllava without lora_alpha, which its files do not tell",
                "the scale of the LoRA times its rank",
                "--option lora_alpha=32 as the published weights were trained, lora_alpha=4 as their scripts run them",
            )
        hf_config = source.json()
        _llava.check(hf_config, ("llava", "pllava"))
        tensors = source.tensors()
        tuned, rank = pairs(tensors)
        whole = any("vision_tower." in name for name in tensors)
        layout = Layout.of(tensors, WRAP)
        wrapped = any(".base_layer." in name for name in tensors)
        if not whole:
            layout = Layout(model=f"language_model.{WRAP}model.")
        pieces = [Piece(str(source), self.table(tuned, layout, wrapped, whole), tensors)]
        below = source
        if whole and "base" in sources:
            raise CheckpointError(f"{source} is whole, and a base {sources['base']} besides", "one of them")
        if not whole:
            if "base" not in sources:
                raise CheckpointError(
                    f"{source} has the projector and a LoRA alone",
                    "the LLaVA folder that they were tuned from, as role base",
                    "base=FOLDER, for example llava-hf/llava-v1.6-vicuna-7b-hf",
                )
            below = sources["base"]
            pieces.append(self._base(below))
        return Imported(
            recipe=self._recipe(hf_config, tuned, rank),
            pieces=pieces,
            parts=_llava.parts(below, below.json() if below is not source else hf_config),
            facts={"what it is": "PLLaVA", "LoRA": f"rank {rank}, alpha {self.config.lora_alpha}, chosen at import"},
        )

    @staticmethod
    def _base(source: Source) -> Piece:
        """The frozen parts of a LLaVA folder; its own projector gives way."""
        _llava.check(source.json(), ("llava", "llava_next"))
        tensors = source.tensors()
        layout = Layout.of(tensors)
        table = KeyMap(
            [*_llava.tower(layout), *_llava.language_model(layout)],
            ignore=(*_llava.UNUSED, f"{layout.root}multi_modal_projector.{{a*}}", f"{layout.root}image_newline"),
        )
        return Piece(str(source), table, tensors)

    def _recipe(self, hf_config: Mapping[str, Any], tuned: Collection[str], rank: int) -> dict[str, Any]:
        frames = int(hf_config.get("num_frames", 16))
        bins = [int(size) for size in hf_config.get("pooling_shape", (16, 12, 12))]
        if not hf_config.get("use_pooling", True):
            bins = [frames, *hf_config.get("frame_shape", (24, 24))]
        if hf_config.get("pooling_method", "avg") != "avg":
            raise CheckpointError(
                f"pooling_method {hf_config['pooling_method']!r}", "avg, the only one that was published"
            )
        connector = {"name": "pool", "time": bins[0], "height": bins[1], "width": bins[2], "short": "repeat"}
        lora = {"name": "hf_peft", "method": "lora", "r": rank, "lora_alpha": self.config.lora_alpha}
        lora |= {"lora_dropout": 0.05, "target_modules": sorted(tuned)}
        prompt = self.config.prompt
        common = {"lr": 2e-5, "weight_decay": 0.02}
        length = bins[0] * bins[1] * bins[2] + 1024
        return {
            "title": "PLLaVA, imported",
            "model": {
                "branches": {
                    "sight": {
                        "encoder": _llava.encoder(hf_config, frames=frames, rule="pllava"),
                        "connector": connector,
                        "kinds": ["image", "video"],
                    }
                },
                "llm": {"name": "hf", "folder": f"{HERE}llm"},
                "fusion": {"name": "tokens"},
                "tuners": [lora],
            },
            "streams": {"instruct": {"data": ["videochat2_it"], "prompt": prompt}},
            "groups": {
                "connector": {"match": [f"{SIGHT}.connector.*"], **common},
                "lora": {"match": ["@hf_peft"], **common},
            },
            "run": {"length": length, "batch_tokens": length},
            "chat": {"prompt": prompt, "max_tokens": 200},
        }

    def write(self, run: Opened) -> Exported:
        tuners = run.recipe.model.tuners
        single = len(tuners) == 1 and getattr(tuners[0], "method", None) == "lora" and tuners[0].adapter == "default"
        wrong = [] if single else [f"tuners {', '.join(tuner.name for tuner in tuners) or '(none)'}"]
        encoder, connector = _llava_out.branch_of(run, "pool", wrong=wrong, tuners="one LoRA (adapter: default)")
        ours: dict[str, Tensor] = {f"sight:{name}": t for name, t in encoder.tower.state_dict().items()}
        ours |= {f"{SIGHT}.connector.{name}": t for name, t in connector.state_dict().items()}
        llm = {}
        for name, tensor in run.model.llm.model.state_dict().items():
            if ".lora_" in name:
                ours[f"llm.model.{name}"] = tensor
            else:
                llm[name.replace(".base_layer.", ".")] = tensor
        tuned, _ = pairs(ours)
        config = connector.config
        hf_config = {
            **_llava_out.config_of(run, "llava", encoder),
            "architectures": ["PllavaForConditionalGeneration"],
            "pooling_method": "avg",
            "use_pooling": True,
            "pooling_shape": [config.time, config.height, config.width],
            "frame_shape": list(connector.grid),
            "num_frames": encoder.config.frames,
        }
        files = _llava_out.tokenizer_of(run)
        free = run.model.llm.tokenizer.vocabulary
        hf_config["image_token_index"] = _llava_out.placeholder(files, llm, hf_config["text_config"], free)
        ours |= {f"llm:{name}": tensor for name, tensor in llm.items()}
        _llava_out.tie(hf_config, ours)
        files |= {
            "config.json": hf_config,
            "preprocessor_config.json": _llava_out.preprocessor_of(encoder.pixels, "CLIPImageProcessor"),
        }
        return Exported({"model.safetensors": self.table(tuned).out(ours)}, files)

    def type_of(self, run: Opened) -> str:
        return _llava_out.type_of(run)

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        (branch,) = run.recipe.model.branches
        # the layout leaves the scale to its readers, so the comparison uses that of the run
        alpha = run.recipe.model.tuners[0].options.get("lora_alpha", 8)
        options = {"lora_alpha": alpha, "prompt": run.recipe.chat.prompt}
        note = f"the layout does not hold the scale of the LoRA; of this run it is lora_alpha = {alpha:g}"
        return [ReadBack({"folder": Source("folder", folder, scratch)}, options, {branch: "sight"}, notes=(note,))]


def pairs(tensors: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """(layers with a LoRA, its rank).

    Raises:
        CheckpointError: no LoRA at all, or several ranks.
    """
    tuned: set[str] = set()
    ranks: set[int] = set()
    for name, tensor in tensors.items():
        if found := PAIR.fullmatch(name):
            tuned.add(found[1])
            if tensor.ndim == 2:
                ranks.add(tensor.shape[0 if found[2] == "A" else 1])
    if not tuned:
        raise CheckpointError(
            "no name such as ...q_proj.lora_A.default.weight among " + (", ".join(sorted(tensors)[:3]) or "nothing"),
            "the peft-wrapped language model of PLLaVA",
            "a folder without LoRA is a LLaVA: mmtune import llava_hf",
        )
    # a pair in another shape is reported by name later; the rank is that of most pairs
    return sorted(tuned), max(sorted(ranks), key=lambda rank: _votes(tensors, rank))


def _votes(tensors: Mapping[str, Tensor], rank: int) -> int:
    return sum(1 for name, t in tensors.items() if (m := PAIR.fullmatch(name)) and t.shape[m[2] == "B"] == rank)
