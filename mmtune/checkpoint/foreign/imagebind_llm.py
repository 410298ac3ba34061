"""ImageBind-LLM: bind network, prompts, gates, biases, norms and low-rank pairs over LLaMA and ImageBind.

The file holds {"model": ...}: `image_bind_*` is the connector `imagebind_bridge`, `prefix_query.weight` and the gates
are the fusion `added_prompts` with one prompt in each layer, and what stands under `llama.` beside them are the tuners
`bias_norm` and, in files with `lora_*`, `hf_peft`. The low-rank pairs are added with factor 1.

The base of the published weights is Open-Chinese-LLaMA-7B, and they were trained on pictures alone; sound goes through
the same bind network, without training. ImageBind's own weights are not for commercial use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from mmtune.checkpoint.foreign import _imagebind, _llama, _llm, _meta_llama, _prompts
from mmtune.checkpoint.foreign.base import (
    HERE,
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Part,
    Piece,
    ReadBack,
    Role,
    Source,
)
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.connectors.imagebind_bridge import BLOCKS
from mmtune.errors import CheckpointError

FILE = "imagebind_llm.pth"
BRANCH, EYE = "sight", "eye"
SOUND, EAR = "sound", "ear"
LLM, BIND, TABLE = "llama.", "image_bind_", "prefix_query.weight"
RATIO = 4
LEGACY = tuple(f"{BIND}norm_{i + 1}.bias" for i in range(BLOCKS))
"""Names that only the first release has."""
BIASED = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
"""Matrices that have a bias: not those of keys and values."""

Tree = dict[str, Any]


class Config(ForeignConfig):
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the image tower, which its file does not tell; null is as published, 16."""
    sound: bool = False
    """Bring in ImageBind's sound tower too, with a copy of the bind network after it (2.4 GB more)."""


def is_base(name: str) -> bool:
    """Whether a name of a whole published model is of the LLaMA that it stands on: its matrices, but not its norms."""
    rest = name.removeprefix(LLM)
    if rest == name:
        return False
    matrix = any(rest.endswith(f".{linear}.weight") for linear in _llama.LINEARS)
    return matrix or rest in ("tok_embeddings.weight", "output.weight", "rope.freqs")


def sections(tensors: Mapping[str, Tensor], width: int) -> Tree:
    """`connector`, `fusion` and `tuners` of the recipe that a file's tensors ask for.

    A size that cannot be read is taken as published; the missing tensor is reported with all others.

    Args:
        width: of the language model.
    """
    gates = sum(name.endswith(_prompts.GATE) for name in tensors)
    layers = len(tensors[TABLE]) if TABLE in tensors else max(1, gates)
    hidden = [len(tensors[name]) for name in _hidden() if name in tensors]
    connector = {
        "name": "imagebind_bridge",
        "ratio": max(1, hidden[0] // width) if hidden else RATIO,
        "norm": "layer" if any(name in tensors for name in LEGACY) else "rms",
    }
    fusion = {"name": "added_prompts", "length": 1, "layers": layers, "spare_gates": gates > layers}
    return {"connector": connector, "fusion": fusion, "tuners": _tuners(tensors)}


def _hidden() -> list[str]:
    """Matrices of the bind network that have as many rows as its hidden width."""
    return [f"{BIND}f{n}_{i + 1}.weight" for n in (1, 3) for i in range(BLOCKS)]


def _tuners(tensors: Mapping[str, Tensor]) -> list[Tree]:
    norms = [name for name in tensors if name.startswith(LLM) and name.endswith("norm.weight")]
    bias = any(name.endswith("attention.wq.bias") for name in tensors)
    low = next((t for name, t in tensors.items() if name.endswith("attention.lora_wq_l1.weight")), None)
    found: list[Tree] = []
    if norms or bias:
        leaves = [_llama.LINEARS[name].rpartition(".")[2] for name in BIASED]
        opened = "none" if not norms else "all" if f"{LLM}norm.weight" in norms else "layers"
        found.append({"name": "bias_norm", "form": "bias", "linears": leaves if bias else [], "norms": opened})
    if low is not None:
        leaves = [name.rpartition(".")[2] for name in _llama.LINEARS.values()]
        rank = low.shape[0]
        found.append({"name": "hf_peft", "method": "lora", "r": rank, "lora_alpha": rank, "target_modules": leaves})
    return found


def table(heads: int, kv_heads: int, tree: Tree, branch: str = BRANCH) -> KeyMap:
    """Names of the file <-> ours; `tree` is what `sections` gave."""
    tuned = {tuner["name"]: tuner for tuner in tree["tuners"]}
    inner = ".base_layer" if "hf_peft" in tuned else ""
    rules = _bridge(f"branches.{branch}.connector.", tree["connector"]["norm"] == "layer")
    rules += _prompts.rules(LLM, "fusion.prompts.", TABLE)
    common = {"heads": heads, "kv_heads": kv_heads, "theirs": LLM}
    if tuned.get("bias_norm", {}).get("linears"):
        rules += _llama.per_linear("{linear}.bias", f"{{linear}}{inner}.bias", linears=BIASED, **common)
    if (norms := tuned.get("bias_norm", {}).get("norms", "none")) != "none":
        rules += _llama.norms(theirs=LLM, last=norms == "all")
    if "hf_peft" in tuned:
        down, up = "{block}.lora_{leaf}_l1.weight", "{block}.lora_{leaf}_l2.weight"
        rules += _llama.per_linear(down, "{linear}.lora_A.default.weight", by_output=False, **common)
        rules += _llama.per_linear(up, "{linear}.lora_B.default.weight", **common)
    return KeyMap(rules)


def _bridge(ours: str, legacy: bool) -> list[Rule]:
    rules = [Rule(f"{BIND}proj.{{end}}", f"{ours}proj.{{end}}")]
    end = "{end}" if legacy else "weight"
    for i in range(BLOCKS):
        rules.append(Rule(f"{BIND}norm_{i + 1}.{end}", f"{ours}blocks.{i}.norm.{end}"))
        rules += [Rule(f"{BIND}f{n}_{i + 1}.{end}", f"{ours}blocks.{i}.f{n}.{end}") for n in (1, 2, 3)]
    return rules


class ImagebindLLM(Foreign):
    """The adapter file <-> connector, fusion and tuners of a run with the encoder `imagebind_vision`."""

    Config = Config
    config: Config
    about = "ImageBind-LLM over LLaMA and ImageBind (not for commercial use)"
    roles = (
        Role("llm", "folder of Open-Chinese-LLaMA-7B, in Meta's or transformers' layout"),
        Role("adapter", "7B.pth of ImageBind-LLM"),
        Role("imagebind", "imagebind_huge.pth"),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for files of another kind."""
        llm, parts, pieces = _llm.locate(sources["llm"])
        adapter, whole = sources["adapter"], sources["imagebind"]
        tensors = adapter.tensors(inside=("model",))
        every = whole.tensors()
        tower = _imagebind.pick(every, "vision")
        tree = sections(tensors, _meta_llama.width(sources["llm"]))
        encoder = {**_imagebind.encoder(tower, "vision", heads=self.config.heads), "weights": HERE + EYE}
        branches = {BRANCH: {"encoder": encoder, "connector": tree["connector"]}}
        pieces += [
            Piece(str(whole), KeyMap(_imagebind.rules("vision", f"{EYE}:")), tower),
            Piece(str(adapter), table(*_meta_llama.heads(sources["llm"]), tree), tensors),
        ]
        parts = {**parts, EYE: Part(f"branches.{BRANCH}.encoder")}
        if self.config.sound:
            ear = _imagebind.pick(every, "audio")
            branches[SOUND] = {
                "encoder": {**_imagebind.encoder(ear, "audio"), "weights": HERE + EAR},
                "connector": tree["connector"],
            }
            again = KeyMap(_bridge(f"branches.{SOUND}.connector.", tree["connector"]["norm"] == "layer"))
            bridge = {name: tensor for name, tensor in tensors.items() if name.startswith(BIND)}
            pieces += [Piece(str(whole), KeyMap(_imagebind.rules("audio", f"{EAR}:")), ear)]
            pieces += [Piece(f"{adapter} for sound", again, bridge)]
            parts[EAR] = Part(f"branches.{SOUND}.encoder")
        names = [f"@{tuner['name']}" for tuner in tree["tuners"]]
        resting = [*(f"branches.{branch}.connector.*" for branch in branches), "fusion.*"]
        recipe = {
            "title": "ImageBind-LLM",
            "model": {
                "branches": branches,
                "llm": llm,
                "fusion": tree["fusion"],
                "tuners": tree["tuners"],
                "freeze": resting if names else [],
            },
            "streams": {"instruct": {"data": ["llava_150k"], "prompt": "alpaca"}},
            "groups": {
                "adapter": {"match": names or resting, "lr": 1.25e-4, "weight_decay": 0.02, "betas": [0.9, 0.95]}
            },
        }
        facts = {"published as": "ImageBind-LLM", "licence of ImageBind": _imagebind.LICENCE}
        if self.config.sound:
            facts["sound"] = (
                "never trained on. Several media of a conversation each come as a prompt of their own; the published "
                "code mixes their vectors first"
            )
        return Imported(recipe, pieces, parts, facts)

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a model that the layout has no place for."""
        branch = next((b for b, s in run.recipe.model.branches.items() if s.connector.name == "imagebind_bridge"), None)
        fusion = run.recipe.model.fusion.model_dump(mode="json")
        tuners = [tuner.model_dump(mode="json") for tuner in run.recipe.model.tuners]
        if branch is None or fusion["name"] != "added_prompts" or fusion["length"] != 1 or fusion["gate"] != "tanh":
            raise CheckpointError(
                f"fusion {fusion['name']} behind {', '.join(run.recipe.model.branches) or 'no branches'}",
                "connector imagebind_bridge and fusion added_prompts with length: 1",
            )
        encoder = run.recipe.model.branches[branch].encoder
        if getattr(encoder, "tokens", "pooled") != "pooled":
            raise CheckpointError(
                f"branch {branch} with tokens: {encoder.tokens}",
                "tokens: pooled",
                "the layout knows one vector a picture",
            )
        connector = run.recipe.model.branches[branch].connector.model_dump(mode="json")
        if strange := _unlike(tuners):
            raise CheckpointError(
                strange, "bias_norm as in the 7B weights, then low-rank pairs with factor 1, or neither"
            )
        llm = run.model.llm
        tree = {"connector": connector, "fusion": fusion, "tuners": tuners}
        names = table(llm.heads, llm.kv_heads, tree, branch)
        ours = {name: tensor for name, tensor in run.tensors({}).items() if names.theirs(name)}
        return Exported({FILE: {"model": names.out(ours)}})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        branches, towers, names = run.recipe.model.branches, {}, {}
        for sense, name in _imagebind.ENCODERS.items():
            for branch in [b for b, one in branches.items() if one.encoder.name == name][:1]:
                names[branch] = SOUND if sense == "audio" else BRANCH
                held = {f"{sense}:{key}": tensor for key, tensor in run.stored(branch).items()}
                towers |= KeyMap(_imagebind.rules(sense, f"{sense}:")).out(held)
        sources = {
            "llm": run.base(),
            "adapter": Source("adapter", folder / FILE, scratch),
            "imagebind": Source.memory("imagebind", towers),
        }
        eye = next((one.encoder for one in branches.values() if one.encoder.name == "imagebind_vision"), None)
        options = {"heads": getattr(eye, "heads", None), "sound": SOUND in names.values()}
        return [ReadBack(sources, options, names, prompt="alpaca")]


def _unlike(tuners: list[Tree]) -> str | None:
    """What the layout has no place for."""
    every = {name.rpartition(".")[2] for name in _llama.LINEARS.values()}
    biased = {_llama.LINEARS[name].rpartition(".")[2] for name in BIASED}
    names = [tuner["name"] for tuner in tuners]
    if names not in ([], ["bias_norm"], ["hf_peft"], ["bias_norm", "hf_peft"]):
        return f"tuners {', '.join(names)}"
    for tuner in tuners:
        if tuner["name"] == "bias_norm":
            fits = tuner["layers"] is None
            fits &= not tuner["linears"] or (tuner["form"] == "bias" and set(tuner["linears"]) == biased)
        else:
            fits = tuner["method"] == "lora" and tuner["adapter"] == "default"
            fits &= set(tuner.get("target_modules") or ()) == every and tuner.get("lora_alpha") == tuner.get("r")
        if not fits:
            return f"tuner {tuner}"
    return None
