"""Builds what an importer describes: a whole run, or an encoder or a language model alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtune import config as configs
from mmtune import disk, dtypes, paths, registry
from mmtune import model as models
from mmtune.checkpoint import store, write
from mmtune.checkpoint._match import Match, state_of
from mmtune.checkpoint.foreign import _llm
from mmtune.checkpoint.foreign.base import Imported, Part, submodule
from mmtune.errors import CheckpointError, ConfigError
from mmtune.recipe import EncoderEntry, LLMEntry, Recipe

Say = Callable[[str], None]


@dataclass
class Made:
    """A run in memory, with the imported base parts on disk."""

    model: models.MultimodalModel
    recipe: Recipe
    facts: Mapping[str, str]


def make_run(
    imported: Imported, draft: Path, changes: Sequence[str], facts: Mapping[str, str], say: Say = lambda line: None
) -> None:
    """Write the run that an importer describes into an existing empty folder. Raises as `convert.bring` does."""
    made = make_model(imported, draft, changes, facts, say)
    store.save_run(draft, made.model, made.recipe, made.facts)


def make_model(
    imported: Imported,
    draft: Path,
    changes: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    say: Say = lambda line: None,
) -> Made:
    """The model that an importer describes; of its files, only `parts/` are written. Raises as `convert.bring` does."""
    for name, part in imported.parts.items():
        write.write_files(draft / "parts" / name, part.files)
    tree = imported.recipe
    for text in changes:
        tree = configs.override(tree, text)
    found = Match.trace(imported)
    tree, facts = _types(tree, found, facts or {}, say)
    recipe = configs.validate(Recipe, paths.from_here(tree, draft), "the recipe of the import")
    _refuse_random(recipe, imported.parts)
    skeleton = models.build(recipe.model, weights=False, device="meta")
    found.compare(*_wanted(skeleton, recipe, imported))
    found.require_finite()
    _check_prompts(recipe, skeleton)
    for name, part in imported.parts.items():
        write.write_part(draft / "parts" / name, part, found.part(name))
    model = models.build(recipe.model, weights=True)
    with torch.no_grad():
        for tensors in store.trained_tensors(model, store.groups_of(model, recipe)).values():
            for name, tensor in tensors.items():
                tensor.copy_(found.tensors[name])
    return Made(model, recipe, facts)


def make_part(
    imported: Imported, draft: Path, changes: Sequence[str] = (), facts: Mapping[str, str] | None = None
) -> Any:
    """The folder of an encoder or a language model alone: its files, model.safetensors, and how a recipe names it.

    Returns the part, loaded from there.
    """
    ((name, part),) = imported.parts.items()
    tree = imported.recipe
    for text in changes:
        tree = configs.override(tree, text)
    write.write_files(draft, part.files)
    room, path_key = ("encoders", "weights") if "encoder" in tree else ("llm", "folder")
    ((kind, entry),) = tree.items()
    with torch.device("meta"):
        built = part_of(room, {**_as_stored(entry, imported.recipe[kind]), path_key: str(draft)})
    found = Match.trace(imported)
    inside = part.holds.removeprefix("llm").removeprefix(".") if room == "llm" else part.holds
    found.compare(*state_of(submodule(built, inside), name))
    write.write_part(draft, part, found.part(name))
    loaded = part_of(room, {**entry, path_key: str(draft)})
    loaded.load_weights()
    disk.write_file(draft / f"{kind}.yaml", configs.dump({kind: {**entry, path_key: "FOLDER"}}))
    lines = [
        f"# {entry['name']}: a part for mmtune",
        "",
        *(f"- {key}: {value}" for key, value in (facts or {}).items()),
    ]
    lines += ["", f"Use it as in {kind}.yaml, with this folder in place of FOLDER."]
    disk.write_file(draft / "card.md", "\n".join(lines) + "\n")
    return loaded


def _as_stored(entry: Any, published: Mapping[str, Any]) -> Any:
    """An encoder's settings with the size of picture that its file is for: for another `size` its positions are
    interpolated when it is loaded, not in the file."""
    size = published.get("size")
    if isinstance(entry, Mapping):
        return {**entry, "size": size} if entry.get("size") != size else entry
    return entry.model_copy(update={"size": size}) if getattr(entry, "size", size) != size else entry


class _Holder(configs.Config):
    encoders: EncoderEntry | None = None
    """The imported encoder."""
    llm: LLMEntry | None = None
    """The imported language model."""


def part_of(room: str, entry: Mapping[str, Any]) -> Any:
    """An encoder or a language model from its settings."""
    with torch.device("cpu"):  # tensors that a library makes while it is imported must not stay on the meta device
        settings = getattr(configs.validate(_Holder, {room: entry}, "the imported part"), room)
        registry.find(room, settings.name)
    return models.part(room.removesuffix("s"), settings)


def _refuse_random(recipe: Recipe, parts: Mapping[str, Part]) -> None:
    """Base parts for which a loader would draw random weights, because there are no files of weights."""
    covered = {part.holds for part in parts.values()}
    bare = [
        f"branches.{name}.encoder"
        for name, branch in recipe.model.branches.items()
        if branch.encoder.weights is None and not any(held.startswith(f"branches.{name}.") for held in covered)
    ]
    folder = recipe.model.llm.folder
    held = any(one.startswith("llm") for one in covered)
    if folder and not held and not any(Path(paths.resolve(folder)).glob("*.safetensors")):
        bare.append(f"llm ({folder} has no *.safetensors)")
    if bare:
        raise CheckpointError(
            "no weights for " + ", ".join(bare),
            "weights for every part; no part stays random",
            "name the files of the missing part",
        )


def _types(
    tree: dict[str, Any], found: Match, facts: Mapping[str, str], say: Say
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The recipe with the language model opened in the type that it was published in, and the facts with a line about
    it; as they are where the recipe says a type, or the run's precision, itself."""
    llm, run = tree["model"]["llm"], tree.get("run") or {}
    folder = Path(str(llm.get("folder", "")))
    held = found.part(_llm.PART)
    stored = dtypes.commonest(held.values()) or dtypes.stored_in(sorted(folder.glob("*.safetensors")))
    if llm.get("name") != "hf" or "dtype" in llm or "precision" in run or stored not in ("float16", "bfloat16"):
        return tree, facts
    opened = dtypes.opened_as(stored)
    size = sum(tensor.numel() for tensor in held.values() if tensor.is_floating_point())
    line = f"published in {stored}, opened in {opened}" + (f" ({2 * size / 1e9:.1f} GB)" if size else "")
    line += "; trained on with run.precision: bf16, which keeps what trains in float32"
    say(f"language model: {line}. --set model.llm.dtype=float32 takes twice the memory")
    model = {**tree["model"], "llm": {**llm, "dtype": opened}}
    return {**tree, "model": model, "run": {**run, "precision": "bf16"}}, {**facts, "types": line}


def _check_prompts(recipe: Recipe, model: models.MultimodalModel) -> None:
    """Raise ConfigError for prompts that the tokenizer cannot serve: the run could neither talk nor train."""
    named = {f"streams.{name}.prompt": stream.prompt for name, stream in recipe.streams.items()}
    named["chat.prompt"] = str(recipe.chat.prompt)
    wrong = {}
    for key, prompt in named.items():
        try:
            store.processor_for(recipe, model, prompt)
        except ConfigError as error:
            wrong[key] = (prompt, error)
    if not wrong:
        return
    fitting = []
    for prompt in registry.shipped("prompts"):
        with contextlib.suppress(ConfigError):
            store.processor_for(recipe, model, prompt)
            fitting.append(prompt)
    (prompt, error), *_ = wrong.values()
    raise ConfigError(
        f"{' and '.join(wrong)}: the tokenizer of the language model cannot serve the prompt {prompt!r}: {error.seen}",
        f"a prompt that it can serve: {', '.join(fitting) or 'none of the shipped ones'}",
        f"--option prompt={fitting[0] if fitting else 'PATH'} where the kind has this option, or "
        + " ".join(f"--set {key}={fitting[0] if fitting else 'PATH'}" for key in wrong),
    ) from error


def _wanted(
    model: models.MultimodalModel, recipe: Recipe, imported: Imported
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every name that the files must have, with a tensor on the meta device: trained ones, and `PART:NAME`; and the
    second names of tied weights.

    Args:
        model: the run's, on the meta device.
    """
    section = recipe.model
    groups = store.groups_of(model, recipe)
    wanted: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for tensors in store.trained_tensors(model, groups).values():
        wanted |= tensors
    with torch.device("meta"):
        for name, part in imported.parts.items():
            head, *rest = part.holds.split(".")
            if head == "llm":
                root: nn.Module = models.part("llm", section.llm)
            else:
                published = imported.recipe["model"]["branches"][rest[0]]["encoder"]
                encoder = _as_stored(section.branches[rest[0]].encoder, published)
                root, rest = models.part(f"branches.{rest[0]}.encoder", encoder), rest[2:]
            state, tied = state_of(submodule(root, ".".join(rest)), name)
            wanted |= state
            aliases |= tied
    return wanted, aliases
