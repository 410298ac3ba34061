"""Several processes of one run: equal to one process, and over soon, with a name, when one of them dies or hangs.

Over gloo, two processes. Numbers are compared as saved, weights and optimizer state alike, to 1e-6.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune.data import index
from mmtune.data.loader import Loader
from mmtune.model import MultimodalModel
from mmtune.recipe import Recipe
from mmtune.training import loop
from mmtune.training.checkpoint_manager import CheckpointManager
from mmtune.training.distributed import Runtime
from tests.training import world

from . import _fork, _stage
from ._base import Guard, Verdict

NEAR = 1e-6
DEADLINE = 6.0
"""Seconds that a rank may hang in these runs."""
SLACK = 20.0
"""Seconds beyond the deadline in which a busy machine ends a process."""
STRATEGIES = ("replicate", "shard", "shard_all")

POINTS: dict[str, tuple[type, str]] = {
    "data": (Loader, "_fill"),
    "forward and backward": (MultimodalModel, "forward"),
    "sum of gradients": (Runtime, "sum_gradients"),
    "saving": (CheckpointManager, "save"),
    "starting": (Runtime, "parallelize"),
}
"""What is going on when a rank goes: the method in which it does, the third time round where it is called often."""

STAGES = {"sum of gradients": "forward and backward"}
"""What a rank calls the point itself, where that is another name: it goes before the sum begins."""

GUARDS = [
    Guard("a hanging rank", "mmtune.training.watchdog", "Watchdog._live", "or self._hang(beats)", ""),
    Guard("gradients of all ranks", "mmtune.training.distributed", "Runtime.sum_gradients",
          "torch.distributed.all_reduce(flat)", "pass"),
    Guard("sums, not means, of what is cut", "mmtune.training.distributed", "Runtime._cut",
          "module.set_gradient_divide_factor(1.0)", "pass"),
    Guard("whole tensors for an optimizer that needs them", "mmtune.training.optim", "GroupOptimizer.__init__",
          "any(is_cut(p) for _, p in self.named)", "False"),
    Guard("one direction for all ranks", "mmtune.training.gradients", "TwoPoint._noise", "{self.step} {what}",
          "{self.step} {what} {id(parameter)}"),
]  # fmt: skip


def prove(short: bool) -> Verdict:
    verdict = Verdict("ranks", "runs of two ranks that are equal to one rank, or end soon and name who is to blame")
    _equal(verdict, short)
    _text_only(verdict)
    _switched(verdict, short)
    dies = ("data", "sum of gradients") if short else tuple(POINTS)
    for point in dies:
        _lost(verdict, point, "dies", 1)
    if not short:
        _lost(verdict, "data", "dies", 0)
    for point in ("data",) if short else ("data", "forward and backward", "sum of gradients"):
        _lost(verdict, point, "hangs", 1)
    return verdict


# ---------------------------------------------------------------------------------------------------------- equal runs


def _train(recipe: Path, out: Path, *changes: str, stop: tuple[int, int] | None = None) -> Callable[[], dict[str, Any]]:
    """A run that tells what it held and what it was shown; with `stop`, (step, signal), it is signalled there."""

    def work() -> dict[str, Any]:
        torch.set_num_threads(1)
        if stop:
            _stage.signalled(*stop)()
        told: dict[str, Any] = {"media": [], "held": [], "made": 0}
        real_renew, real_forward, real_make = Runtime.refresh_parameters, MultimodalModel.forward, Loader.make

        def refresh_parameters(self: Runtime, model: Any, groups: Any) -> Any:
            found = real_renew(self, model, groups)
            told["cut"] = sum(hasattr(p, "to_local") for p in model.parameters())
            told["cut_trained"] = sum(hasattr(p, "to_local") for named in found.values() for _, p in named)
            return found

        def forward(self: MultimodalModel, batch: Any, *rest: Any) -> Any:
            told["media"].append(bool(batch.media))
            return real_forward(self, batch, *rest)

        def make(self: Loader, name: str, position: int) -> Any:
            told["made"] += 1
            return real_make(self, name, position)

        Runtime.refresh_parameters, MultimodalModel.forward, Loader.make = refresh_parameters, forward, make
        real_steps = Loader.steps

        def steps(self: Loader, first: int = 0) -> Any:
            for stream, batches in real_steps(self, first):
                told["held"].append(list(self.ids))
                yield stream, batches

        Loader.steps = steps
        loop.train(config.load(Recipe, recipe, list(changes)), out, resume=True, progress="lines")
        return told

    return work


def _saved(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run folder, by file and name."""
    files = [*out.glob("weights/*.safetensors"), *out.glob("state/*/*.safetensors")]
    return {f"{file.relative_to(out)}: {name}": t for file in sorted(files) for name, t in load_file(file).items()}


def far(left: Path, right: Path) -> tuple[float, str]:
    """The largest difference between two run folders, and where; infinite when their files differ."""
    one, two = _saved(left), _saved(right)
    if odd := sorted(one.keys() ^ two.keys()):
        return float("inf"), f"only in one of them: {odd[0]}"
    return max((float((one[name].double() - two[name].double()).abs().max()), name) for name in one)


NO_DROPOUT = "model.tuners.0.lora_dropout=0.0"
WHOLE = ("groups.speech.optimizer=adafactor",)
"""An optimizer that needs whole tensors, of a group that `shard_all` cuts."""
TWO_POINT = (
    "run.gradient={name: two_point, epsilon: 0.05}",
    *(f"groups.{group}.optimizer=sgd" for group in ("sight", "speech")),
)
"""Gradients without a backward pass, over a distance that keeps the digits of a slope; sgd, whose steps are no longer
than the rate."""


@functools.cache
def _alone(recipe: Path, *changes: str) -> tuple[Path, dict[str, Any]]:
    out = _stage.fresh("alone")
    ended = _fork.run(_train(recipe, out, *changes))
    assert ended.code == 0, ended.said
    return out, ended.value


def _equal(verdict: Verdict, short: bool) -> None:
    recipe, worst = _stage.recipe_file(), 0.0
    plain, told = _alone(recipe, NO_DROPOUT)
    cases = [(strategy, ()) for strategy in STRATEGIES]
    cases += [("shard_all", WHOLE), ("shard_all", TWO_POINT)]
    if not short:
        cases += [(s, ("run.activation_checkpointing=true", "run.workers=1")) for s in STRATEGIES]
        cases += [("shard", ("run.offload=true",)), ("shard_all", ("run.offload=true",))]
    for strategy, more in cases:
        name = " ".join([strategy, *more])
        out = _stage.fresh("ranks")
        ended = _fork.ranks(_train(recipe, out, NO_DROPOUT, f"run.strategy={strategy}", *more), 2)
        codes = [one.code for one in ended]
        if not verdict.check(_fork.all_fine(ended), f"{name}: ended with {codes}: {ended[0].said[-2000:]}"):
            continue
        cut, trained = ended[0].value["cut"], ended[0].value["cut_trained"]
        verdict.need((cut > 0) == (strategy != "replicate"), f"{name}: {cut} tensors are cut")
        verdict.need((trained > 0) == (strategy == "shard_all"), f"{name}: {trained} trained tensors are cut")
        distance, where = far(_alone(recipe, NO_DROPOUT, *more)[0] if more in (WHOLE, TWO_POINT) else plain, out)
        worst = max(worst, distance)
        verdict.check(distance <= NEAR, f"{name}: {distance:.2g} from one rank at {where}")
        same = all(one.value["held"] == told["held"] for one in ended)
        verdict.check(same, f"{name}: other samples in the steps than with one rank")
        if "run.workers=1" not in more:
            made = [one.value["made"] for one in ended]
            verdict.check(max(made) < 0.75 * told["made"], f"{name}: ranks prepared {made} samples, one {told['made']}")
    verdict.notes.append(f"largest difference {worst:.1e}")


@functools.cache
def _half_text() -> Path:
    """A recipe with one stream, of which every other record has no picture, in rows of their own."""
    folder = Path(tempfile.mkdtemp(prefix="half-", dir=_stage.room()))

    def make() -> None:
        tree = world.tree(folder)
        members = {}
        for number in range(16):
            key, colour = f"{number:06d}", list(world.COLOURS)[number % 4]
            if number % 2:
                talk = world.said("a long question without any picture " * 3, colour)
            else:
                talk = world.said("<image>\nwhat colour is it?", colour)
                members[f"{key}.png"] = world.png(colour)
            members[f"{key}.json"] = json.dumps({"id": key, "conversations": talk}).encode()
        (folder / "half").mkdir()
        world.write_tar(folder / "half" / "part-0000.tar", members)
        index.index_shards([str(folder / "half" / "part-0000.tar")])
        tree["streams"] = {"all": {**tree["streams"]["pictures"], "data": [str(folder / "half" / "part-*.tar")]}}
        tree["groups"] = {"sight": {"match": ["branches.sight.connector.*"], "lr": 1e-2}}
        tree["run"] = {**tree["run"], "length": 128, "batch_tokens": 256}
        (folder / "recipe.yaml").write_text(config.dump(config.validate(Recipe, tree)), encoding="utf-8")

    ended = _fork.run(make)
    assert ended.code == 0, ended.said
    return folder / "recipe.yaml"


def _text_only(verdict: Verdict) -> None:
    recipe = _half_text()
    plain, _ = _alone(recipe)
    out = _stage.fresh("half")
    ended = _fork.ranks(_train(recipe, out), 2)
    codes = [one.code for one in ended]
    if not verdict.check(_fork.all_fine(ended), f"text only: ended with {codes}: {ended[0].said[-2000:]}"):
        return
    shown = list(zip(*(one.value["media"] for one in ended), strict=True))
    alone = sum(left != right for left, right in shown)
    verdict.need(alone > 0, f"no step had a picture on one rank only: {shown}")
    distance, where = far(plain, out)
    verdict.check(distance <= NEAR, f"text only: {distance:.2g} from one rank at {where}")
    verdict.notes.append(f"steps with text only on one rank {alone}/{len(shown)}")


def _switched(verdict: Verdict, short: bool) -> None:
    """Killed or stopped in the middle on one number of ranks and taken up on another: the numbers of one rank."""
    recipe, worst = _stage.recipe_file(), 0.0
    plain, told = _alone(recipe, NO_DROPOUT)
    cases = [(2, "replicate", 1, "replicate", signal.SIGKILL), (1, "replicate", 2, "shard_all", signal.SIGTERM)]
    if not short:
        cases += [
            (1, "replicate", 2, "replicate", signal.SIGKILL),
            (2, "shard_all", 1, "replicate", signal.SIGTERM),
            (2, "shard_all", 2, "replicate", signal.SIGKILL),
            (2, "replicate", 2, "shard", signal.SIGTERM),
        ]
    for before, first, after, second, number in cases:
        name = f"{before} {first}, {number.name}, then {after} {second}"
        out = _stage.fresh("switched")
        ended = _of(before, _train(recipe, out, NO_DROPOUT, f"run.strategy={first}", stop=(5, number)))
        killed = number == signal.SIGKILL
        saved = sorted(path.name for path in out.glob("state/step-????????"))
        fired = all(bool(one.code) == killed for one in ended) and bool(saved) and saved[-1] < "step-00000008"
        verdict.need(fired, f"{name}: did not fire: {[one.code for one in ended]} {saved} {ended[0].said[-1500:]}")
        ended = _of(after, _train(recipe, out, NO_DROPOUT, f"run.strategy={second}"))
        codes = [one.code for one in ended]
        if not verdict.check(_fork.all_fine(ended), f"{name}: ended with {codes}: {ended[0].said[-2000:]}"):
            continue
        verdict.need("going on after step" in ended[0].said, f"{name}: it began anew")
        distance, where = far(plain, out)
        worst = max(worst, distance)
        verdict.check(distance <= NEAR, f"{name}: {distance:.2g} from one rank at {where}")
        held = ended[0].value["held"]
        verdict.check(held == told["held"][-len(held) :], f"{name}: other samples in the steps than with one rank")
        same = (out / "skipped.jsonl").read_text() == (plain / "skipped.jsonl").read_text()
        verdict.check(same, f"{name}: another ledger than with one rank")
    verdict.notes.append(f"largest difference with ranks switched {worst:.1e}")


def _of(count: int, work: Callable[[], Any]) -> list[_fork.Ended]:
    return [_fork.run(work)] if count == 1 else _fork.ranks(work, count)


# ------------------------------------------------------------------------------------------------- lost and hanging


def _faulty(point: str, how: str, who: int, recipe: Path, out: Path, mark: Path) -> Callable[[], None]:
    def work() -> None:
        torch.set_num_threads(1)
        owner, name = POINTS[point]
        real, calls = getattr(owner, name), [0]
        wanted = 1 if point in ("starting", "saving") else 3

        def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == wanted and int(os.environ["RANK"]) == who:
                mark.write_text(str(time.time()))
                if how == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(3600)
            return real(self, *args, **kwargs)

        setattr(owner, name, broken)
        changes = [NO_DROPOUT, "run.workers=1", f"run.deadline={DEADLINE if how == 'hangs' else 60}"]
        loop.train(config.load(Recipe, recipe, changes), out, resume=True, progress="lines")

    return work


def _lost(verdict: Verdict, point: str, how: str, who: int) -> None:
    """A rank that dies or hangs: the other one ends by itself, soon, not as if all were well, and says who it was."""
    name = f"rank {who} {how} in {point}"
    mark = _stage.fresh("mark")
    work = _faulty(point, how, who, _stage.recipe_file(), _stage.fresh("lost"), mark)
    other, alive, seconds, said = _pair(work, who, mark)
    verdict.need(mark.exists(), f"{name}: it never came to that; the other one said: {said[-1500:]}")
    late = DEADLINE + SLACK if how == "hangs" else SLACK
    verdict.check(other is not None and other != 0, f"{name}: the other one ended with {other}: {said[-1500:]}")
    verdict.check(seconds <= late, f"{name}: the other one ended after {seconds:.0f} s")
    word = f"rank {who} hangs" if how == "hangs" else f"rank {who} (process"
    # the first rank takes the store with it, and what it said last may not have been read
    stage = "" if who == 0 else STAGES.get(point, point)
    if how == "hangs" and point in ("forward and backward", "sum of gradients"):
        stage = "forward and backward with samples part-"  # which it was at, to look at
    named = [line for line in said.splitlines() if word in line and stage in line]
    verdict.check(bool(named), f"{name}: the other one named nobody: {said[-1500:]}")
    verdict.check(not alive, f"{name}: processes {alive} were left behind")


def _pair(work: Callable[[], None], who: int, mark: Path) -> tuple[int | None, list[int], float, str]:
    """Run two ranks of which `who` is lost: exit code of the other, processes left, seconds, words."""
    children = [_fork._Child(work, place) for place in _places(2)]
    lost, other = children[who], children[1 - who]
    until = time.monotonic() + 120
    while not (ended := _ended(other.pid)) and time.monotonic() < until:
        time.sleep(0.02)
    at = time.time()
    left = _left(other.pid) if ended else []
    lost.signal(signal.SIGKILL)  # what a launcher does
    left += _left(lost.pid)
    mine, _ = other.end(), lost.end()
    since = at - float(mark.read_text()) if mark.exists() else 0.0
    return (mine.code if ended else None), left, since, mine.said


def _places(world_size: int) -> list[dict[str, str]]:
    """What a launcher tells each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    names, size = ("RANK", "LOCAL_RANK"), {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return [{**where, **size, **dict.fromkeys(names, str(rank))} for rank in range(world_size)]


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _left(group: int) -> list[int]:
    """Who of a process group is still alive a while after its first process has gone."""
    until = time.monotonic() + 10
    while (found := _members(group)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _members(group: int) -> list[int]:
    """Living processes of a process group, but for its first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z" and int(entry.parent.name) != group:
            found.append(int(entry.parent.name))
    return found
