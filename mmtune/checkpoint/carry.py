"""Published checkpoints into run folders, and runs into published layouts: the one driver for all importers.

Everything is strict. Names and shapes are compared on the meta device before a byte is written, and all that is wrong
is told in one error, in the published spelling; then the run is built as any other is, by the loaders that will read
it later. What is written appears under its final name when it is whole, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmtune import config as configs
from mmtune import disk, dtypes, places, registry
from mmtune import model as models
from mmtune.checkpoint import fidelity, store
from mmtune.checkpoint.foreign import _llm
from mmtune.checkpoint.foreign.base import (
    Back,
    Exported,
    Foreign,
    Imported,
    Opened,
    Part,
    Source,
    is_file_name,
    submodule,
)
from mmtune.checkpoint.given import Given, state_of
from mmtune.errors import CheckpointError, ConfigError, MmtuneError, UsageError
from mmtune.recipe import EncoderEntry, LLMEntry, Recipe

ROOM = "checkpoint/foreign"
Tell = Callable[[str], None]


def importer(kind: str, options: Sequence[str] = ()) -> Foreign:
    """The importer of a kind, with options written as NAME=VALUE.

    Raises ConfigError for an unknown kind, option or value.
    """
    found = registry.find(ROOM, kind)
    tree: dict[str, Any] = {}
    for text in options:
        tree = configs.override(tree, text)
    return found(configs.validate(found.Config, tree, f"the options of {kind}"))


def assign(foreign: Foreign, paths: Sequence[str], scratch: Path) -> dict[str, Source]:
    """The paths of the command line by role: NAME=PATH by name, the others in the order of the roles.

    Raises:
        UsageError: a role without a path, twice, or unknown; a path where nothing lies.
    """
    known = {role.name: role for role in foreign.roles}
    given: dict[str, str] = {}
    plain = []
    for text in paths:
        name, sign, path = text.partition("=")
        if sign and name in known and name not in given:
            given[name] = path
        elif sign and not Path(text).exists():
            raise UsageError(
                f"{text}: {'given twice' if name in known else f'no role {name!r}'}", f"one of {_usage(foreign)}"
            )
        else:
            plain.append(text)
    free = [name for name in known if name not in given]
    if len(plain) > len(free):
        raise UsageError(f"{len(paths)} paths", f"at most {len(known)}: {_usage(foreign)}")
    given |= dict(zip(free, plain, strict=False))
    if missing := [role for role in foreign.roles if role.name not in given and not role.optional]:
        raise UsageError("no path for " + "; ".join(f"{role.name} ({role.about})" for role in missing), _usage(foreign))
    gone = [f"{name}: there is no {path}" for name, path in given.items() if not Path(path).expanduser().exists()]
    if gone:
        raise UsageError(
            "; ".join(gone), "files or folders on this machine", "fetch them first, for example: hf download"
        )
    return {name: Source(name, Path(given[name]).expanduser(), scratch) for name in known if name in given}


def _usage(foreign: Foreign) -> str:
    return " ".join(f"[{role.name}=PATH]" if role.optional else f"{role.name}=PATH" for role in foreign.roles)


# --------------------------------------------------------------------------------------------------------------- in


def bring(
    kind: str,
    paths: Sequence[str],
    out: Path | str,
    options: Sequence[str] = (),
    changes: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> Path:
    """Make a run folder (or the folder of an encoder) from published files; returns it.

    Args:
        paths: as `assign` takes them.
        options: NAME=VALUE for the importer.
        changes: a.b.c=value for the recipe.
        tell: gets a line about the type that the language model is opened in.

    Raises:
        ConfigError, UsageError: what was asked for, a prompt that the tokenizer cannot serve among it. CheckpointError:
            what the files hold.
    """
    out = Path(out)
    foreign = importer(kind, options)
    with _whole(out) as (draft, scratch):
        sources = assign(foreign, paths, scratch)
        with _making_sense_of(sources):
            imported = foreign.read(sources)
            facts = {
                "imported from": f"{kind}: " + ", ".join(f"{name} {one.path.name}" for name, one in sources.items()),
                **({"options": ", ".join(options)} if options else {}),
                **imported.facts,
            }
            if set(imported.recipe) in ({"encoder"}, {"llm"}):
                _bring_part(imported, draft, changes, facts)
            else:
                make_run(imported, draft, changes, facts, tell)
    return out


@contextmanager
def _making_sense_of(sources: Mapping[str, Source]) -> Iterator[None]:
    """Settings in published files go to several libraries, each of which fails in its own way where they make no sense:
    sizes below zero, words for numbers, heads that do not divide a width. Raises CheckpointError instead."""
    try:
        yield
    except (MmtuneError, OSError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{', '.join(map(str, sources.values()))}: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            "settings that a model can be made of",
            "compare the JSON files with those that were published; MMTUNE_DEBUG=1 shows where this happened",
        ) from error


@contextmanager
def _whole(out: Path) -> Iterator[tuple[Path, Path]]:
    """A draft folder beside `out` that becomes `out` at the end, and a scratch folder; neither outlives a failure."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "a new or empty folder", "give another --out")
    out = Path(os.path.abspath(out))
    draft, scratch = (out.with_name(f".{out.name}.{what}") for what in ("draft", "scratch"))
    try:
        for folder in (draft, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield draft, scratch
        if out.exists():
            out.rmdir()
        os.rename(draft, out)
        disk.flush(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)


def make_run(
    imported: Imported, draft: Path, changes: Sequence[str], facts: Mapping[str, str], tell: Tell = lambda line: None
) -> None:
    """Write the run that an importer describes into a folder that is there and empty. Raises as `bring` does."""
    for name, part in imported.parts.items():
        _write_files(draft / "parts" / name, part.files)
    tree = imported.recipe
    for text in changes:
        tree = configs.override(tree, text)
    given = Given.trace(imported)
    tree, facts = _types(tree, given, facts, tell)
    recipe = configs.validate(Recipe, places.from_here(tree, draft), "the recipe of the import")
    _refuse_random(recipe, imported.parts)
    plan = models.build(recipe.model, weights=False, device="meta")
    given.compare(*_wanted(plan, recipe, imported))
    given.require_finite()
    _speaks(recipe, plan)
    for name, part in imported.parts.items():
        _write_tensors(draft / "parts" / name / "model.safetensors", given.part(name), part)
    model = models.build(recipe.model, weights=True)
    groups = store.groups_of(model, recipe)
    files = store.trained_tensors(model, groups)
    with torch.no_grad():
        for tensors in files.values():
            for name, tensor in tensors.items():
                tensor.copy_(given.tensors[name])
    store.save_run(draft, model, recipe, facts)


def _bring_part(imported: Imported, draft: Path, changes: Sequence[str], facts: Mapping[str, str]) -> Any:
    """The folder of an encoder or a language model alone: its files, model.safetensors, and how a recipe names it.

    Returns the part, loaded from there.
    """
    ((name, part),) = imported.parts.items()
    tree = imported.recipe
    for text in changes:
        tree = configs.override(tree, text)
    _write_files(draft, part.files)
    room, place = ("encoders", "weights") if "encoder" in tree else ("llm", "folder")
    ((kind, entry),) = tree.items()
    with torch.device("meta"):
        built = _entry(room, {**_as_stored(entry, imported.recipe[kind]), place: str(draft)})
    given = Given.trace(imported)
    inside = part.holds.removeprefix("llm").removeprefix(".") if room == "llm" else part.holds
    given.compare(*state_of(submodule(built, inside), name))
    _write_tensors(draft / "model.safetensors", given.part(name), part)
    loaded = _entry(room, {**entry, place: str(draft)})
    loaded.load_weights()
    disk.write_file(draft / f"{kind}.yaml", configs.dump({kind: {**entry, place: "FOLDER"}}))
    lines = [f"# {entry['name']}: a part for mmtune", "", *(f"- {key}: {value}" for key, value in facts.items())]
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
    """The one that is brought in."""
    llm: LLMEntry | None = None
    """The one that is brought in."""


def _entry(room: str, entry: Mapping[str, Any]) -> Any:
    """An encoder or a language model from its settings."""
    with torch.device("cpu"):  # what a library makes while it is imported must not stay on the meta device
        settings = getattr(configs.validate(_Holder, {room: entry}, "the part that is brought in"), room)
        found = registry.find(room, settings.name)
    return found(settings)


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not is_file_name(name):
            raise CheckpointError(f"a file called {name!r}", "a plain file name")
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], part: Part) -> None:
    kind = getattr(torch, part.dtype) if part.dtype else None
    plain = {
        name: (tensor.to(kind) if kind and tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in tensors.items()
    }
    save_file(plain, path, metadata={"format": "pt"})


def _refuse_random(recipe: Recipe, parts: Mapping[str, Part]) -> None:
    """Base parts for which a loader would draw random weights, because nothing is there to read."""
    covered = {part.holds for part in parts.values()}
    bare = [
        f"branches.{name}.encoder"
        for name, branch in recipe.model.branches.items()
        if branch.encoder.weights is None and not any(held.startswith(f"branches.{name}.") for held in covered)
    ]
    folder = getattr(recipe.model.llm, "folder", None)
    held = any(one.startswith("llm") for one in covered)
    if folder and not held and not any(Path(places.resolve(folder)).glob("*.safetensors")):
        bare.append(f"llm ({folder} has no *.safetensors)")
    if bare:
        raise CheckpointError(
            "nothing to read for " + ", ".join(bare),
            "weights for every part; nothing is left random",
            "name the files of the missing part",
        )


def _types(
    tree: dict[str, Any], given: Given, facts: Mapping[str, str], tell: Tell
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The recipe with the language model opened in the type that it was published in, and the facts with a line about
    it; as they are where the recipe says a type, or the run's precision, itself."""
    llm, run = tree["model"]["llm"], tree.get("run") or {}
    folder = Path(str(llm.get("folder", "")))
    held = given.part(_llm.PART)
    stored = dtypes.commonest(held.values()) or dtypes.stored_in(sorted(folder.glob("*.safetensors")))
    if llm.get("name") != "hf" or "dtype" in llm or "precision" in run or stored not in ("float16", "bfloat16"):
        return tree, facts
    opened = dtypes.opened_as(stored)
    size = sum(tensor.numel() for tensor in held.values() if tensor.is_floating_point())
    line = f"published in {stored}, opened in {opened}" + (f" ({2 * size / 1e9:.1f} GB)" if size else "")
    line += "; trained on with run.precision: bf16, which keeps what trains in float32"
    tell(f"language model: {line}. --set model.llm.dtype=float32 takes twice the memory")
    model = {**tree["model"], "llm": {**llm, "dtype": opened}}
    return {**tree, "model": model, "run": {**run, "precision": "bf16"}}, {**facts, "types": line}


def _speaks(recipe: Recipe, model: models.MultimodalModel) -> None:
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
        f"{' and '.join(wrong)}: the prompt {prompt!r} is none that the tokenizer of the language model can serve: "
        f"{error.seen}",
        f"a prompt that it can: {', '.join(fitting) or 'none of those that are shipped'}",
        f"--option prompt={fitting[0] if fitting else 'PATH'} where the kind has this option, or "
        + " ".join(f"--set {key}={fitting[0] if fitting else 'PATH'}" for key in wrong),
    ) from error


def _wanted(
    model: models.MultimodalModel, recipe: Recipe, imported: Imported
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every name that sources have to give, with a tensor on the meta device: trained ones, and `PART:NAME`; and the
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
                root: nn.Module = registry.find("llm", section.llm.name)(section.llm)
            else:
                published = imported.recipe["model"]["branches"][rest[0]]["encoder"]
                encoder = _as_stored(section.branches[rest[0]].encoder, published)
                root, rest = registry.find("encoders", encoder.name)(encoder), rest[2:]
            state, tied = state_of(submodule(root, ".".join(rest)), name)
            wanted |= state
            aliases |= tied
    return wanted, aliases


# -------------------------------------------------------------------------------------------------------------- out


def send(
    run: Path | str,
    kind: str,
    out: Path | str,
    options: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> Path:
    """Write a run in a published layout into a new folder, read it back and compare; returns the folder.

    Args:
        tell: gets a line for what stays behind, and for how exact the export is.

    Raises:
        ConfigError, UsageError: what was asked for. CheckpointError: a run that the layout has no place for, or that
            becomes another model in it. Nothing is left behind then.
    """
    foreign = importer(kind, options)
    if type(foreign).write is Foreign.write:
        foreign.write(None)  # type: ignore[arg-type]  # raises: this kind has no way out
    with _whole(Path(out)) as (draft, scratch):
        model, _, recipe = store.load_run(run, widen=True)
        opened = Opened(model, recipe, Path(places.resolve(str(run))))
        dtype = foreign.config.dtype or foreign.type_of(opened)
        asked = fidelity.Asked(kind, dtypes.TYPES[dtype], model.llm.depth)
        write(foreign.write(opened), draft, dtype)
        fidelity.check(asked, foreign, opened, draft, scratch, _read_back)
        for line in asked.told():
            tell(line)
    return Path(out)


def _read_back(foreign: Foreign, back: Back, scratch: Path) -> Any:
    """A run folder, or an encoder with its weights, of what an export and its base hold."""
    tree = {**foreign.config.model_dump(mode="json", exclude={"dtype"}), **back.options}
    reader = type(foreign)(configs.validate(type(foreign).Config, tree, "the options of reading back"))
    draft = scratch / "back"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with _making_sense_of(back.sources):
        imported = reader.read(back.sources)
        if set(imported.recipe) == {"encoder"}:
            return _bring_part(imported, draft, (), {})
        make_run(imported, draft, ("model.llm.dtype=float32",), {})
    return draft


def write(exported: Exported, folder: Path, dtype: str = "float32") -> None:
    """Write what an importer made into a folder that is there and empty.

    Args:
        dtype: the one type of all floating tensors.

    Raises CheckpointError for numbers that are not finite, or are not any more in that type.
    """
    files = dict(exported.files)
    if isinstance(plan := files.get("config.json"), dict):
        files["config.json"] = {**plan, "dtype": dtype}
    _write_files(folder, files)
    for name, tensors in exported.tensors.items():
        if not is_file_name(name):
            raise CheckpointError(f"a file called {name!r}", "a plain file name")
        plain = _plain(tensors, dtypes.TYPES[dtype])
        dtypes.require_finite(_leaves(plain), f"{name} in {dtype}")
        if name.endswith(".safetensors"):
            save_file(plain, folder / name, metadata={"format": "pt"})
        else:
            torch.save(plain, folder / name)


def _plain(tree: Any, dtype: torch.dtype) -> Any:
    """Tensors of their own on the CPU, so that neither views nor ties make a file larger or unreadable."""
    if isinstance(tree, Mapping):
        return {key: _plain(value, dtype) for key, value in tree.items()}
    if not isinstance(tree, Tensor):
        return tree
    return tree.detach().to("cpu", dtype if tree.is_floating_point() else None).contiguous().clone()


def _leaves(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        found |= _leaves(value) if isinstance(value, Mapping) else {key: value} if isinstance(value, Tensor) else {}
    return found
