"""Ask a model the questions of a task, score the answers, and write a report with intervals.

Each medium is decoded and encoded once; its features serve all questions about it and all controls that keep its
frames. Answers are greedy and decoded in batches.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmtune import config, disk, paths, registry
from mmtune.addresses import without_secrets
from mmtune.checkpoint.store import load_run
from mmtune.data.formats.base import unreadable
from mmtune.data.shards import Corpus
from mmtune.errors import DataError, MediaError, Note, UsageError
from mmtune.eval import controls as ctl
from mmtune.eval import instructions, report
from mmtune.eval.answers import ask, fits
from mmtune.eval.metrics import Mark
from mmtune.eval.tasks.base import Outcome, Question, Task
from mmtune.items import encode_item, use_features
from mmtune.types import MediaRef, Sample

if TYPE_CHECKING:
    from mmtune.media import Limits
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor
    from mmtune.recipe import Recipe

CLIPS = 32
"""Records asked about at a time: enough for full batches, few enough to have their frames in memory."""


class Adviser(Protocol):
    """Adds the findings of experts about its media to a sample."""

    def within(self, limits: Limits | None) -> None:
        """Media may cost so much; the usual for none."""

    def advise(self, sample: Sample) -> Sample:
        """The sample with quotes after its media."""

    def record(self) -> dict[str, Any]:
        """The statistics so far, for the report."""


@dataclass
class _Account:
    """Skipped records by reason, and notes on unusual media that were used."""

    skipped: Counter[str] = field(default_factory=Counter)
    unusual: Counter[str] = field(default_factory=Counter)
    first: str = ""
    """What was wrong with the first record that was left out."""


@dataclass
class _Tally:
    """The results under one control."""

    marks: list[Mark] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    run: Path | str | tuple[MultimodalModel, Processor],
    task: str | Task | None = None,
    data: Sequence[str] = (),
    limit: int | None = None,
    blind: bool = False,
    frames: str | None = None,
    other_media: bool = False,
    controls: Sequence[str] | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    max_tokens: int | None = None,
    quiet: bool = False,
    experts: Adviser | None = None,
    types: Sequence[str] = (),
    allow_remote: bool = False,
) -> dict[str, Any]:
    """Score a model on a task; print the tables and write the report.

    Args:
        run: the folder of a run, or (model, processor).
        task: a name from the room `eval/tasks`, with options as NAME:KEY=VALUE,..., or a task; the one of the run's
            recipe when not given.
        data: shard patterns; a run's recipe may name them instead.
        limit: most records asked about, from the first on.
        blind, frames, other_media: ask under this control; see `mmtune.eval.controls`.
        controls: several at once, such as `CONTROLS`; not together with the three arguments above.
        out: file for the report; for a run folder `eval/<task>.json` in it when not given. The answers are written
        beside it as JSON lines, in a file of the same name that ends in .answers.jsonl.
        max_tokens: longest answer; that of the task when not given.
        quiet: print nothing.
        experts: adds findings about its media to a sample; all questions are then asked once more with them, and
        with them alone if the control blind is asked for.
        types: ask only questions of these types; all when none are given.
        allow_remote: contact addresses that only the recipe of the run names.

    Returns:
        The report as plain data, as it is written.

    Raises:
        UsageError: no data, an unknown control, or no usable record.
    """
    asked = _controls(blind, frames, other_media, controls)
    folder = Path(run) if isinstance(run, (str, Path)) else None
    model, processor, recipe = load_run(folder, device) if folder else (*run, None)
    task = _task(task, recipe)
    target = Path(out) if out else _reports(folder) / f"{task.config.name}.json" if folder else None
    max_tokens = max_tokens or task.config.max_tokens
    patterns, own = list(data) or _from_recipe(recipe, allow_remote), bool(data)
    started = time.perf_counter()
    account = _Account()
    tallies: dict[str, _Tally] = {control: _Tally() for control in asked}
    if experts is not None:
        experts.within(processor.limits)
        tallies |= {row: _Tally() for row in (ctl.EXPERTS, *[ctl.EXPERTS_BLIND] * ("blind" in asked))}
    tallies |= {row: _Tally() for row in instructions.rows(task)}
    records = 0
    memo = _Memo()
    with torch.inference_mode(), use_features(model, [processor], memo):
        spare: list[MediaRef] = []
        for chunk in _chunks(_usable(task, patterns, limit, account, types, own)):
            spare = _ask(model, processor, memo, chunk, tallies, spare, account, task, max_tokens, experts)
            records += len(chunk)
    if not records:
        raise _nothing_usable(task, patterns, account)
    result = {
        **_settings(task, folder, patterns, max_tokens),
        "records": records,
        "skipped": dict(account.skipped),
        "unusual": dict(account.unusual),
        **({"experts": experts.record()} if experts is not None else {}),
        "seconds": round(time.perf_counter() - started, 2),
        **_results(task, tallies),
    }
    if not quiet:
        print(report.text(result))
    if target is not None:
        if not out:
            disk.folder(target.parent)
        answers = _write(target, result)
        if not quiet:
            print(f"written to {target}, the answers to {answers}")
    return result


def _nothing_usable(task: Task, patterns: Sequence[str], account: _Account) -> UsageError:
    """The error of an evaluation without a question, with what the first record lacks."""
    seen = f"no record of {', '.join(without_secrets(patterns))} can be asked about: {dict(account.skipped)}"
    seen += f"; the first: {account.first}" if account.first else ""
    spelled = getattr(getattr(task.config, "format", None), "name", None)
    hint = f"they are read as `{spelled}`; --task {task.config.name}:format=NAME says otherwise" if spelled else ""
    return UsageError(seen, "one at least", hint)


def _settings(task: Task, folder: Path | None, patterns: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """What was asked of whom."""
    return {
        "task": task.config.model_dump(mode="json"),
        "run": str(folder) if folder else None,
        "data": without_secrets(patterns),
        "max_tokens": max_tokens,
    }


def _results(task: Task, tallies: Mapping[str, _Tally]) -> dict[str, Any]:
    """What came of it: scores and answers under every control, and by wording where there are several."""
    result = {
        "right": _right(task, tallies),
        **report.summary({control: tally.marks for control, tally in tallies.items()}),
        "measures": {
            control: report.measures(task, tally.marks, tally.outcomes)
            for control, tally in tallies.items()
            if tally.outcomes
        },
        "answers": {control: tally.answers for control, tally in tallies.items()},
    }
    if wordings := instructions.rows(task):
        measured = {row: result["measures"][row]["overall"] for row in wordings if row in result["measures"]}
        result["instructions"] = {"texts": wordings, "measures": instructions.spread(measured)}
    return result


def _right(task: Task, tallies: Mapping[str, _Tally]) -> str | None:
    """The score by which every answer is right or wrong; None if an answer lacks it."""
    judged = [task.is_right(one.scores) for tally in tallies.values() for one in tally.outcomes]
    return None if None in judged else task.right or "accuracy"


def _task(task: str | Task | None, recipe: Recipe | None) -> Task:
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        tree = config.spec(task, "task", "eval/tasks", "qa:format=caption")
        chosen = registry.find("eval/tasks", tree["name"]).Config
        spelled = {config.dump(one.format): one.format for one in recipe.streams.values()} if recipe else {}
        if "format" in chosen.model_fields and len(spelled) == 1:
            tree.setdefault("format", next(iter(spelled.values())))  # the format by which the run read its data
        settings = config.validate(chosen, tree, f"the task {task}")
    elif recipe is not None and recipe.eval.task is not None:
        settings = recipe.eval.task
    else:
        known = ", ".join(registry.names("eval/tasks"))
        raise UsageError(seen="no task", expected=f"one of {known}", hint="--task qa asks one's own records")
    return registry.find("eval/tasks", settings.name)(settings)


def _reports(run: Path) -> Path:
    """The folder of reports in a run. Raises UsageError for a link, which may lead out of the run, before asking."""
    if (run / "eval").is_symlink():
        raise UsageError(f"{run / 'eval'} is a link", "a folder, or nothing of that name", "remove it, or give --out")
    return run / "eval"


def _write(target: Path, result: Mapping[str, Any]) -> Path:
    """The report, and beside it the answers, a line each; returns where these are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    disk.write_file(target, json.dumps(result, indent=1))
    lines = target.with_name(f"{target.stem}.answers.jsonl")
    rows = ({"control": control, **row} for control, answers in result["answers"].items() for row in answers)
    disk.write_file(lines, "".join(json.dumps(row) + "\n" for row in rows))
    return lines


def _controls(
    blind: bool, frames: str | None, other_media: bool, several: Sequence[str] | None
) -> tuple[ctl.Control, ...]:
    if several is not None:
        return ctl.check(several) or ("plain",)
    one = ctl.check([*["blind"] * blind, *([frames] if frames else []), *["other_media"] * other_media])
    if len(one) > 1:
        raise UsageError(
            seen=f"the controls {', '.join(one)} together",
            expected="one at a time",
            hint="controls=[...] asks under several, one after the other",
        )
    return one or ("plain",)


def _from_recipe(recipe: Recipe | None, allow_remote: bool) -> list[str]:
    patterns = list(recipe.eval.data) if recipe is not None else []
    if not allow_remote:
        paths.refuse_unasked(patterns)
    if not patterns:
        raise UsageError(seen="no data to ask about", expected="shards of the task", hint="--data 'FOLDER/*.tar'")
    return patterns


def _usable(
    task: Task,
    patterns: Sequence[str],
    limit: int | None,
    account: _Account,
    types: Sequence[str],
    write: bool,
) -> Iterator[list[Question]]:
    """The questions of each record, in the order of the shards; records that cannot be used are counted by reason.

    write: write indexes beside shards; false where only a recipe named these.
    """
    corpus = Corpus(list(patterns), say=lambda text: print(text, file=sys.stderr), write=write)
    for key in islice(corpus.samples(), limit):
        try:
            with unreadable(corpus.id(key), f"the task {task.config.name}"):
                questions = list(task.questions([corpus.record(key)]))
        except DataError as error:
            account.skipped[error.reason.value] += 1
            account.first = account.first or error.seen
            continue
        questions = [question for question in questions if not types or question.type in types]
        if questions:
            yield questions


def _chunks(questions: Iterable[list[Question]]) -> Iterator[list[list[Question]]]:
    chunk: list[list[Question]] = []
    for one in questions:
        chunk.append(one)
        if len(chunk) == CLIPS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Memo:
    """Features of the current media, by reference; the processor takes them instead of decoding."""

    def __init__(self) -> None:
        self.features: dict[int, Tensor] = {}

    def get(self, branch: str, ref: MediaRef) -> Tensor | None:
        return self.features.get(id(ref))


def _ask(
    model: MultimodalModel,
    processor: Processor,
    memo: _Memo,
    chunk: list[list[Question]],
    tallies: dict[str, _Tally],
    spare: list[MediaRef],
    account: _Account,
    task: Task,
    max_tokens: int,
    experts: Adviser | None,
) -> list[MediaRef]:
    """Ask one chunk under every control; returns media that a next chunk of one record may borrow."""
    prepared = {}
    for index, questions in enumerate(chunk):
        refs = {id(ref): ref for question in questions for ref in question.sample.media}
        notes: Counter[Note] = Counter()
        try:
            prepared.update(
                {key: (ref, processor.branch_of(ref), processor.prepare(ref, notes=notes)) for key, ref in refs.items()}
            )
        except (DataError, MediaError) as error:
            account.skipped[error.reason.value] += 1
            chunk[index] = []
        else:
            account.unusual.update(str(note) for note in notes.elements())
    refs = [ref for ref, _, _ in prepared.values()]
    for ref in spare:
        prepared.setdefault(id(ref), (ref, processor.branch_of(ref), processor.prepare(ref)))
    true = memo.features = _encode(model, prepared, "plain")
    chunk[:] = [kept for one in chunk if (kept := [q for q in one if fits(processor, q, task, account.skipped)])]
    if not chunk:
        return spare
    advised: list[Sample] = []
    wordings = instructions.rows(task)
    for control, tally in tallies.items():
        memo.features = _encode(model, prepared, control) if control in ("shuffled", "reversed") else true
        questions = [question for one in chunk for question in one]
        samples = [question.sample for question in questions]
        if control == "blind":
            samples = [ctl.without_media(sample) for sample in samples]
        elif control == "other_media":
            others = ctl.next_of_kind(refs, spare)
            samples = [ctl.swap(sample, others) for sample in samples]
        elif control in (ctl.EXPERTS, ctl.EXPERTS_BLIND) and experts is not None:
            advised = advised or [_advised(processor, experts, sample) for sample in samples]
            samples = [ctl.without_media(one) for one in advised] if control == ctl.EXPERTS_BLIND else advised
        elif control in wordings:
            samples = [instructions.reworded(sample, wordings[control]) for sample in samples]
        answers = ask(model, processor, task, questions, samples, max_tokens)
        for question, answer in zip(questions, answers, strict=True):
            text, scores = answer.text, task.judge(question, answer.text)
            tally.outcomes.append(Outcome(question, text, scores, answer.nats, answer.tokens, answer.choices))
            right = task.is_right(scores)
            medium = "+".join(sorted({ref.kind for ref in question.sample.media}))
            tally.marks.append(Mark(question.type, question.temporal, bool(right), text, question.answers[0], medium))
            asked = " ".join(part for part in question.sample.turns[-1].parts if isinstance(part, str))
            tally.answers.append(
                {
                    "id": question.id,
                    "type": question.type,
                    "temporal": question.temporal,
                    "question": asked,
                    "answer": text,
                    "truth": question.answers[0],
                    "right": right,
                    "scores": scores,
                    **({"nats": answer.nats, "tokens": answer.tokens} if task.likelihood else {}),
                    **({"choices": answer.by_choice(question)} if question.choices else {}),
                }
            )
    return list({ref.kind: ref for ref in (*spare, *refs)}.values())


def _advised(processor: Processor, experts: Adviser, sample: Sample) -> Sample:
    """The sample with the experts' findings, or unchanged if it would be too long or cannot be tokenized with them."""
    advised = experts.advise(sample)
    try:
        processor.example(advised, answer=True)
    except DataError:
        return sample
    return advised


def _encode(
    model: MultimodalModel, prepared: dict[int, tuple[MediaRef, str, Tensor]], control: ctl.Control
) -> dict[int, Tensor]:
    """Features [F,N,E] of each item, its frames in the order of the control."""
    return {
        key: encode_item(model.branches[branch].encoder, item[ctl.order(control, len(item), ref.origin)])
        for key, (ref, branch, item) in prepared.items()
    }
