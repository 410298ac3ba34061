"""LLaMA-Adapter V2 / V2.1 multimodal 7B as it was released: the adapter's file over LLaMA and CLIP ViT-L/14.

The file holds {"model": tensors, "config": {"w_bias", "w_lora", "lora_rank"}}. Three kinds of it were published, and
the tensors tell which it is: BIAS (visual projection, prompts, norms and biases), LORA-BIAS (low-rank pairs and a
further scalar on the gates besides), and CAPTION (the first stage: no biases). This is not what the paper describes;
for that see the fusion `early_prompts`.

Upstream reads pictures with OpenCV and never turns blue-green-red into red-green-blue, in training and use alike, so
the published weights want swapped channels: option `bgr`. A conversation without a picture was trained with an all-zero
picture: option `black_image`. Low-rank pairs have the factor 1, which `lora_alpha = r` gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from mmtune import paths
from mmtune.checkpoint.foreign import _llama, _llm, _meta_llama, _prompts
from mmtune.checkpoint.foreign._blip2 import ratio
from mmtune.checkpoint.foreign.base import (
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Piece,
    ReadBack,
    Role,
    Source,
)
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

CLIP = "timm/vit_large_patch14_clip_224.openai"
"""OpenAI's ViT-L/14 in open_clip's layout, on the hub."""
SIGHT = "sight"
BIASED = ["attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
"""Matrices that have a bias; those of keys and values never do."""
OURS = f"branches.{SIGHT}.connector."


class Config(ForeignConfig):
    """Options of the import."""

    heads: int = Field(default=16, ge=1)
    """Attention heads of the visual blocks; the file does not say."""
    bgr: bool = False
    """Swap red and blue of every picture, as upstream does in training and use: the published 7B weights want it."""
    black_image: bool = False
    """Show an all-zero picture where a conversation has none, as upstream does: the published 7B weights want it."""


def connector(ours: str = OURS) -> list[Rule]:
    """Rules of the visual projection."""
    return [
        Rule("clip_proj.{leaf}", f"{ours}proj.{{leaf}}"),
        Rule("clip_proj_norm.{leaf}", f"{ours}proj_norm.{{leaf}}"),
        Rule("visual_query.weight", f"{ours}query"),
        Rule("visual_blocks.{rest*}", f"{ours}blocks.{{rest*}}"),
        Rule("visual_proj.{leaf}", f"{ours}out.{{leaf}}"),
        Rule("visual_proj_norm.{leaf}", f"{ours}scale.norm.{{leaf}}"),
    ]


def table(heads: int, kv_heads: int, bias: bool, lora: bool, norms: bool, extra: bool) -> KeyMap:
    """Names of the file <-> ours, for a file with or without biases, low-rank pairs, norms and further scalars."""
    inside = "{linear}.base_layer." if lora else "{linear}."
    rules = [*connector(), *_prompts.rules("llama.", "fusion.prompts.", extra=extra)]
    if norms:
        rules += _llama.norms(theirs="llama.")
    if bias:
        rules += _llama.per_linear("{linear}.bias", f"{inside}bias", heads, kv_heads, BIASED, theirs="llama.")
    if lora:
        for which, name in (("l1", "lora_A"), ("l2", "lora_B")):
            rules += _llama.per_linear(
                f"{{block}}.lora_{{leaf}}_{which}.weight",
                f"{{linear}}.{name}.default.weight",
                heads,
                kv_heads,
                by_output=which == "l2",
                theirs="llama.",
            )
    return KeyMap(rules)


def facts_of(names: Sequence[str]) -> dict[str, bool]:
    """What a file has, by its names: arguments of `table`."""
    return {
        "bias": any(name.endswith("attention.wq.bias") for name in names),
        "lora": any(".lora_" in name for name in names),
        "norms": any(name.startswith("llama.") and name.endswith("norm.weight") for name in names),
        "extra": any(name.endswith(_prompts.EXTRA) for name in names),
    }


class LlamaAdapterV2(Foreign):
    """The released file <-> a branch `sight` with `query_blocks`, the fusion `added_prompts`, and tuners."""

    Config = Config
    config: Config
    about = "LLaMA-Adapter V2 / V2.1 multimodal 7B, as released, over LLaMA and CLIP"
    roles = (
        Role("llm", "folder of LLaMA 7B, as Meta published it or in transformers' layout"),
        Role("adapter", "BIAS-7B, LORA-BIAS-7B, LORA-BIAS-7B-v21 or CAPTION-7B (.pth)"),
        Role("clip", f"folder of CLIP ViT-L/14 in open_clip's layout; {CLIP} when not given", optional=True),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for a base that is no LLaMA, or another kind of file."""
        llm, parts, pieces = _llm.locate(sources["llm"])
        adapter = sources["adapter"]
        tensors = {
            name.replace("llma.", "llama.", 1) if name.startswith("llma.") else name: tensor
            for name, tensor in adapter.tensors(inside=("model",)).items()
        }
        origin = str(adapter)
        _prompts.known(tensors, ("visual_query", "visual_blocks."), origin, "a multimodal file of LLaMA-Adapter V2")
        sizes = self._sizes(tensors)
        has = facts_of(list(tensors))
        clip = sources.get("clip")
        encoder = {"name": "clip", "weights": str(clip.path.resolve()) if clip else CLIP}
        encoder |= {"layer": -1, "tokens": "all", "norm": True, "project": True}
        if self.config.bgr:
            encoder["channels"] = "bgr"
        length = sizes["queries"]
        fusion: dict[str, Any] = {
            "name": "added_prompts",
            "length": length,
            "layers": _prompts.layers(tensors, length),
            "extra_gate": has["extra"],
            "spare_gates": True,
        }
        if self.config.black_image:
            fusion["default_image_branch"] = SIGHT
        tuners = tuned(has["bias"], has["norms"], rank(tensors) if has["lora"] else None)
        opened = [f"@{one['name']}" for one in tuners] or [f"{OURS}*", "fusion.*"]
        recipe = {
            "title": "LLaMA-Adapter V2 multimodal, as released",
            "model": {
                "branches": {SIGHT: {"encoder": encoder, "connector": sizes, "kinds": ["image"]}},
                "llm": llm,
                "fusion": fusion,
                "tuners": tuners,
                "freeze": [f"{OURS}*", "fusion.*"] if tuners else [],
            },
            "streams": {"instruct": {"data": ["llava_150k"], "prompt": "alpaca"}},
            "groups": {
                "tuned": {"match": opened, "lr": 1.25e-4, "weight_decay": 0.02, "betas": [0.9, 0.95]},
            },
        }
        facts = {
            "published as": "LLaMA-Adapter V2 multimodal (code GPL-3.0; weights for research only, as LLaMA)",
            "pictures": "blue-green-red, as trained" if self.config.bgr else "red-green-blue",
        }
        names = table(*_meta_llama.heads(sources["llm"]), **has)
        return Imported(recipe, [*pieces, Piece(origin, names, tensors)], parts, facts)

    def _sizes(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The connector's section, as most tensors tell; what is missing or bent is found when names are compared."""
        query = tensors.get("visual_query.weight")
        width = _most([t.shape[0] for n, t in tensors.items() if n.startswith("visual_blocks.") and "norm" in n], 768)
        hidden = _most([t.shape[0] for n, t in tensors.items() if n.endswith("mlp.fc1.bias")], 4 * width)
        return {
            "name": "query_blocks",
            "queries": 10 if query is None else query.shape[0],
            "width": width,
            "depth": len({name.split(".")[1] for name in tensors if name.startswith("visual_blocks.")}),
            "heads": self.config.heads,
            "mlp_ratio": ratio(hidden, width),
        }

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a run whose parts the layout has no place for."""
        section = run.recipe.model
        fusion, tuners = section.fusion.model_dump(mode="json"), {one.name: one for one in section.tuners}
        branch = section.branches.get(SIGHT)
        if branch is None or branch.connector.name != "query_blocks" or fusion["name"] != "added_prompts":
            raise CheckpointError(
                f"a run with the branches {', '.join(section.branches) or '(none)'} and the fusion {fusion['name']}",
                f"a branch `{SIGHT}` with the connector query_blocks, and the fusion added_prompts",
            )
        if fusion["gate"] != "tanh":
            raise CheckpointError("added_prompts with raw gates", "gate: tanh, which the published code applies")
        held = run.tensors({})
        wanted = {name for names in run.model.tuned.values() for name in names}
        ours = {n: t for n, t in held.items() if n in wanted or n.startswith((OURS, "fusion.prompts."))}
        norms = [name for name in wanted if name.endswith("norm.weight")]
        lora = tuners.get("hf_peft")
        has = {
            "bias": any(name.endswith(".bias") for name in wanted),
            "lora": lora is not None,
            "norms": bool(norms),
            "extra": bool(fusion["extra_gate"]),
        }
        if strange := sorted(set(tuners) - {"bias_norm", "hf_peft"}) or _other_lora(lora):
            raise CheckpointError(f"the tuner {strange[0]}", "bias_norm of the form `bias`, and LoRA with the factor 1")
        ours |= _spare(ours, run.model.llm.depth, run.model.llm.heads, has["extra"])
        llm = run.model.llm
        names = table(llm.heads, llm.kv_heads, **has)
        r = int(lora.options.get("r", 8)) if lora else 16
        config = {"w_bias": has["bias"], "w_lora": lora is not None, "lora_rank": r}
        return Exported({_file(run): {"model": names.out(ours), "config": config}})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        section = run.recipe.model
        encoder, connector = section.branches[SIGHT].encoder, section.branches[SIGHT].connector
        sources = {"llm": run.base(), "adapter": Source("adapter", folder / _file(run), scratch)}
        if encoder.weights not in (None, CLIP):
            sources["clip"] = Source("clip", Path(paths.resolve(encoder.weights)).expanduser())
        options = {
            "heads": connector.heads,
            "bgr": getattr(encoder, "channels", "rgb") == "bgr",
            "black_image": section.fusion.default_image_branch == SIGHT,
        }
        return [ReadBack(sources, options, prompt="alpaca")]


def _file(run: Opened) -> str:
    """Name of the file that is written."""
    wanted = [name for names in run.model.tuned.values() for name in names]
    lora = any(one.name == "hf_peft" for one in run.recipe.model.tuners)
    bias = any(name.endswith(".bias") for name in wanted)
    return f"{'LORA-BIAS' if lora else 'BIAS' if bias else 'CAPTION'}-7B.pth"


def tuned(bias: bool, norms: bool, r: int | None) -> list[dict[str, Any]]:
    """Sections of the tuners; `r` is the rank of the low-rank pairs, none for none."""
    found: list[dict[str, Any]] = []
    if bias or norms:
        linears = [_llama.LINEARS[name].rpartition(".")[2] for name in BIASED] if bias else []
        found.append({"name": "bias_norm", "form": "bias", "linears": linears, "norms": "all" if norms else "none"})
    if r is not None:
        targets = [name.rpartition(".")[2] for name in _llama.LINEARS.values()]
        found.append({"name": "hf_peft", "method": "lora", "r": r, "lora_alpha": r, "target_modules": targets})
    return found


def rank(tensors: Mapping[str, Tensor]) -> int:
    """Rank of the low-rank pairs of a file that has some."""
    return _most([tensor.shape[0] for name, tensor in tensors.items() if name.endswith("_l1.weight")], 16)


def _most(sizes: Sequence[int], fallback: int) -> int:
    """The size that most have."""
    return Counter(sizes).most_common(1)[0][0] if sizes else fallback


def _other_lora(lora: Any) -> list[str]:
    """What keeps a LoRA out of the layout: another method, or another factor than 1."""
    if lora is None:
        return []
    options = lora.options
    plain = set(options) <= {"r", "lora_alpha", "target_modules", "lora_dropout", "layers_to_transform"}
    if lora.method == "lora" and plain and options.get("lora_alpha", 8) == options.get("r", 8):
        return []
    return [f"hf_peft with {lora.method} and {options}"]


def _spare(ours: Mapping[str, Tensor], depth: int, heads: int, extra: bool) -> dict[str, Tensor]:
    """Fresh gates for layers without prompts, where the run has none; the published code has one in every layer."""
    table = ours["fusion.prompts.weight"]
    fresh = {f"fusion.prompts.gates.{layer}.weight": table.new_zeros(heads, 1) for layer in range(depth)}
    if extra:
        fresh |= {f"fusion.prompts.gates.{layer}.extra": table.new_ones(1, 1) for layer in range(depth)}
    return {name: tensor for name, tensor in fresh.items() if name not in ours}
