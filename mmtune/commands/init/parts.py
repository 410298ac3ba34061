"""Names of models to the parts of a recipe: the entry that reads each, and its defaults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune import config, registry
from mmtune.errors import MmtuneError, UsageError
from mmtune.types import Kind

POCKET = "pocket"
"""The small parts that ship with mmtune."""
BRANCHES: dict[Kind, str] = {"image": "sight", "video": "sight", "audio": "hearing", "points": "touch"}
METHODS = ("connector", "lora", "full", "adapter_v2")
_TEMPLATES = (
    ("<|im_start|>", "chatml"),
    ("<<SYS>>", "llama2"),
    ("[INST]", "mistral"),
    ("ASSISTANT:", "vicuna"),
    ("### Response:", "alpaca"),
)
"""A string in a tokenizer's chat template, and the prompt template that it implies."""

Tree = dict[str, Any]


def llm(name: str) -> Tree:
    """The section `llm`: the small model, a folder, or a repository on the hub."""
    if name == POCKET:
        return {"name": "hf", "folder": "mmtune:pocket/llm"}
    where = {"folder": name} if is_path(name) else {"repo": name}
    return {"name": "hf", **where, "dtype": "bfloat16"}


def prompt(name: str) -> str:
    """The prompt that fits a language model. Raises UsageError if its files do not tell or are not on this machine."""
    if name == POCKET:
        return POCKET
    folder = Path(name).expanduser()
    texts = [folder / "chat_template.jinja", folder / "chat_template.json", folder / "tokenizer_config.json"]
    said = "".join(path.read_text(encoding="utf-8", errors="replace") for path in texts if path.is_file())
    for mark, fitting in _TEMPLATES:
        if mark in said:
            return fitting
    why = "its tokenizer has no chat template that is known here" if folder.is_dir() else "it is not on this machine"
    raise UsageError(
        f"the language model {name}, and no --prompt; {why}",
        "how conversations are written for it: " + registry.suggest("vicuna", registry.shipped("prompts"), "prompts"),
        "--prompt chatml for Qwen and its kin, vicuna for a base model of the Llama kind, plain for captions alone",
    )


def branches(names: Sequence[str], kinds: Sequence[Kind], connector: str | None) -> Tree:
    """The section `branches` for these kinds of media.

    Args:
        names: `pocket`, `WEIGHTS`, or `ENTRY:WEIGHTS` with an entry of the room encoders.
        connector: name of an entry; none is what suits the encoder.

    Raises:
        UsageError: a kind of media that no encoder takes, or an encoder that takes none of them.
    """
    found: Tree = {}
    for name in names:
        made = _pocket() if name == POCKET else {}
        if name != POCKET:
            encoder_entry, weights = entry(name)
            takes = registry.find("encoders", encoder_entry).kinds
            encoder = {"name": encoder_entry, "weights": weights}
            if "image" in takes:
                encoder["layer"] = -2
            if "video" in takes and "video" in kinds:
                encoder["frames"] = 8
            made = {BRANCHES[takes[0]]: {"encoder": encoder, "connector": _usual(takes, kinds)}}
        for branch, section in made.items():
            takes = registry.find("encoders", section["encoder"]["name"]).kinds
            taken = {kind for one in found.values() for kind in one["kinds"]}
            mine = [kind for kind in takes if kind in kinds and kind not in taken]
            if mine:
                free = branch if branch not in found else f"{branch}{len(found) + 1}"
                chosen = _named(connector, section["connector"]) if connector else section["connector"]
                published = chosen["name"] == "pool" and "norm" not in chosen
                rule = {"rule": "pllava"} if published and "video" in mine else {}
                found[free] = {"encoder": {**section["encoder"], **rule}, "connector": chosen, "kinds": mine}
    _all_taken(found, names, kinds)
    return found


def _all_taken(found: Tree, names: Sequence[str], kinds: Sequence[Kind]) -> None:
    taken = {kind for one in found.values() for kind in one["kinds"]}
    if missing := [kind for kind in kinds if kind not in taken]:
        data = f"data with {' and '.join(missing)}"
        raise UsageError(
            f"{data}, which {' and '.join(names)} does not take" if names else f"{data}, and no --encoder",
            "an encoder for each kind of media in the data",
            "--encoder once more, as --encoder pocket or --encoder hf_audio:FOLDER; mmtune list encoders",
        )


def _named(connector: str, usual: Tree) -> Tree:
    """A connector by its name, with the published settings and the bins of the default one.

    `pool` is that of PLLaVA, frames included, so that `mmtune export --layout pllava` can write the run.
    """
    bins = {key: usual[key] for key in ("time", "height", "width") if key in usual and connector == usual["name"]}
    return {"name": connector, **bins, **({"short": "repeat"} if connector == "pool" else {})}


def _pocket() -> Tree:
    """The branches of the shipped recipe that has one of each."""
    return config.read("pocket_senses")["model"]["branches"]


def _usual(takes: Sequence[Kind], kinds: Sequence[Kind]) -> Tree:
    """One vector for each token of a picture or sound; of the many of a video, averages over PLLaVA's bins."""
    if "video" in takes and "video" in kinds:
        return {"name": "pool", "time": 8, "height": 8, "width": 8, "short": "repeat"}
    return {"name": "mlp"}


def entry(name: str) -> tuple[str, str]:
    """(entry of the room encoders, weights). Without an entry, the first that can read the files."""
    head, rest = entry_and_weights(name)
    if head:
        return head, rest
    for reader in ("clip", "hf_vision", "hf_audio"):
        if _reads(reader, name):
            return reader, name
    raise UsageError(
        f"the encoder {name}: " + ("no entry reads it" if is_path(name) else "it is not on this machine"),
        "pocket, or ENTRY:WEIGHTS with an entry that is named by `mmtune list encoders`",
        f"--encoder hf_vision:{name} for the layout of transformers, --encoder clip:{name} for open_clip's",
    )


def entry_and_weights(name: str) -> tuple[str, str]:
    """ENTRY:WEIGHTS, or no entry and a name as it is."""
    head, sign, rest = name.partition(":")
    return (head, rest) if sign and head in registry.names("encoders") else ("", name)


def _reads(entry: str, weights: str) -> bool:
    import torch

    chosen = registry.find("encoders", entry)
    try:
        with torch.device("meta"):
            chosen(chosen.Config(weights=weights))
    except (MmtuneError, ValueError):
        return False
    return True


def tune(method: str, depth: int | None, small: bool) -> Tree:
    """The settings of a method: `fusion`, `tuners` and `groups`.

    Args:
        depth: layers of the language model, where they are known; needed by adapter_v2.
        small: the model is the small one of the package, which learns at higher rates.
    """
    new, old = (2.0e-3, 1.0e-3) if small else (1.0e-3, 2.0e-5)
    connector = {"match": ["branches.*.connector.*"], "lr": new}
    if method == "connector":
        return {"fusion": {"name": "tokens"}, "tuners": [], "groups": {"connector": connector}}
    if method == "full":
        llm = {"match": ["llm.*"], "lr": old}
        return {"fusion": {"name": "tokens"}, "tuners": [], "groups": {"connector": connector, "llm": llm}}
    if method == "lora":
        lora = {"name": "hf_peft", "method": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        groups = {"connector": connector, "lora": {"match": ["@hf_peft"], "lr": new if small else 2.0e-4}}
        return {"fusion": {"name": "tokens"}, "tuners": [lora], "groups": groups}
    if depth is None:
        raise UsageError(
            "--method adapter_v2 with a language model that is not on this machine",
            "the number of its layers, of which the lowest see the media and the others get prompts",
            "fetch it first, or begin with the recipe llama_adapter_v2_7b_paper",
        )
    lowest = max(1, depth // 2 if small else depth // 8)
    return {
        "fusion": {"name": "early_prompts", "layers": lowest},
        "tuners": [
            {"name": "bias_norm", "form": "output", "norms": "all"},
            {"name": "prompts", "length": 10, "layers": depth - lowest},
        ],
        "groups": {
            "sight": {"match": ["branches.*.connector.*", "fusion.*"], "lr": new},
            "speech": {"match": ["@bias_norm", "@prompts"], "lr": new if small else 1.25e-4},
        },
    }


def depth_of(section: Tree) -> int | None:
    """Layers of a language model, from its config.json or known by its name; None if it is not on this machine."""
    from mmtune.llm._known import hf_config_of

    if (known := hf_config_of(section.get("repo", ""))) is not None:
        return int(known["num_hidden_layers"])
    from mmtune.paths import resolve

    path = Path(str(resolve(section.get("folder") or ""))).expanduser() / "config.json"
    if not section.get("folder") or not path.is_file():
        return None
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree = tree.get("text_config", tree)
    return next((tree[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in tree), None)


def is_path(name: str) -> bool:
    """Whether a name is that of a folder, and not of a repository."""
    return name.startswith((".", "/", "~")) or Path(name).expanduser().exists()


def reference_notes(tree: Tree) -> list[str]:
    """What to say of pairs of answers where connectors begin untrained: so would the model that they are measured
    from."""
    compared = [name for name, stream in tree["streams"].items() if "objective" in stream]
    if not compared or not tree["model"]["branches"]:
        return []
    return [
        f"note: {', '.join(compared)} is measured from the model as the run begins, and its connectors are new: begin "
        "with a run that answers already (run.init_from=FOLDER), at about a tenth of its rates"
    ]
