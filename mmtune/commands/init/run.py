"""From answers to a recipe: reads samples, chooses parts, builds the model without weights, writes the file last."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune import config, disk, registry
from mmtune.addresses import without_secrets
from mmtune.commands.init import leaving, parts, text
from mmtune.data import shards
from mmtune.errors import CheckpointError, ConfigError, MmtuneError, UsageError
from mmtune.types import KINDS, Kind, Sample

if TYPE_CHECKING:
    from mmtune.data.peek import Seen
    from mmtune.recipe import Recipe

STREAMS = {"llava": "instruct", "caption": "caption", "alpaca": "text"}
"""Format to the name of its stream."""
ASKED = {"image": "Describe the picture.", "video": "Describe the video.", "audio": "Describe the sound."}
"""The user's text after a medium that has a caption, by kind."""
LENGTH = 2048
"""Tokens of an example where data or parts are not on this machine, so that none can be measured."""
TRIED = 8
"""Samples of each stream and of each set of kinds of media that are measured."""
STEPS = 100
"""Fewest steps; a small data set gets more epochs."""
HELD_OUT = 50
"""Number of samples from which some are held out for validation."""


@dataclass
class Answers:
    """Answers from the command line or from the person at the terminal."""

    llm: str
    encoders: tuple[str, ...]
    data: tuple[str, ...]
    method: str
    out: Path
    connector: str | None = None
    prompt: str | None = None
    epochs: float | None = None
    hold_out: float | None = None
    """Fraction of the samples for validation; None decides by their number, 0 holds out none."""
    kinds: tuple[str, ...] = ()
    """Kinds of media of data that are not on this machine."""


def run(answers: Answers) -> None:
    """Write the recipe and print a summary and what to type next.

    Raises:
        UsageError: an answer that cannot be used, or a file that is there already.
        ConfigError, DataError, ModelError, CheckpointError: raised by the parts or the data.
    """
    _check(answers)
    seen = _seen(answers)
    tree = _tree(answers, seen)
    told = [f"{', '.join(without_secrets(data))}: {_said(found)}" for data, found in seen]
    fitted, notes, layout = _fit(tree, seen, answers)
    source = _head(answers) + text.written(fitted, _REMARKS)
    config.validate(_recipe(), config.parse(source, str(answers.out)), str(answers.out))
    disk.write_file(answers.out, source)
    notes = [*notes, *parts.reference_notes(fitted)]
    print("\n".join([*told, *notes, f"{answers.out} is written", "", *_next(answers, fitted, layout)]))


def check_method(method: str) -> None:
    """Raises UsageError for an unknown method."""
    if method not in parts.METHODS:
        raise UsageError(f"--method {method}", f"one of {', '.join(parts.METHODS)}")


def check_out(out: Path) -> None:
    """Raises UsageError for a path that is not a new YAML file."""
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {out}", "the name of a YAML file", f"--out {out}.yaml")
    if out.exists():
        raise UsageError(f"{out} is there already", "the name of a new file", "another --out, or remove it")


def check_prompt(llm: str, prompt: str | None) -> None:
    """Raises UsageError for an unknown prompt; None takes the one that the language model's files tell."""
    if prompt is None:
        parts.prompt(llm)
    elif prompt not in registry.shipped("prompts"):
        raise UsageError(f"--prompt {prompt}", registry.suggest(prompt, registry.shipped("prompts"), "prompts"))


def check_encoders(names: Sequence[str]) -> None:
    """Raises UsageError for an encoder that no entry reads."""
    for name in names:
        if name != parts.POCKET:
            parts.entry(name)


def check_data(patterns: Sequence[str]) -> None:
    """Raises DataError and UsageError for missing shards; cards and addresses are checked later."""
    from mmtune.data.patterns import expand
    from mmtune.recipe import is_card

    expand([name for name in patterns if "://" not in name and not is_card(name)])


def _check(answers: Answers) -> None:
    check_method(answers.method)
    check_out(answers.out)
    if strange := [kind for kind in answers.kinds if kind not in KINDS]:
        raise UsageError(f"--kinds {','.join(strange)}", f"some of {', '.join(KINDS)}, with commas between")
    if answers.connector:
        registry.find("connectors", answers.connector)


def _recipe() -> type[Recipe]:
    from mmtune.recipe import Recipe

    return Recipe


# ------------------------------------------------------------------------------------------------------------ data


def _seen(answers: Answers) -> list[tuple[tuple[str, ...], Seen | None]]:
    """Each piece of data with its contents, those of one format together; None for data not on this machine."""
    from mmtune.data.peek import look
    from mmtune.recipe import Card, is_card

    found: dict[str, tuple[tuple[str, ...], Seen | None]] = {}
    for name in answers.data:
        if is_card(name) and name not in registry.shipped("cards") and Path(name).exists():
            name = f"./{name}"
        card = config.load(Card, name, builtin="cards") if is_card(name) else None
        try:
            seen = look(card.patterns() if card else [name])
        except MmtuneError as error:
            absent = "://" in name or card is not None
            if not absent:
                raise
            if not answers.kinds:
                raise UsageError(
                    f"{name} cannot be looked at here: {error.seen}",
                    "data on this machine, or --kinds with what its records hold",
                    f"--kinds image, or some of {', '.join(KINDS)} with commas between",
                ) from error
            seen = None
        spelled = card.format.name if card else seen.format if seen else "llava"
        if spelled in found:
            names, before = found[spelled]
            both = before.with_more(seen) if before else seen.with_more(None) if seen else None
            found[spelled] = ((*names, name), both)
        else:
            found[spelled] = ((name,), seen)
    return list(found.values())


def _said(seen: Seen | None) -> str:
    if seen is None:
        return "not on this machine, so not looked at"
    media = ", ".join(f"{count} {kind}" for kind, count in seen.kinds.items()) or "text alone"
    refused = seen.records - len(seen.samples)
    lost = f"; {refused} cannot be used, the first: {seen.refused}" if refused > 0 else ""
    shards = f"{seen.shards} shard{'' if seen.shards == 1 else 's'}"
    return f"{shards}; of {seen.records} records {len(seen.samples)} are `{seen.format}` with {media}{lost}"


# ---------------------------------------------------------------------------------------------------------- recipe


def _tree(answers: Answers, seen: Sequence[tuple[tuple[str, ...], Seen | None]]) -> dict[str, Any]:
    counted: Counter[Kind] = Counter()
    counted.update(answers.kinds)  # type: ignore[arg-type]
    for _, found in seen:
        counted.update(found.kinds if found else {})
    kinds = [kind for kind in KINDS if counted[kind]]
    small = answers.llm == parts.POCKET
    llm = parts.llm(answers.llm)
    prompt = answers.prompt or parts.prompt(answers.llm)
    changes = parts.tune(answers.method, parts.depth_of(llm), small)
    branches = parts.branches(answers.encoders, kinds, answers.connector)
    groups = changes["groups"]
    if not branches and "connector" in groups:
        del groups["connector"]
    if not groups:
        raise UsageError(
            "data with text alone, and --method connector", "media, or a method that trains more", "--method lora"
        )
    streams = {}
    for data, found in seen:
        name = found.format if found else "llava"
        objective = {"objective": {"name": "dpo"}} if name == "preference" else {}
        format = _format(name, kinds)
        streams[STREAMS.get(name, name)] = {"data": list(data), "format": format, "prompt": prompt, **objective}
    if answers.method == "adapter_v2" and {"caption"} < set(streams):
        groups["sight"]["streams"] = ["caption"]
        groups["speech"]["streams"] = [stream for stream in streams if stream != "caption"]
    model = {"branches": branches, "llm": llm, "fusion": changes["fusion"]}
    return {
        "title": f"{answers.method} training of {answers.llm} on {', '.join(without_secrets(answers.data))}",
        "model": model | ({"tuners": changes["tuners"]} if changes["tuners"] else {}),
        "streams": streams,
        "groups": groups,
        "schedule": {"epochs": answers.epochs or 1, "warmup": 10, "lr_schedule": "cosine"},
        "run": {
            "length": LENGTH,
            "too_long": "turns",
            "batch_tokens": 4 * LENGTH,
            "accumulate": 1,
            "precision": "fp32" if small else "bf16",
            "save_every": 500,
            "workers": 2,
            **({"feature_cache": "runs/features"} if branches else {}),
        },
        "chat": {"max_tokens": 80 if small else 256},
    }


def _format(name: str, kinds: Sequence[Kind]) -> dict[str, Any]:
    asked = [ASKED[kind] for kind in kinds if kind in ASKED]
    return {"name": name, **({"prompts": asked} if name == "caption" and len(asked) == 1 else {})}


def _fit(
    tree: dict[str, Any], seen: Sequence[tuple[tuple[str, ...], Seen | None]], answers: Answers
) -> tuple[dict[str, Any], list[str], str | None]:
    """The tree with lengths and epochs that fit the data, lines about the model built without weights, and the
    published layout that can hold it, if there is one."""
    from mmtune import model as models
    from mmtune import params
    from mmtune.checkpoint.store import groups_of

    recipe = config.validate(_recipe(), tree, "the recipe")
    try:
        model = models.build(recipe.model, weights=False, device="meta")
    except CheckpointError as error:  # a repository that was not fetched, on a machine without network
        if all(name == parts.POCKET or parts.is_path(name) for name in _names(answers)):
            raise
        return tree, [f"not built, because a part is not here: {error.seen.splitlines()[0]}"], None
    table = params.table(model, groups_of(model, recipe)).splitlines()[-1]
    lengths = _lengths(recipe, model, seen)
    kind, told = leaving.layout(recipe, model)
    if not lengths:
        return tree, [f"lengths were not measured; run.length = {LENGTH} is a guess", table, told], kind
    longest, mean = max(lengths), sum(lengths) / len(lengths)
    length = max(256, -(-longest * 5 // 4 // 64) * 64)
    rows = 8 if tree["run"]["precision"] == "fp32" else 4
    tree["run"] |= {"length": length, "batch_tokens": rows * length}
    found = [one for _, one in seen if one is not None]
    whole = all(one.whole for one in found) and len(found) == len(seen)
    samples = sum(len(one.samples) for one in found)
    if whole:
        steps = samples / max(1.0, rows * length / mean)  # of one epoch
        if answers.epochs is None:
            tree["schedule"]["epochs"] = max(1, min(500, round(STEPS / max(steps, 1e-3))))
    notes = [f"samples have up to {longest:,} tokens", table, told]
    hold_out = answers.hold_out
    if hold_out is None:
        hold_out = 0.0 if whole and samples < HELD_OUT else 0.05
    if hold_out:
        if whole:
            hold_out, count = _split(found, hold_out)
            notes.append(f"held out for validation: {count} of {samples} samples")
        tree["eval"] = {"every": 100 if rows == 8 else 500, "fraction": hold_out}
        tree["chat"] = tree.pop("chat")  # the last section, as in `Recipe`
    return tree, notes, kind


def _split(found: Sequence[Seen], part: float) -> tuple[float, int]:
    """The fraction nearest to `part` that leaves a sample on either side of every stream, and how many it holds out.

    A hash of their names chooses the samples, so that of a few samples a fraction may choose none, or all.
    """
    numbers = [sorted(shards.drawn(sample.id) for sample in one.samples) for one in found]
    least, most = max(each[0] for each in numbers), min(each[-1] for each in numbers)
    if math.ceil(least * 1e4) > math.floor(most * 1e4):
        raise UsageError(
            f"--hold-out {part:g} where a stream has {min(map(len, numbers))} of the samples",
            "a sample on either side of every stream",
            "more data, or --hold-out 0",
        )
    part = min(max(part, math.ceil(least * 1e4) / 1e4), math.floor(most * 1e4) / 1e4)
    return part, sum(number < part for each in numbers for number in each)


def _names(answers: Answers) -> list[str]:
    return [answers.llm, *(parts.entry_and_weights(name)[1] for name in answers.encoders)]


def _lengths(recipe: Recipe, model: Any, seen: Sequence[tuple[tuple[str, ...], Seen | None]]) -> list[int]:
    """Tokens of the first samples of each stream, as in training. Raises the error that makes all of them unusable."""
    from mmtune.checkpoint import store

    lengths: list[int] = []
    for (_, found), stream in zip(seen, recipe.streams.values(), strict=True):
        if found is None:
            continue
        try:
            processor = store.processor_for(recipe, model, stream.prompt)
        except CheckpointError:  # a language model of known structure, whose tokenizer is not on this machine
            return []
        processor.length = None
        faults: list[MmtuneError] = []
        tried = _various(found.samples)
        for sample in tried:
            try:
                lengths.append(len(processor.example(sample)))
            except ConfigError:
                raise
            except MmtuneError as error:
                faults.append(error)
                print(f"cannot be used: {error.seen}", file=sys.stderr)
        if len(faults) == len(tried):
            raise faults[0]
    return lengths


def _various(samples: Sequence[Sample]) -> list[Sample]:
    """Some samples for each set of kinds of media, since lengths differ by kind."""
    taken: Counter[tuple[Kind, ...]] = Counter()
    various = []
    for sample in samples:
        kinds = tuple(sorted({medium.kind for medium in sample.media}))
        taken[kinds] += 1
        various += [sample] if taken[kinds] <= TRIED else []
    return various


# ------------------------------------------------------------------------------------------------------------ text

_REMARKS = {
    "schedule.epochs": "passes over the data; or steps: 1000 in its place",
    "schedule.warmup": "steps over which the learning rate rises",
    "run.length": "most tokens of an example, those of media included",
    "run.batch_tokens": "tokens of a micro-step; less of them needs less memory",
    "run.accumulate": "micro-steps in a step: more of them is a larger batch at the same memory",
    "run.save_every": "steps between states that `mmtune train --resume` reads",
    "run.workers": "processes that prepare data",
    "run.feature_cache": "folder for what frozen encoders make of the media, so that each is decoded once; or null",
    "groups": "what trains, and how fast; `mmtune show FILE --groups` lists it",
    "groups.*.match": "globs over parameter names, or @NAME for what a tuner added",
    "groups.*.lr": "peak of the learning rate",
    "model.branches.*.encoder": "frozen; its options: mmtune list encoders NAME",
    "model.branches.*.connector": "trained; others: mmtune list connectors",
    "model.llm": "a folder, or the name of a repository under `repo`",
    "model.fusion": "how media enter the language model: mmtune list fusion",
    "model.tuners": "what is added to the language model: mmtune list tuners NAME",
    "streams.*.data": "shards; `mmtune data convert` makes them",
    "streams.*.format": "how a record is read: mmtune list data/formats NAME",
    "streams.*.prompt": "how a conversation is written for this language model: mmtune list prompts",
    "eval.every": "steps between validations on what is held out",
    "eval.fraction": "part of the samples that is never trained on",
}


def _head(answers: Answers) -> str:
    return (
        "# Written by `mmtune init`. Every setting can be changed here, or on the command line as schedule.epochs=2.\n"
        "# mmtune list sections NAME shows all settings of a section; mmtune show FILE what this one builds.\n"
    )


def _next(answers: Answers, tree: dict[str, Any], layout: str | None) -> list[str]:
    file = shlex.quote(str(answers.out))
    run = shlex.quote(f"runs/{answers.out.stem}")
    away = shlex.quote(f"{answers.out.stem}-{layout}")
    several = len(tree["streams"]) > 1
    checks = [
        f"mmtune data check {' '.join(map(shlex.quote, without_secrets(section['data'])))} --recipe {file}"
        + (f" --stream {name}" if several else "")
        for name, section in tree["streams"].items()
    ]
    patterns = [name for section in tree["streams"].values() for name in without_secrets(section["data"])]
    every = " ".join(f"--data {shlex.quote(name)}" for name in patterns)
    return [
        *checks,
        f"mmtune train {file} --out {run}",
        f"mmtune eval {run} --task qa {every}",
        f"mmtune chat {run}",
        *([f"mmtune export {run} --layout {layout} --out {away}"] if layout else []),
    ]
