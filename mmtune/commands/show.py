"""`mmtune show`: the model of a recipe, built on the meta device, which takes seconds for any size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune import config, registry
from mmtune.addresses import without_secrets

if TYPE_CHECKING:
    from mmtune.recipe import Recipe


def run(recipe: str, overrides: list[str], groups: bool) -> None:
    """Print the parts, and who trains what.

    Raises:
        ConfigError: a recipe that cannot be used, or groups that do not fit the model.
    """
    from mmtune import model as models
    from mmtune import params
    from mmtune.checkpoint.store import groups_of
    from mmtune.recipe import Recipe

    loaded = config.load(Recipe, recipe, overrides)
    if waiting := registry.needs_word(loaded.model.model_dump(mode="json")):
        print("\n".join(_by_name(loaded, waiting)))
        return
    model = models.build(loaded.model, weights=False, device="meta")
    parts = groups_of(model, loaded)
    for name, branch in model.branches.items():
        shape = branch.encoder.shape
        tokens = branch.connector.tokens_out(shape.frames)
        print(
            f"branch {name}: {', '.join(branch.kinds)} -> {loaded.model.branches[name].encoder.name}, up to "
            f"{shape.frames} frames of {shape.tokens} tokens -> {loaded.model.branches[name].connector.name}, "
            f"up to {tokens} tokens"
        )
    llm = model.llm
    print(f"llm: width {llm.width}, depth {llm.depth}, heads {llm.heads}, vocabulary {llm.tokenizer.vocabulary}")
    for name, other in loaded.models.items():
        print(f"model {name}: the run {other.run}, frozen")
    print(params.table(model, parts, loaded.groups))
    if groups:
        from mmtune.commands import _groups

        print("\n".join(["", *_groups.lines(loaded, model, parts)]))
        return
    print("\n".join(_trained(parts)))


def _by_name(recipe: Recipe, waiting: Sequence[str]) -> list[str]:
    """The parts by name only, where some of them may not be imported."""
    section = recipe.model
    lines = [
        f"branch {name}: {', '.join(branch.kinds or ('?',))} -> {branch.encoder.name} -> {branch.connector.name}"
        for name, branch in section.branches.items()
    ]
    lines += [f"llm: {section.llm.name}", f"fusion: {section.fusion.name}"]
    lines += [f"tuner: {tuner.name}" for tuner in section.tuners]
    words = " ".join(f"--allow-code {name}" for name in waiting)
    return [*lines, f"code outside mmtune, which was not run: {', '.join(waiting)}; to see more, for code that you "
            f"trust: {words}"]  # fmt: skip


def _trained(parts: Mapping[str, Sequence[tuple[str, Any]]]) -> list[str]:
    """Each group with its number of parameters, and below it the numbers by kind of parameter."""
    lines = []
    for group, named in parts.items():
        counts: dict[str, int] = {}
        for name, parameter in named:
            kind = kind_of(name)
            counts[kind] = counts.get(kind, 0) + parameter.numel()
        lines += ["", f"{group} trains {sum(counts.values()):,} parameters:"]
        wide = max(map(len, counts), default=0)
        most = max((len(f"{number:,}") for number in counts.values()), default=0)
        lines += [f"  {kind:{wide}}  {number:>{most},}" for kind, number in counts.items()]
    return lines


def kind_of(name: str) -> str:
    """The kind of a parameter, for a table: the module of a connector, encoder or fusion that it belongs to; in a
    language model biases, scales, norms, matrices and what tuners add, inside layers and outside apart.
    """
    pieces = name.split(".")
    if pieces[0] != "llm":
        return ".".join(pieces[: 4 if pieces[0] == "branches" else 2])
    inside = "layers" if any(piece.isdigit() for piece in pieces) else "outside layers"
    added = next((piece for piece in pieces if piece.startswith(("lora_", "gates", "prompts"))), None)
    leaf = pieces[-1]
    if added is None and leaf == "weight":
        owner = pieces[-3] if pieces[-2] == "base_layer" else pieces[-2]
        added = "norm.weight" if "norm" in owner else "embedding" if "embed" in owner else "matrix"
    return f"llm {inside}: {added or leaf}"


def resolved(recipe: str, overrides: list[str]) -> None:
    """Print a recipe as a run would store it: base, overrides and defaults resolved, addresses without secrets."""
    from mmtune.recipe import Recipe

    tree = config.load(Recipe, recipe, overrides).model_dump(mode="json")
    print(config.dump(without_secrets(tree)), end="")


def schema() -> None:
    """Print the JSON schema of a recipe file, for editors that complete and check YAML by one."""
    from mmtune.recipe import Recipe

    tree = config.schema(Recipe)
    tree["properties"]["base"] = {"type": "string", "description": "A recipe, by path or name, that this one changes."}
    tree["anyOf"] = [{"required": tree.pop("required")}, {"required": ["base"]}]
    print(json.dumps(tree, indent=1, ensure_ascii=False))
