"""Published checkpoints into run folders, and runs into published layouts: the one driver for all importers.

Everything is strict. Names and shapes are compared on the meta device before a byte is written, and one error lists
all mismatches in the published spelling; then the run is built as any other is, by the loaders that will read it
later. A folder appears under its final name when it is complete, or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune import config as configs
from mmtune import disk, dtypes, paths, registry
from mmtune.checkpoint import build_run, fidelity, store, write
from mmtune.checkpoint.build_run import Say
from mmtune.checkpoint.foreign.base import Foreign, Opened, ReadBack, Source
from mmtune.errors import CheckpointError, MmtuneError, UsageError

ROOM = "checkpoint/foreign"
_SENSE = "settings that a model can be made of"
_COMPARE = "compare the JSON files with those that were published"


def importer(layout: str, options: Sequence[str] = ()) -> Foreign:
    """The importer of a kind, with options written as NAME=VALUE.

    Raises ConfigError for an unknown kind, option or value.
    """
    found = registry.find(ROOM, layout)
    tree: dict[str, Any] = {}
    for text in options:
        tree = configs.override(tree, text)
    hint = "`mmtune import --list` shows the options with their defaults"
    return found(configs.validate(found.Config, tree, f"the options of {layout}", hint))


def assign(foreign: Foreign, paths: Sequence[str], scratch: Path) -> dict[str, Source]:
    """The paths of the command line by role: NAME=PATH by name, the others in the order of the roles.

    Raises:
        UsageError: a role without a path, twice, or unknown; a path that does not exist.
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


def import_checkpoint(
    layout: str,
    paths: Sequence[str],
    out: Path | str,
    options: Sequence[str] = (),
    changes: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Path:
    """Make a run folder (or the folder of an encoder) from published files; returns it.

    Args:
        paths: as `assign` takes them.
        options: NAME=VALUE for the importer.
        changes: a.b.c=value for the recipe.
        say: gets a line about the type that the language model is opened in.

    Raises:
        ConfigError, UsageError: mistakes in the arguments, such as a prompt that the tokenizer cannot serve.
        CheckpointError: mistakes in the files.
    """
    out = Path(out)
    foreign = importer(layout, options)
    with _atomic_folder(out) as (draft, scratch):
        sources = assign(foreign, paths, scratch)
        with _named_errors(sources, draft):
            imported = foreign.read(sources)
            facts = {
                "imported from": f"{layout}: " + ", ".join(f"{name} {one.path.name}" for name, one in sources.items()),
                **({"options": ", ".join(options)} if options else {}),
                **imported.facts,
            }
            if foreign.imports == "run":
                build_run.make_run(imported, draft, changes, facts, say)
            else:
                build_run.make_part(imported, draft, changes, facts)
    return out


@contextmanager
def _named_errors(sources: Mapping[str, Source], draft: Path) -> Iterator[None]:
    """Settings in published files go to several libraries, and each fails in its own way on impossible ones: sizes
    below zero, words for numbers, heads that do not divide a width. Raises CheckpointError instead, and names the
    sources where an error names the draft, which is deleted by then."""
    origin = ", ".join(map(str, sources.values()))
    parts = re.compile(re.escape(str(draft)) + r"(?:/parts/(\w+))?")
    try:
        yield
    except OSError:
        raise
    except MmtuneError as error:
        seen = parts.sub(lambda found: str(sources.get(found[1], origin)), error.seen)
        if seen != error.seen:
            raise CheckpointError(seen, error.expected or _SENSE, error.hint or _COMPARE) from error
        error.expected, error.hint = error.expected or _SENSE, error.hint or _COMPARE
        raise
    except Exception as error:
        raise CheckpointError(
            f"{origin}: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            _SENSE,
            f"{_COMPARE}; MMTUNE_DEBUG=1 shows where this happened",
        ) from error


@contextmanager
def _atomic_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """A draft folder beside `out` that becomes `out` at the end, and a scratch folder; a failure deletes both."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "a new or empty folder", "give another --out")
    out = Path(os.path.abspath(out))
    draft, scratch = (out.with_name(f".{out.name}.{what}") for what in ("draft", "scratch"))
    try:
        for folder in (draft, scratch):
            disk.remove(folder)
            folder.mkdir(parents=True)
        yield draft, scratch
        if out.exists():
            out.rmdir()
        os.rename(draft, out)
        disk.flush(out.parent)
    finally:
        disk.remove(scratch)
        disk.remove(draft)


# -------------------------------------------------------------------------------------------------------------- out


def export_checkpoint(
    run: Path | str,
    layout: str,
    out: Path | str,
    options: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Path:
    """Write a run in a published layout into a new folder, read it back and compare; returns the folder.

    Args:
        say: gets a line for each part that the export leaves out, and one on how exact the export is.

    Raises:
        ConfigError, UsageError: mistakes in the arguments. CheckpointError: a run that the layout cannot hold, or that
        would be another model in it. No file is left then.
    """
    _check_written(layout)  # before anything slow begins
    model, _, recipe = store.load_run(run, widen=True)
    return export_opened(Opened(model, recipe, Path(paths.resolve(str(run)))), layout, out, options, say)


def export_opened(
    run: Opened, layout: str, out: Path | str, options: Sequence[str] = (), say: Say = lambda line: None
) -> Path:
    """`export_checkpoint` for a run in memory, held in float32; its weights are gone afterwards."""
    _check_written(layout)
    foreign = importer(layout, options)
    with _atomic_folder(Path(out)) as (draft, scratch):
        _check_layers(foreign, layout, run)
        dtype = foreign.config.dtype or foreign.type_of(run)
        comparison = fidelity.Comparison(layout, dtypes.TYPES[dtype], run.model.llm.depth)
        write.write_export(foreign.write(run), draft, dtype)
        fidelity.check(comparison, foreign, run, draft, scratch, _read_back)
        for line in comparison.report():
            say(line)
    return Path(out)


def _check_written(layout: str) -> None:
    if not writes(registry.find(ROOM, layout)):
        raise UsageError(
            f"{layout} is read only", "a kind that can be written", f"--kind with one of {', '.join(layouts_out())}"
        )


def _check_layers(foreign: Foreign, layout: str, run: Opened) -> None:
    """Raise CheckpointError for features of several layers, in a layout that would take them for those of one."""
    several = {name: branch.encoder.layers for name, branch in run.model.branches.items() if branch.encoder.layers > 1}
    if several and not foreign.several_layers:
        told = ", ".join(f"branch {name}: {layers} layers side by side" for name, layers in several.items())
        kinds = [one for one in layouts_out() if registry.find(ROOM, one).several_layers]
        raise CheckpointError(
            f"encoders with `layers` ({told})",
            f"features of one layer: {layout} has no word for several",
            f"export to {' or '.join(kinds)}, or keep the run folder: `mmtune chat` and `mmtune eval` take it as it is",
        )


def writes(layout: type[Foreign]) -> bool:
    """Whether an importer can also export."""
    return layout.write is not Foreign.write


def layouts_out() -> list[str]:
    """Layouts that a run can be exported to."""
    return [layout for layout in registry.names(ROOM) if writes(registry.find(ROOM, layout))]


def _read_back(foreign: Foreign, back: ReadBack, scratch: Path) -> tuple[dict[str, Any], fidelity.Make]:
    """The recipe of an export with its base, as a tree, and the function that builds it."""
    tree = {**foreign.config.model_dump(mode="json", exclude={"dtype"}), **back.options}
    reader = type(foreign)(configs.validate(type(foreign).Config, tree, "the options of reading back"))
    draft = scratch / "back"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with _named_errors(back.sources, draft):
        imported = reader.read(back.sources)

    def make() -> Any:
        with _named_errors(back.sources, draft):
            if reader.imports == "encoder":
                return build_run.make_part(imported, draft)
            return build_run.make_model(imported, draft, ("model.llm.dtype=float32",))

    return imported.recipe, make
