"""Our own layout of a trained model on disk.

    run/
      recipe.yaml                  every default written out
      base.yaml                    each frozen part: where it comes from and its checksum; package versions
      weights/<group>.safetensors  only what was trained, by full parameter name; sealed
      card.md                      what it is
      state/                       what a resumed run needs

Frozen weights are not stored again. Their checksum is taken over the tensors as they are in memory, so it also
detects a loader that reads the same file into other numbers; the price is one pass over the weights on loading.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mmtune import config as configs
from mmtune import disk, dtypes, params, paths, registry, renamed, weights_file
from mmtune.addresses import without_secrets
from mmtune.checkpoint import seal
from mmtune.checkpoint import tensors as files_of
from mmtune.errors import CheckpointError
from mmtune.recipe import ModelSection, Recipe
from mmtune.sharded import like, whole
from mmtune.version import __version__

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor

Groups = Mapping[str, list[tuple[str, Parameter]]]

REST = "_rest"
"""File for tensors that no group trains and no base holds: a random connector that is frozen, running statistics."""

_PACKAGES = ("torch", "transformers", "open_clip_torch", "timm", "peft", "safetensors", "accelerate")


def groups_of(model: nn.Module, recipe: Recipe) -> Groups:
    """Who trains what: the groups of a recipe, and not `model.freeze`. Raises ConfigError."""
    return params.partition(model, recipe.groups, recipe.model.freeze)


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The components that may have pretrained weights, by their full name: every encoder, and the LLM."""
    found = {f"branches.{name}.encoder": branch.encoder for name, branch in model.branches.items()}
    return {**found, "llm": model.llm}


def _split(model: nn.Module, groups: Groups) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """All tensors of the model as ({part: frozen tensors from a base}, the rest); trained ones are in neither."""
    state = model.state_dict(keep_vars=True)
    trained = {id(parameter) for named in groups.values() for _, parameter in named}
    # parameters that tuners added are in no base, even where they are frozen
    added = {name for names in model.tuned.values() for name in names}
    bases: dict[str, dict[str, Tensor]] = {}
    claimed: set[str] = set()
    for part, module in parts(model).items():
        names = [name for name in state if name.startswith(part + ".") and name not in added]
        # running statistics of a part that trains change with it, so they do not belong to the base
        moving = any(id(parameter) in trained for parameter in module.parameters())
        frozen = {
            name: state[name]
            for name in names
            if id(state[name]) not in trained and (isinstance(state[name], Parameter) or not moving)
        }
        bases[part] = frozen
        claimed.update(frozen)
    rest = {name: t for name, t in state.items() if name not in claimed and id(t) not in trained}
    return bases, rest


def digest(tensors: Mapping[str, Tensor], held: torch.dtype | None = None) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names.

    Args:
        held: dtype to which floating tensors are converted first: that of a widened part when its digest was made.
    """
    each = ((name, whole(tensors[name].detach()).cpu()) for name in sorted(tensors))
    if held is not None:
        each = ((name, tensor.to(held) if tensor.is_floating_point() else tensor) for name, tensor in each)
    return weights_file.digest(each, end="\n")


def marks_of(model: nn.Module, groups: Groups) -> dict[str, int]:
    """A quick checksum of each frozen part, to detect a change; see `tensors.mark`."""
    bases, _ = _split(model, groups)
    return {part: files_of.mark(tensors) for part, tensors in bases.items()}


def base_of(
    model: MultimodalModel, recipe: Recipe, groups: Groups, held: Mapping[str, torch.dtype] | None = None
) -> dict[str, dict[str, Any]]:
    """What each frozen part is and where it comes from: the content of base.yaml under `parts`.

    Args:
        held: part to the dtype in which its checksum is computed, where the part has another one in memory.
    """
    bases, _ = _split(model, groups)
    configured = {f"branches.{name}.encoder": branch.encoder for name, branch in recipe.model.branches.items()}
    configured["llm"] = recipe.model.llm
    table = {}
    for part, tensors in bases.items():
        written = configured[part].model_dump(mode="json")
        source = next((written[key] for key in ("weights", "repo", "path", "folder") if written.get(key)), None)
        table[part] = {
            "name": written.get("name"),
            "from": paths.portable(source) if source else "drawn at random",
            "revision": written.get("revision"),
            "tensors": len(tensors),
            "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
            "sha256": digest(tensors, (held or {}).get(part)),
        }
    return table


def trained_tensors(model: nn.Module, groups: Groups) -> dict[str, dict[str, Tensor]]:
    """The tensors that a run stores, by file: one entry for each group, and `_rest` for others, if there are any."""
    files: dict[str, dict[str, Tensor]] = {group: dict(named) for group, named in groups.items()}
    _, rest = _split(model, groups)
    if rest:
        files[REST] = rest
    return files


def versions() -> dict[str, str]:
    """Versions of everything that may change a result."""
    found = {"mmtune": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if not (paths.PACKAGE.parent / ".git").exists():  # of another project, in which this one is installed
        return found
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=paths.PACKAGE, capture_output=True, text=True, timeout=5
        )
        if answer.returncode == 0:
            found["git"] = answer.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass  # a machine may have no git
    return found


def start_run(out: Path, recipe: Recipe, base: Mapping[str, Any]) -> None:
    """Write recipe.yaml, base.yaml, the prompts and a first card.md."""
    out.mkdir(parents=True, exist_ok=True)
    _copy_prompts(out, recipe)
    write_recipe(out, recipe, base)
    disk.write_file(out / "card.md", _card(recipe, _portable(dict(base), out), {}))


def _portable(tree: Any, out: Path) -> Any:
    """A tree of settings that can be shared: paths inside the run are relative to it, and secrets are left out."""
    return without_secrets(paths.to_here(tree, out))


def write_recipe(out: Path, recipe: Recipe, base: Mapping[str, Any]) -> None:
    """Write base.yaml, then recipe.yaml, which marks the folder as a run."""
    made = versions()
    head = f"# resolved by mmtune {made['mmtune']}; versions are in base.yaml\n"
    disk.write_file(out / "base.yaml", configs.dump({"versions": made, "parts": _portable(dict(base), out)}))
    disk.write_file(out / "recipe.yaml", head + configs.dump(_portable(recipe.model_dump(mode="json"), out)))


def write_copy(
    run: Path,
    out: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    recipe: Recipe,
    base: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write a separate run folder inside another one, with these tensors: the same recipe at another step.

    Args:
        run: the folder of the run, whose copies of prompts are used.

        Raises CheckpointError: the folder could not be written.
    """
    try:
        disk.folder(out)
        _copy_prompts(out, recipe, run)
        write_recipe(out, recipe, base)
    except OSError as error:
        raise CheckpointError(f"{out} could not be written: {error}", "room and the right to write there") from error
    write_weights(out, files, recipe, facts)


def _copy_prompts(out: Path, recipe: Recipe, run: Path | None = None) -> None:
    """Keep templates that were given by path, so that the run can be used where that path does not exist."""
    known = registry.shipped("prompts")
    for name in {recipe.chat.prompt, *(stream.prompt for stream in recipe.streams.values())} - set(known):
        copy = run / "prompts" / Path(name).name if run else None
        source = copy if copy is not None and copy.is_file() else configs.locate(name, "prompts")
        copies = disk.folder(out / "prompts")
        disk.write_file(copies / source.name, disk.read_text(source, configs.MAX_BYTES))


def save_weights(
    out: Path, model: MultimodalModel, recipe: Recipe, groups: Groups, facts: Mapping[str, Any] | None = None
) -> None:
    """Replace weights/ and card.md: the trained weights as they are now. Raises as `write_weights` does."""
    write_weights(out, trained_tensors(model, groups), recipe, facts)


def write_weights(
    out: Path, files: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, facts: Mapping[str, Any] | None = None
) -> None:
    """Replace weights/ and card.md by these tensors, by file.

    Raises:
        CheckpointError: the weights could not be written; the earlier weights are untouched.
    """

    def fill(draft: Path) -> None:
        for name, tensors in files.items():
            files_of.write(draft / f"{name}.safetensors", tensors)

    try:
        seal.write(out / "weights", fill)
        base = _read_base(out)
        disk.write_file(out / "card.md", _card(recipe, base, facts or {}))
    except OSError as error:
        raise CheckpointError(
            seen=f"weights could not be written: {error}",
            expected=f"room and the right to write in {out}",
            hint="the weights saved before are untouched",
        ) from error


def save_run(out: Path | str, model: MultimodalModel, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
    """Write a complete run folder for a model in memory, without a state to resume from.

    Args:
        facts: lines for the card, such as the number of steps.
    """
    out = Path(out)
    groups = groups_of(model, recipe)
    start_run(out, recipe, base_of(model, recipe, groups))
    save_weights(out, model, recipe, groups, facts)


def read_recipe(path: Path | str) -> Recipe:
    """The recipe stored in a run folder."""
    path = Path(path)
    if not (path / "recipe.yaml").is_file():
        raise CheckpointError(
            seen=f"{path} has no recipe.yaml",
            expected="the folder of a run, as `mmtune train` writes it",
            hint="check the path",
        )
    return configs.validate(Recipe, configs.read(str(path / "recipe.yaml"), []))


def load_run(
    path: Path | str,
    device: str | torch.device = "cpu",
    allow_code: Iterable[str] = (),
    widen: bool = False,
) -> tuple[MultimodalModel, Processor, Recipe]:
    """Read a run folder back: base parts from their sources, then the trained weights.

    Args:
        path: the folder; `mmtune:NAME` is one inside the package.
        device: `auto` takes an accelerator where there is one.
        allow_code: classes outside mmtune that may be imported, see `mmtune.registry.allow`.
        widen: open the language model in float32 whatever the recipe says, so that no digit of the weights is lost.

    Raises:
        ConfigError: a class outside mmtune that is not allowed.
        CheckpointError: no weights yet; a damaged file; names missing, unexpected or misshapen (listed together);
        a base part that differs from the one that this run was trained on.
    """
    from mmtune import model as models

    registry.allow(allow_code)
    path = Path(paths.resolve(str(path)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = read_recipe(path)
    registry.refuse(registry.needs_word(recipe.model.model_dump(mode="json")))
    held = recipe.model.llm.dtype
    widen = widen and held != "float32"
    model = models.build(_widened(recipe.model) if widen else recipe.model, weights=True)
    groups = groups_of(model, recipe)
    _check_base(path, base_of(model, recipe, groups, {"llm": dtypes.TYPES[held]} if widen else {}))
    load_weights(path, model, groups)
    model.requires_grad_(False)
    model.to(device).eval()
    return model, processor_for(recipe, model, run=path), recipe


def _widened(section: ModelSection) -> ModelSection:
    llm = section.llm.model_copy(update={"dtype": "float32"})
    return section.model_copy(update={"llm": llm})


def processor_for(
    recipe: Recipe, model: MultimodalModel, prompt: str | None = None, run: Path | None = None
) -> Processor:
    """The processor that belongs to a model.

    Args:
        prompt: name or path of a template; the one for chat when not given.
        run: a run folder, whose copy of a template given by path is preferred.
    """
    from mmtune import prompt as prompts
    from mmtune.processor import Processor

    name = prompt or recipe.chat.prompt
    copy = run / "prompts" / Path(name).name if run else None
    template = prompts.load(str(copy) if copy and copy.is_file() else name)
    return Processor(
        model.branches,
        model.llm.tokenizer,
        template,
        length=recipe.run.length,
        too_long=recipe.run.too_long,
        uses_placeholders=model.fusion.uses_placeholders,
        default_image_branch=model.fusion.default_image_branch,
        limits=recipe.limits,
    )


def load_weights(path: Path, model: MultimodalModel, groups: Groups) -> None:
    """Read weights/ into the model, strictly. Raises as `load_run` does."""
    folder = seal.find(path / "weights")
    if not folder.is_dir():
        raise CheckpointError(
            seen=f"{path} has no weights yet",
            expected="a run that has saved at least once",
            hint=f"mmtune train --resume {path}",
        )
    damage = seal.faults(folder)
    if damage:
        raise CheckpointError(
            seen=f"{folder} is damaged: {'; '.join(damage)}",
            expected="the files that were sealed when the run was saved",
            hint=f"resume from the last complete state (mmtune train --resume {path}), or copy the folder again",
        )
    found = {file.stem: renamed.tensors(weights_file.read(file)) for file in sorted(folder.glob("*.safetensors"))}
    for name, tensors in found.items():
        dtypes.require_finite(tensors, str(folder / f"{name}.safetensors"))
    copy_into(trained_tensors(model, groups), found)


def start_from(path: Path | str, model: nn.Module, groups: Groups) -> tuple[int, list[str]]:
    """Copy the trained weights of another run into a model, whatever groups either of them has.

    Weights that were saved in float32 stay in float32.

    Returns:
        Number of tensors taken, and names of trainable parameters that the other run has no weights for.

    Raises:
        CheckpointError: no weights, a damaged file, tensors that this model does not have in that shape or that it
            keeps frozen as they came; all listed.
    """
    path = Path(paths.resolve(str(path)))
    folder = seal.find(path / "weights")
    if damage := seal.faults(folder):
        raise CheckpointError(
            seen=f"{folder}: {'; '.join(damage)}", expected="a run folder with weights", hint="check run.init_from"
        )
    files = [renamed.tensors(weights_file.read(file)) for file in sorted(folder.glob("*.safetensors"))]
    found = {name: tensor for tensors in files for name, tensor in tensors.items()}
    bases, _ = _split(model, groups)
    if frozen := sorted(found.keys() & {name for held in bases.values() for name in held}):
        raise CheckpointError(
            seen=f"{path} trained {', '.join(frozen[:4])}{', ...' if len(frozen) > 4 else ''}, which is frozen here",
            expected="a base that stays unchanged",
            hint="name these parameters in a group; one with a tiny learning rate will do",
        )
    state = model.state_dict(keep_vars=True)
    wanted = {name: state[name] for name in found if name in state}
    for name, tensor in wanted.items():
        if found[name].dtype == torch.float32:
            tensor.data = tensor.data.float()  # it trains, or a run keeps it: in either case all of it
    copy_into({str(path): wanted}, {str(path): found})
    return len(found), [n for n, p in model.named_parameters() if p.requires_grad and n not in found]


def copy_into(wanted: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy tensors file by file, or nothing at all.

    Raises:
        CheckpointError: everything that is missing, unexpected or misshapen.
    """
    wrong = []
    for file in sorted(set(wanted) | set(found)):
        want, have = wanted.get(file, {}), found.get(file, {})
        wrong += [f"missing: {name} ({file})" for name in sorted(set(want) - set(have))]
        wrong += [f"unexpected: {name} ({file})" for name in sorted(set(have) - set(want))]
        for name in sorted(set(want) & set(have)):
            ours, theirs = want[name], have[name]
            # weights trained in float32 may be used in two bytes, if the recipe says so; other dtypes are a mistake
            pair = {ours.dtype, theirs.dtype}
            fits = len(pair) == 1 or pair == {torch.float32, torch.bfloat16}
            fits |= (theirs.dtype, ours.dtype) == (torch.float32, torch.float16)
            if ours.shape != theirs.shape or not fits:
                wrong.append(
                    f"misshapen: {name} ({file}) is {theirs.dtype} {list(theirs.shape)}, "
                    f"the model has {ours.dtype} {list(ours.shape)}"
                )
    if wrong:
        raise CheckpointError(
            seen="weights that do not fit the model:\n  " + "\n  ".join(wrong),
            expected="exactly the tensors that this recipe trains",
            hint="the weights belong to another recipe, or the recipe was edited",
        )
    with torch.no_grad():
        for file, tensors in wanted.items():
            for name, tensor in tensors.items():
                tensor.copy_(like(found[file][name], tensor))


def _read_base(path: Path) -> dict[str, dict[str, Any]]:
    file = path / "base.yaml"
    try:
        stored = configs.parse(disk.read_text(file, configs.MAX_BYTES), str(file))["parts"]
        for entry in stored.values():
            entry["sha256"], entry["from"] = str(entry["sha256"]), str(entry["from"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            seen=f"{file} cannot be read: {error}", expected="the sources of the frozen parts, with checksums"
        ) from error
    return stored


def _check_base(path: Path, here: Mapping[str, Mapping[str, Any]]) -> None:
    stored = _read_base(path)
    sums = {part: entry["sha256"] for part, entry in stored.items()}
    wrong = [
        f"{part}: trained on {sums.get(part, 'nothing')[:12]} from {stored.get(part, {}).get('from')}, "
        f"here {here.get(part, {}).get('sha256', 'nothing')[:12]} from {here.get(part, {}).get('from')}"
        for part in sorted(set(sums) | set(here))
        if sums.get(part) != here.get(part, {}).get("sha256")
    ]
    if wrong:
        raise CheckpointError(
            seen="frozen parts differ from those that this run was trained on:\n  " + "\n  ".join(wrong),
            expected="the same base weights, bit for bit",
            hint="get the weights named above in the version that base.yaml names",
        )


def _card(recipe: Recipe, base: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    lines = ["# A model trained with mmtune", "", *([recipe.title, ""] if recipe.title else []), "## Parts", ""]
    lines += [f"- {part}: {entry.get('name')}, from {entry['from']}" for part, entry in base.items()]
    lines += ["", "## Trained", ""]
    lines += [f"- {group}: weights/{group}.safetensors" for group in recipe.groups]
    lines += ["", "## Data", ""]
    lines += [f"- {name}: {', '.join(without_secrets(stream.data))}" for name, stream in recipe.streams.items()]
    if facts:
        lines += ["", "## Facts", "", *(f"- {key}: {value}" for key, value in facts.items())]
    lines += ["", "The licences of the base parts and of the data apply to these weights."]
    return "\n".join(lines) + "\n"
