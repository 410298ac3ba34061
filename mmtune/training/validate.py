"""Validation while training: the loss of held-out data, and the questions of a task, every so many steps.

It changes nothing of the run: no weight, no random number, no position in the data; what it finds goes into the
metrics, and what cannot be used into the ledger under its own name. A run that is stopped during a validation does that
validation first when it goes on.

Every rank takes its part of the samples and all ranks come to the same sums. A task is asked on the first rank, or on
all of them alike where the model is cut over the ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtune import random_state, registry
from mmtune.collate import collate
from mmtune.data.build import batch_spec_of, held_out_sections
from mmtune.data.ledger import Ledger
from mmtune.data.loader import Loader, Skip, Stream
from mmtune.data.pack import BatchSpec, Packer
from mmtune.data.prefetch import prepared
from mmtune.errors import DataError, Reason
from mmtune.eval.run import evaluate
from mmtune.training import terms
from mmtune.training.resume import seed_step
from mmtune.types import Batch, Example

if TYPE_CHECKING:
    from mmtune.eval.tasks.base import Task
    from mmtune.model import MultimodalModel
    from mmtune.objectives.base import Objective
    from mmtune.processor import Processor
    from mmtune.recipe import Recipe
    from mmtune.training.distributed import Runtime


@dataclass
class _Tally:
    """Sums over the held-out samples of one stream."""

    objective: Objective
    sums: dict[str, float] = field(default_factory=dict)
    """By term of the objective, and by measure."""
    counts: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> None:
        """Take in the terms of a batch."""
        for term, count in counts.items():
            self.sums[term] = self.sums.get(term, 0.0) + float(sums[term])
            self.counts[term] = self.counts.get(term, 0.0) + float(count)

    @property
    def weight(self) -> float:
        return terms.primary(self.counts)

    @property
    def loss(self) -> float:
        return terms.total(self._of_loss(self.sums), self._of_loss(self.counts))

    def values(self, name: str) -> dict[str, float]:
        """What is logged of the stream of this name."""
        several = terms.means(self._of_loss(self.sums), self._of_loss(self.counts))
        measures = terms.measured(self.objective, self.sums, self.counts)
        return {
            f"{name}/loss": _mean([self]),
            f"{name}/samples": self.samples,
            **{f"{name}/loss/{term}": mean for term, mean in several.items()},
            **{f"{name}/{measure}": mean for measure, mean in measures.items()},
        }

    def _of_loss(self, values: Mapping[str, float]) -> dict[str, float]:
        return terms.lost(self.objective, values)


class Validator:
    """Measures a model that is being trained.

    Args:
        streams: what `mmtune.data.build.held_out_of` gave.
        objectives: by stream that is trained on.
        processor: for the conversations of the task.
        ledger: takes held-out samples that cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: MultimodalModel,
        runtime: Runtime,
        streams: Sequence[Stream],
        objectives: Mapping[str, Objective],
        processor: Processor,
        ledger: Ledger,
    ) -> None:
        self._section, self._model, self._runtime, self._ledger = recipe.eval, model, runtime, ledger
        self._processor, self.streams = processor, list(streams)
        self._objectives = {name: objectives[like] for name, like in held_out_sections(recipe).items()}
        spec = batch_spec_of(recipe)
        self._spec = BatchSpec(rows=max(1, spec.rows // runtime.world), length=spec.length)
        pad = model.llm.tokenizer.pad
        self._loader = Loader(streams, spec, workers=recipe.run.workers, pad=pad) if streams else None
        self.task = task_of(recipe) if recipe.eval.data else None

    def check(self) -> None:
        """Look for a sample of each held-out stream that can be used, before a run works for hours towards its first
        validation. Raises DataError where there is none."""
        for stream in self.streams:
            skipped, positions = list[dict[str, Any]](), range(min(self._section.limit, len(stream.corpus)))
            with closing(prepared(self._loader, stream.name, positions)) as samples:
                for found in samples:
                    if not isinstance(found, Skip):
                        break
                    skipped.append(asdict(found))
                else:
                    raise _unusable(stream.name, skipped)

    def run(
        self, step: int, stopped: Callable[[], bool] = lambda: False, limit: int | None = None
    ) -> dict[str, float] | None:
        """Measure the model as it is. Every rank calls this.

        Args:
            step: steps done, for the ledger.
            stopped: asked between batches whether to give up.
            limit: most samples and records, where that is less than the recipe has.

        Returns:
            `loss` over all held-out data, `NAME/loss` and `NAME/samples` of each stream, `NAME/loss/TERM` where the
            loss has several terms, `NAME/MEASURE` of what its objective measures, `TASK/MEASURE` of the task; None when
            it was given up, on every rank.

        Raises:
            DataError: a held-out stream of which not one sample can be used.
        """
        most = min(self._section.limit, limit or self._section.limit)
        values: dict[str, float] = {}
        with self._apart():
            tallies: dict[str, _Tally] = {}
            for stream in self.streams:
                tally = self._loss(stream, most, stopped)
                if tally is None:
                    return None
                tallies[stream.name] = tally
            if tallies:
                values["loss"] = _mean([*tallies.values()])
            for name, tally in tallies.items():
                values |= tally.values(name)
            if self.task is not None:
                values |= self._ask(self.task, most)
        for name, tally in tallies.items():
            for skip in tally.skipped:
                self._ledger.note_held_out(name, **skip, step=step - 1)
        return values

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Within, the model does not learn and random numbers are a validation's own; afterwards all is as before."""
        devices = [self._runtime.device] if self._runtime.device.type == "cuda" else []
        with random_state.kept(devices):
            seed_step(0, 0, self._runtime.rank)  # the same draws each time, so that validations compare
            self._model.eval()
            try:
                with torch.no_grad():
                    yield
            finally:
                self._model.train()

    def _loss(self, stream: Stream, most: int, stopped: Callable[[], bool]) -> _Tally | None:
        """The sums of a stream over all ranks, or None when the run is asked to stop."""
        runtime, name, objective = self._runtime, stream.name, self._objectives[stream.name]
        tally = _Tally(objective)
        feed = self._batches(stream, most, tally.skipped)
        while True:
            batch = next(feed, None)
            # ranks run out at different batches; those that are done take part with padding until the last one is
            going, stop = runtime.all_reduce([batch is not None, stopped()])
            if stop:
                feed.close()
                return None
            if not going:
                break
            batch = batch or collate([], self._model.llm.tokenizer.pad, name)
            runtime.enter_stage(f"validation: {name}", batch.ids)
            counts = terms.counts_of(objective, batch)
            batch = batch.to(runtime.device)
            with runtime.autocast():
                tally.add(objective.loss(self._model, batch), counts)
            tally.samples += len(batch.ids)
        names = list(tally.counts)
        found = runtime.all_reduce([*tally.sums.values(), *tally.counts.values(), tally.samples])
        tally.sums = dict(zip(names, found, strict=False))
        tally.counts = dict(zip(names, found[len(names) :], strict=False))
        tally.samples = int(found[-1])
        tally.skipped = _shared(runtime, tally.skipped)
        if not tally.samples:
            raise _unusable(name, tally.skipped)
        return tally

    def _batches(self, stream: Stream, most: int, skipped: list[dict[str, Any]]) -> Iterator[Batch]:
        """This rank's part of the first samples of a stream, packed."""
        runtime, pad = self._runtime, self._model.llm.tokenizer.pad
        positions = range(runtime.rank, min(most, len(stream.corpus)), runtime.world)
        packer, held = Packer(self._spec), list[Example]()
        for found in prepared(self._loader, stream.name, positions):
            if isinstance(found, Skip):
                skipped.append(asdict(found))
                continue
            if not packer.add(len(found)):
                yield collate([[held[index] for index in row] for row in packer.rows()], pad, stream.name)
                packer, held = Packer(self._spec), []
                packer.add(len(found))
            held.append(found)
        if held:
            yield collate([[held[index] for index in row] for row in packer.rows()], pad, stream.name)

    def _ask(self, task: Task, most: int) -> dict[str, float]:
        """The measures of the task, the same on all ranks."""
        runtime, name = self._runtime, task.config.name
        alike = runtime.world > 1 and runtime.strategy != "replicate"
        found: dict[str, float] = {}
        with runtime.without_deadline(f"validation: {name}"):
            if runtime.is_main or alike:
                both, data = (self._model, self._processor), list(self._section.data)
                report = evaluate(both, task, data, limit=most, quiet=True)
                found = report["measures"]["plain"]["overall"]
            runtime.barrier()
        (measured,) = runtime.all_gather_strings([json.dumps(found)] if runtime.is_main else [])
        return {f"{name}/{key}": value for key, value in json.loads(measured).items()}


def task_of(recipe: Recipe) -> Task | None:
    """The task that a recipe names; while training, its questions are asked in their own wording only."""
    section = recipe.eval.task
    plain = section and section.model_copy(update={"instructions": ()})
    return None if plain is None else registry.find("eval/tasks", plain.name)(plain)


def _unusable(name: str, skipped: Sequence[Mapping[str, Any]]) -> DataError:
    first = skipped[0]
    return DataError(
        Reason(first["reason"]),
        f"not one of {len(skipped)} held-out samples of {name} can be used; {first['detail']}",
        "held-out data that can be used",
        "mmtune data check PATTERN --recipe RECIPE says what is wrong",
    )


def _mean(tallies: Sequence[_Tally]) -> float:
    weight = sum(tally.weight for tally in tallies)
    return sum(tally.loss for tally in tallies) / weight if weight else math.nan


def _shared(runtime: Runtime, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all ranks in one order."""
    words = runtime.all_gather_strings([json.dumps(row) for row in rows])
    return sorted((json.loads(word) for word in words), key=lambda row: row["id"])


def said(values: Mapping[str, float]) -> str:
    """What was measured, in one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if not name.endswith("/samples"))
