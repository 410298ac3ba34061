"""Joint training of disjoint groups: who trains moves, everybody else is equal to the bit, however a step is cut up.

Every step of whole runs is watched, by each way of taking turns, with media as tokens and as early prompts: all
tensors and all optimizer states of the groups that are not trained. What a mixed step does to a group is compared with
a step of the group's stream alone. One batch of eight rows is trained as 1 x 8, 2 x 4, 8 x 1 and on two ranks, of
which one may see text alone; in float64, for AdamW makes steps of full size of what is nothing but rounding. Mistakes
in the groups are planted one by one and have to be named, before the first step where they can be, and after the first
step of their stream where they cannot.
"""

from __future__ import annotations

import copy
import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmtune import config, dtypes
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.data import index
from mmtune.errors import ConfigError, ModelError
from mmtune.model import MultimodalModel
from mmtune.recipe import Recipe
from mmtune.training import loop, setup, stepper
from mmtune.training import resume as states
from mmtune.training.distributed import Runtime
from mmtune.training.trainer_state import TrainerState
from tests.encoders.tiny import sound_folder
from tests.media import make
from tests.training import world

from . import _fork
from ._base import Guard, Verdict
from ._objectives import TWO_TERMS
from ._stage import fresh, room, teach

NEAR = 1e-6
STEPS = 6
CONNECTOR = {"name": "query_blocks", "queries": 3, "width": 8, "depth": 1, "heads": 2}
EARLY = {
    "model": {
        "branches": {"sight": {"connector": CONNECTOR}},
        "fusion": {"name": "early_prompts", "layers": 1},
        "tuners": [{"name": "bias_norm", "norms": "all"}, {"name": "prompts", "length": 2}],
    },
    "groups": {
        "sight": {"match": ["branches.sight.connector.*", "fusion.*"]},
        "speech": {"match": ["@prompts", "@bias_norm"]},
    },
}
OPTIMIZERS = {"groups": {"sight": {"optimizer": "muon"}, "speech": {"optimizer": {"name": "sgd", "momentum": 0.9}}}}
BESIDE = {
    "model": {
        "branches": {"sight": {"encoder": {"layers": [-1, -2]}}},
        "fusion": {"name": "ladder", "ratio": 4, "heads": 2},
    },
    "groups": {"sight": {"match": ["branches.sight.connector.*"]}, "speech": {"match": ["fusion.*"]}},
}
FUSIONS: dict[str, dict[str, Any]] = {"tokens": {}, "early": EARLY}
DISTILL = {"name": "distill", "temperature": 2.0, "kl": 0.5}
TURNS: dict[str, dict[str, Any]] = {
    "alternate": {"interleave": "alternate"},
    "share": {"interleave": "share"},
    "stage": {
        "interleave": "stage",
        "stages": [{"streams": ["pictures"], "steps": 3}, {"streams": ["words"], "steps": 3}],
    },
    "mixed": {"interleave": "mixed"},
}

GUARDS = [
    Guard("gradients of another stream dropped", "mmtune.training.step", "take_step",
          "            _zero_grad(optimizers)\n        finite", "        finite"),
    Guard("groups of this stream only", "mmtune.training.train_plan", "TrainPlan.trained_groups",
          "for name in self.groups_by_stream[stream]}",
          "for name in self.optimizers}"),
    Guard("one division by the tokens of all", "mmtune.training.step", "take_step", "accumulate(tally.weight *",
          "accumulate(len(mine) *"),
    Guard("a term is scaled by the counts of all", "mmtune.training.gradients", "_passes",
          "found), counts)", "found), objective.counts(batch))"),
    Guard("a parameter in one group", "mmtune.params", "partition", "if len(owners) > 1:", "if len(owners) > 9:"),
    Guard("no orphan", "mmtune.params", "partition", "elif parameter.requires_grad:", "elif False:"),
    Guard("no empty pattern", "mmtune.params", "_claims", "elif not found:", "elif False:"),
    Guard("the first step of a stream", "mmtune.training.gradient_check", "GradientCheck.after",
          "if wrong:", "if False:"),
]  # fmt: skip


def prove(short: bool) -> Verdict:
    verdict = Verdict("groups", "promises about who moves in a step, and by how much")
    _tree()  # here, so that all runs share it
    seen = 0
    for fusion in ("early",) if short else FUSIONS:
        for turns in ("stage", "mixed") if short else TURNS:
            seen += _disjoint(verdict, fusion, turns)
    _old_way(verdict)
    routed = _routed(verdict, short)
    worst = _cut_up(verdict, short)
    named = _mistakes(verdict, short)
    verdict.notes = [
        f"{seen} tensors compared around steps of others",
        f"{routed} groups of mixed steps equal to their stream alone",
        f"largest difference of cuts and ranks {worst:.1e}",
        f"{named} planted mistakes named",
    ]
    return verdict


# ----------------------------------------------------------------------------------------------------------- the stage


@functools.cache
def _folder() -> Path:
    return room() / "groups"


@functools.cache
def _tree() -> dict[str, Any]:
    """Two streams and two groups, and a third stream of text, pictures, videos and sounds. Made in another process."""
    folder = _folder()

    def build() -> dict[str, Any]:
        tree = world.tree(folder, accumulate=2, batch_tokens=128, out_of_memory="stop")
        teach(config.validate(Recipe, config.merge(tree, EARLY)), folder / "early")
        teach(config.validate(Recipe, tree), folder / "tokens")
        sound_folder(folder / "ear")
        _senses(folder / "senses")
        return tree

    ended = _fork.run(build)
    assert ended.code == 0, ended.said
    tree = copy.deepcopy(ended.value)
    tree["schedule"] = {"steps": STEPS, "warmup": 1}
    return tree


def _senses(folder: Path) -> None:
    """Samples with no medium, a picture, a video or a sound, in one stream; of several weights in the loss."""
    folder.mkdir(parents=True)
    store = io.BytesIO()
    members = {}
    made = {
        "png": make.image(make.picture(24, 24)),
        "mp4": make.video(4, 32, 32),
        "wav": make.wav(make.sine(16000, 0.4)),
    }
    marks = {"png": "<image>\n", "mp4": "<video>\n", "wav": "<audio>\n", "": ""}
    for number, suffix in enumerate(["", "png", "", "mp4", "", "wav", "", ""] * 2):
        key = f"{number:06d}"
        said = world.said(f"{marks[suffix]}what is number {number}?", "red" if number % 3 else "blue it is")
        facts = {"id": key, "conversations": said, "weight": (1, 0.5, 3)[number % 3]}
        members[f"{key}.json"] = json.dumps(facts).encode()
        if suffix:
            members[f"{key}.{suffix}"] = made[suffix]
    world.write_tar(folder / "part-0000.tar", members)
    index.index_shards([str(folder / "part-0000.tar")])
    store.close()


def _recipe(*changes: dict[str, Any]) -> Recipe:
    tree = _tree()
    for change in changes:
        tree = config.merge(tree, change)
    return config.validate(Recipe, tree)


def _run(recipe: Recipe) -> Any:
    """A run before its first step."""
    return setup.build(recipe, fresh(), Runtime("cpu"))


def _attempt(run: Any, batches: list[Any], step: int) -> None:
    """A step of these batches."""
    states.seed_step(run.recipe.run.seed, step)
    lr_multipliers = run.train_plan.lr_multipliers(step, run.loader.held)
    stepper.Stepper(run, TrainerState(step), print).attempt(batches, lr_multipliers)


def _copies(run: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and optimizer state of each group, and everything frozen."""
    trained = {name for named in run.groups.values() for name, _ in named}
    found = {
        group: {name: tensor.detach().clone() for name, tensor in [*optimizer.named, *optimizer.state().items()]}
        for group, optimizer in run.train_plan.optimizers.items()
    }
    state = run.model.state_dict()
    return {**found, "": {name: tensor.clone() for name, tensor in state.items() if name not in trained}}


def _moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[str]:
    return sorted(
        {name for name in old if name not in new or not torch.equal(old[name], new[name])} | (new.keys() - old.keys())
    )


# -------------------------------------------------------------------------------------------- who moves in which step


def _disjoint(verdict: Verdict, fusion: str, turns: str) -> int:
    """Watch all steps of a run; returns how many tensors had to stay as they were."""
    where = f"{fusion}, {turns}"
    optimizers = OPTIMIZERS if turns == "mixed" else {}

    def work() -> list[Any]:
        run = _run(_recipe(FUSIONS[fusion], {"schedule": TURNS[turns]}, optimizers))
        told, feed = [], run.loader.steps()
        for step in range(STEPS):
            stream, batches = next(feed)
            before = _copies(run)
            _attempt(run, batches, step)
            after = _copies(run)
            moving = run.train_plan.trained_groups(run.loader.held)
            moved = {group: _moved(before[group], after[group]) for group in before}
            left = sum(parameter.grad is not None for parameter in run.model.parameters())
            told.append([stream, moving, moved, {g: len(t) for g, t in after.items()}, left])
        feed.close()
        return told

    ended = _fork.run(work)
    if not verdict.check(ended.code == 0, f"{where}: {ended.said[-800:]}"):
        return 0
    compared = 0
    owners = {"pictures": "sight", "words": "speech"}
    for step, (stream, moving, moved, sizes, left) in enumerate(ended.value):
        still = [group for group in moved if group not in moving]
        compared += sum(sizes[group] for group in still)
        strays = [name for group in still for name in moved[group]]
        right = sorted(moving) == sorted(owners[name] for name in stream.split("+"))
        verdict.check(not strays and not left and right, f"{where}: step {step} of {stream} moved {strays[:4]}")
        verdict.need(step == STEPS - 1 or all(moved[group] for group in moving), f"{where}: step {step} moved nothing")
    seen = {stream for stream, *_ in ended.value}
    verdict.need(len(seen) == (1 if turns == "mixed" else 2), f"{where}: only {seen}")
    return compared


def _old_way(verdict: Verdict) -> None:
    """What all this is for: one optimizer over both groups moves the other one by its momentum and decay."""

    def work() -> int:
        run = _run(_recipe({"schedule": {"interleave": "alternate"}}))
        one = torch.optim.AdamW([p for named in run.groups.values() for _, p in named], lr=1e-2)
        feed, moved = run.loader.steps(), 0
        for _ in range(3):
            stream, batches = next(feed)
            before = _copies(run)
            one.zero_grad(set_to_none=False)
            run.train_plan.objectives[stream].loss(run.model, batches[0])["cross_entropy"].backward()
            other = next(group for group in run.groups if group not in run.train_plan.groups_by_stream[stream])
            for _, parameter in run.groups[other]:
                if parameter.grad is not None:
                    parameter.grad.zero_()
            one.step()
            moved = len(_moved(before[other], _copies(run)[other]))
        feed.close()
        return moved

    ended = _fork.run(work)
    verdict.need(ended.code == 0 and ended.value > 0, f"a shared optimizer moved nothing: {ended.said[-400:]}")


def _routed(verdict: Verdict, short: bool) -> int:
    """A mixed step does to each group what its stream alone does, to the bit: no gradient of the other is in it."""
    count = 0
    for fusion in ("early",) if short else FUSIONS:

        def work(fusion: str = fusion) -> dict[str, Any]:
            together, told = None, {}
            for only in (None, "pictures", "words"):
                run = _run(_recipe(FUSIONS[fusion], {"schedule": TURNS["mixed"]}))
                feed = run.loader.steps()
                _, batches = next(feed)
                feed.close()
                if only:
                    run.loader.held = {only: run.loader.held[only]}
                    batches = [batch for batch in batches if batch.stream == only]
                _attempt(run, batches, 0)
                after = _copies(run)
                if together is None:
                    together = after
                else:
                    for group in run.train_plan.groups_by_stream[only]:
                        told[group] = [_moved(together[group], after[group]), len(after[group])]
            return told

        ended = _fork.run(work)
        if not verdict.check(ended.code == 0 and len(ended.value) == 2, f"{fusion}, mixed: {ended.said[-800:]}"):
            continue
        for group, (differ, size) in ended.value.items():
            verdict.check(not differ, f"{fusion}: a mixed step moves {differ[:3]} of {group} otherwise")
            verdict.need(size > 0, f"{fusion}: group {group} is empty")
            count += 1
    return count


# -------------------------------------------------------------------------------------------- however a step is cut up

CUTS = {"1x8": (512, 1), "2x4": (256, 2), "8x1": (64, 8)}
SENSES = {
    "model": {
        "branches": {"hearing": {"encoder": {"name": "hf_audio", "frames": 2}, "connector": CONNECTOR}},
    },
    "groups": {"hearing": {"match": ["branches.hearing.connector.*"], "lr": 3e-3, "streams": ["senses"]}},
}


def _cut_up(verdict: Verdict, short: bool) -> float:
    """The same step in other pieces and on two ranks; returns the largest difference of a weight."""
    worst = 0.0
    plans = [("early", "alternate")] if short else [(f, t) for f in FUSIONS for t in ("alternate", "mixed")]
    chosen = {**FUSIONS, "beside": BESIDE}
    for fusion, turns in plans if short else [*plans, ("beside", "alternate")]:
        # a mixed step of eight rows has at least one micro-step of each stream
        cuts = CUTS if turns != "mixed" else {"2x4": (256, 2), "4x2": (128, 4), "8x1": (64, 8)}
        runs: dict[str, Path] = {}
        for name, (tokens, parts) in cuts.items():
            cut = {"schedule": TURNS[turns], "run": {"batch_tokens": tokens, "accumulate": parts}}
            terms = {"streams": {"words": {"objective": TWO_TERMS}}}
            recipe = _recipe(chosen[fusion], cut, _taught(fusion), terms)
            runs[name] = fresh()
            ended = _fork.run(_trains(recipe, runs[name]))
            verdict.need(ended.code == 0, f"{fusion}, {turns}, {name}: {ended.said[-600:]}")
            if name == "2x4":
                runs["2 ranks"] = fresh()
                both = _fork.ranks(_trains(recipe, runs["2 ranks"]))
                verdict.need(_fork.all_fine(both), f"{fusion}, {turns}, 2 ranks: {both[0].said[-600:]}")
        worst = max(worst, _alike(verdict, f"{fusion}, {turns}", runs))
    for fusion in ("early",) if short else FUSIONS:
        worst = max(worst, _few_media(verdict, fusion))
    return worst


def _taught(fusion: str) -> dict[str, Any]:
    """Pictures are learned from a teacher, too."""
    teacher = {"run": str(_folder() / ("early" if fusion == "early" else "tokens"))}
    return {"models": {"teacher": teacher}, "streams": {"pictures": {"objective": DISTILL}}}


def _trains(recipe: Recipe, out: Path) -> Callable[[], list[Any]]:
    """A whole run; tells which branches every micro-step of this rank had media for."""

    def work() -> list[Any]:
        torch.set_num_threads(1)
        told, real = [], MultimodalModel.forward
        _exactly()

        def forward(self: MultimodalModel, batch: Any, *rest: Any) -> Any:
            told.append([batch.stream, sorted(batch.media), len(batch.ids)])
            media = {name: x.double() if x.is_floating_point() else x for name, x in batch.media.items()}
            return real(self, replace(batch, media=media), *rest)

        MultimodalModel.forward = forward
        loop.train(recipe, out, progress="off")
        return told

    return work


def _exactly() -> None:
    """Everything in float64 from here on, so that sums in another order are the same sums."""
    build = models.build

    def double(*args: Any, **options: Any) -> Any:
        return build(*args, **options).double()

    def over_logits(self: MultimodalModel, function: Any, hidden: torch.Tensor, *given: torch.Tensor) -> Any:
        return [function(self.llm.head(hidden), *given)] if len(hidden) else []

    def load_run(*args: Any, **options: Any) -> Any:
        models.build = build  # as it is stored
        model, *rest = real_load(*args, **options)
        models.build = double
        return model.double(), *rest

    real_load, store.load_run = store.load_run, load_run
    models.build, MultimodalModel.over_logits = double, over_logits
    dtypes.settle = lambda model, precision: {}  # which would bring it to float32


def _alike(verdict: Verdict, where: str, runs: dict[str, Path]) -> float:
    """Weights at the end and losses of all steps; returns the largest difference of a weight."""
    first, *others = runs
    worst = 0.0
    for other in others:
        try:
            apart, loss = _apart(runs[first], runs[other])
        except (OSError, KeyError) as error:
            verdict.check(False, f"{where}: {other} left no weights: {error}")
            continue
        worst = max(worst, apart)
        verdict.check(
            apart <= NEAR and loss <= NEAR,
            f"{where}: {first} and {other} differ by {apart:.1e}, their losses and norms by {loss:.1e}",
        )
    return worst


def _apart(left: Path, right: Path) -> tuple[float, float]:
    """Largest difference of a weight, and largest relative one of a loss or of a gradient's norm.

    The norm, because a gradient that is wrong by a factor moves AdamW by the same.
    """
    weights = [
        {name: t for file in sorted((run / "weights").glob("*.safetensors")) for name, t in load_file(file).items()}
        for run in (left, right)
    ]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (left, right)]
    apart = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0] | weights[1])
    losses = [[v for row in several for k, v in row.items() if k.startswith(("loss/", "norm/"))] for several in rows]
    if len(losses[0]) != len(losses[1]) or not losses[0]:
        raise KeyError("losses of all steps")
    return apart, max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))


def _few_media(verdict: Verdict, fusion: str) -> float:
    """Text, pictures, videos and sounds in one stream: a rank without one of them keeps up with the other."""
    stream = {
        "data": [str(_folder() / "senses/part-*.tar")],
        "format": "llava",
        "prompt": _tree()["streams"]["words"]["prompt"],
    }
    ear = {"model": {"branches": {"hearing": {"encoder": {"weights": str(_folder() / "ear")}}}}}
    marks = ["<|media|>", "<|/media|>"]
    template = _folder() / "senses.yaml"
    text = Path(stream["prompt"]).read_text().replace("media: {", f"media: {{audio: {json.dumps(marks)}, ")
    template.write_text(text)
    stream["prompt"] = str(template)
    changes = (
        FUSIONS[fusion], SENSES, ear,
        {"streams": {"senses": stream}, "groups": {"sight": {"streams": ["pictures", "senses"]}}},
        {"run": {"batch_tokens": 128, "accumulate": 2, "length": 64}},
        {"schedule": {"steps": 2 * STEPS, "interleave": "alternate"}},
    )  # fmt: skip
    recipe, runs = _recipe(*changes), {"1 rank": fresh(), "2 ranks": fresh()}
    alone = _fork.run(_trains(recipe, runs["1 rank"]))
    both = _fork.ranks(_trains(recipe, runs["2 ranks"]))
    ended = alone.code == 0 and _fork.all_fine(both)
    if not verdict.check(ended, f"{fusion}, senses: {(alone.said + both[0].said + both[1].said)[-800:]}"):
        return 0.0
    pairs = list(zip(*(one.value for one in both), strict=True))
    lonely = [(a, b) for (stream, a, _), (_, b, _) in pairs if stream == "senses" and a != b]
    kinds = {branch for pair in lonely for branch in set(pair[0]) ^ set(pair[1])}
    verdict.need(kinds == {"sight", "hearing"}, f"{fusion}: no rank was without {kinds}")
    verdict.need(any(not a or not b for a, b in lonely), f"{fusion}: no rank had text alone beside one with media")
    return _alike(verdict, f"{fusion}, a rank without a medium", runs)


# ------------------------------------------------------------------------------------------------------------ mistakes


def _mistakes(verdict: Verdict, short: bool) -> int:
    """Groups that do not fit, each named; returns how many were."""
    connector = "branches.sight.connector.layers.0.weight"
    plans = {
        "overlap": (
            {"groups": {"speech": {"match": ["llm.*norm*", "branches.*weight"]}}},
            [connector, "sight, speech"],
        ),
        "empty pattern": ({"groups": {"speech": {"match": ["llm.*norm*", "llm.*.nrom"]}}}, ["llm.*.nrom"]),
        "orphan": ({"groups": {"sight": {"match": ["branches.sight.connector.*bias"]}}}, [connector]),
    }
    named = 0
    for name, (change, words) in plans.items():
        ended = _fork.run(lambda change=change: _refusal(lambda: _run(_recipe(change)), ConfigError))
        named += verdict.check(
            ended.code == 0 and bool(ended.value) and all(word in ended.value for word in words),
            f"{name}: {ended.value or ended.said[-400:] or 'nothing said'}",
        )
    later = {
        "weight": (_nudge, "layers.0.bias (sight)"),
        "state": (_stir, "exp_avg (sight)"),
        "unreached": (_cut_off, "no gradient reached group sight"),
    }
    for name, (plant, word) in later.items():

        def work(plant: Callable[[], None] = plant, out: Path = fresh()) -> str | None:
            plant()
            return _refusal(lambda: loop.train(_recipe(), out, progress="off"), ModelError)

        ended = _fork.run(work)
        named += verdict.check(
            ended.code == 0 and bool(ended.value) and word in ended.value,
            f"{name}: {ended.value or ended.said[-400:] or 'the run went on'}",
        )
    return named


def _refusal(work: Callable[[], Any], kind: type[Exception]) -> str | None:
    """What it was refused for; none when it was not."""
    try:
        work()
    except kind as error:
        return str(error)
    return None


def _after_words(change: Callable[[Any, Any], None]) -> None:
    """Do something to model and optimizers after every step of words."""
    real = stepper.take_step

    def step(model: Any, batches: Any, optimizers: Any, *rest: Any) -> Any:
        outcome = real(model, batches, optimizers, *rest)
        if batches[0].stream == "words":
            with torch.no_grad():
                change(model, optimizers)
        return outcome

    stepper.take_step = step


def _nudge() -> None:
    def change(model: Any, optimizers: Any) -> None:
        model.branches["sight"].connector.layers[0].bias[0] += 1e-7

    _after_words(change)


def _stir() -> None:
    def change(model: Any, optimizers: Any) -> None:
        optimizers["sight"].load({f"{n}/exp_avg": torch.ones_like(p) for n, p in optimizers["sight"].named})

    _after_words(change)


def _cut_off() -> None:
    real = MultimodalModel.fuse

    def fuse(self: Any, batch: Any, embeds: Any, cache: Any = None) -> Any:
        return real(self, batch, {n: type(e)(e.tokens.detach(), e.mask) for n, e in embeds.items()}, cache)

    MultimodalModel.fuse = fuse
