"""The tiny run that the proofs train, kill and take up again: two streams in two orders, two groups, a teacher.

Some pictures cannot be used, dropout draws random numbers, and an objective goes on from what it has seen.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.objectives.distill import Distill
from mmtune.objectives.dpo import DPO
from mmtune.recipe import Recipe
from mmtune.training import loop
from mmtune.training import resume as states
from tests.training import world

from . import _fork
from ._objectives import GROWING
from ._shim import Shim

STEPS = 8

LORA = {"name": "hf_peft", "method": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ["q_proj"]}
CHANGES: dict[str, Any] = {
    "model": {"tuners": [LORA]},
    "streams": {
        "pictures": {"objective": GROWING},
        "words": {"order": "length_grouped", "objective": {"name": "distill", "temperature": 2.0}},
    },
    "groups": {
        "sight": {"optimizer": {"name": "adafactor"}},
        "speech": {"match": ["@hf_peft"], "lr": 1e-2, "streams": ["words"]},
    },
    # a rate that does not fall, so that every step moves something
    "schedule": {"steps": STEPS, "kind": "constant"},
}


_rooms: list[Path] = []


def room() -> Path:
    """A folder for everything, gone when the program ends."""
    return _rooms[-1] if _rooms else _open_room()


def move(name: str) -> Path:
    """Go on in a room of its own; for a process that forks from one that does not."""
    folder = room() / name
    folder.mkdir()
    _rooms.append(folder)
    return folder


def _open_room() -> Path:
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="mmtune-prove-"))
    _rooms.append(folder)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


_count = 0


def fresh(name: str = "run") -> Path:
    """A path that nothing lies at."""
    global _count
    _count += 1
    return room() / f"{name}-{_count}"


@functools.cache
def recipe_file() -> Path:
    """The recipe of the tiny run, its data and models beside it. Made in a process of its own: it uses torch."""
    folder = room() / "world"

    def make() -> None:
        plain = world.tree(folder, save_every=2)
        teach(config.validate(Recipe, plain), folder / "teacher")
        [spoil(folder / "pictures", number) for number in (3, 8, 10)]
        changes = {**CHANGES, "models": {"teacher": {"run": str(folder / "teacher")}}}
        recipe = config.validate(Recipe, config.merge(plain, changes))
        (folder / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")

    ended = _fork.run(make)
    assert ended.code == 0, ended.said
    # once here, and not in each of the runs: half of a short run is what packages do on first use
    models.build(config.load(Recipe, folder / "recipe.yaml").model, weights=True)
    assert threading.active_count() == 1, "a process with threads must not fork"
    return folder / "recipe.yaml"


@functools.cache
def pairs_file() -> Path:
    """The recipe of the tiny run with pairs of answers in place of text, and an objective that keeps a reference."""
    folder = recipe_file().parent
    (folder / "pairs").mkdir()
    for shard in range(2):
        said = [{"prompt": f"say {shard} {number}", "chosen": "red it is", "rejected": "blue"} for number in range(8)]
        members = {f"{number}.json": json.dumps(one).encode() for number, one in enumerate(said)}
        world.write_tar(folder / "pairs" / f"part-{shard}.tar", members)
    pairs = {"data": [str(folder / "pairs" / "*.tar")], "format": "preference", "objective": "dpo"}
    changes = {"streams": {"words": pairs}, "run": {"init_from": str(folder / "tuned")}}
    recipe = config.load(Recipe, recipe_file())
    ended = _fork.run(lambda: teach(recipe, folder / "tuned"))
    assert ended.code == 0, ended.said
    recipe = config.validate(Recipe, config.merge(recipe.model_dump(mode="json"), changes))
    (folder / "pairs.yaml").write_text(config.dump(recipe), encoding="utf-8")
    return folder / "pairs.yaml"


def teach(recipe: Recipe, out: Path) -> None:
    """A run whose weights are not those that the recipe begins with."""
    model = models.build(recipe.model)
    with torch.no_grad():
        for named in store.groups_of(model, recipe).values():
            for _, parameter in named:
                parameter.mul_(1.5).add_(0.01)
    store.save_run(out, model, recipe)


def spoil(folder: Path, number: int) -> str:
    """Cut the picture of one sample short, in a shard that is indexed again; returns the sample's id."""
    import tarfile

    from mmtune.data import index

    key = f"{number:06d}"
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        if f"{key}.png" in members:
            members[f"{key}.png"] = members[f"{key}.png"][:40]
            world.write_tar(shard, members)
            shard.with_name(shard.name + ".index.json").unlink(missing_ok=True)
            index.index_shards([str(shard)])
            return f"{shard.stem}/{key}"
    raise KeyError(key)


def train(
    recipe: Path,
    out: Path,
    *overrides: str,
    shim: Shim | None = None,
    allow: tuple[str, ...] = (),
    patch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """One call of `train`, for a process of its own: goes on with what lies in `out`, or begins."""
    torch.set_num_threads(1)
    watch(out)
    if patch:
        patch()
    if shim:
        shim.install()
    result = loop.train(config.load(Recipe, recipe, list(overrides)), out, resume=True, progress="lines", allow=allow)
    told = {"step": result.step, "finished": result.finished, "code": result.code}
    return {**told, "calls": shim.calls if shim else [], "bytes": shim.bytes if shim else 0}


def signalled(steps: int, number: int) -> Callable[[], None]:
    """A patch that sends this process a signal in the course of a step."""

    def patch() -> None:
        real, done = states.seed_step, 0

        def seed(*args: int) -> None:
            nonlocal done
            done += 1
            if done == steps:
                os.kill(os.getpid(), number)
            real(*args)

        states.seed_step = seed

    return patch


def watch(out: Path) -> None:
    """Write down, beside the run folder, which samples the loss saw in which step."""
    log = os.open(f"{out}.order", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    real_seed = states.seed_step
    write, now = os.write, {"step": -1}
    write(log, b'[-1, "begins", []]\n')  # the step that comes next may be the one that was logged last

    def seed(seed: int, step: int, rank: int = 0) -> None:
        now["step"] = step
        real_seed(seed, step, rank)

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def loss(self: Any, model: Any, batch: Any) -> Any:
            write(log, (json.dumps([now["step"], batch.stream, list(batch.ids)]) + "\n").encode())
            return real(self, model, batch)

        return loss

    states.seed_step = seed
    for objective in (CrossEntropy, Distill, DPO):
        objective.loss = watched(objective.loss)
    # the commit is written down and may change while the proofs run
    real_versions = store.versions
    store.versions = lambda: {**real_versions(), "git": "some"}


def order(out: Path) -> dict[int, list[list[Any]]]:
    """Step to the samples of its micro-batches. Raises ValueError when a step that came again was another one."""
    seen: dict[int, list[list[Any]]] = {}
    step, part = None, []
    rows = [json.loads(line) for line in Path(f"{out}.order").read_text().splitlines()] + [[None, "", []]]
    for number, stream, ids in rows:
        if number != step or number is None:
            if step is not None and step >= 0 and seen.setdefault(step, part) != part:
                # a step that was killed between its micro-batches is a beginning of the whole one
                longer, shorter = sorted((seen[step], part), key=len, reverse=True)
                if longer[: len(shorter)] != shorter:
                    raise ValueError(f"step {step} came again with other samples")
                seen[step] = longer
            step, part = number, []
        part.append([stream, ids])
    return seen


def digests(out: Path, steps: int = STEPS) -> dict[str, str]:
    """Everything a run leaves that must not depend on how it was interrupted, as digests."""
    state = out / "state" / f"step-{steps:08d}"
    files = [*sorted(state.iterdir()), *sorted((out / "weights").iterdir()), out / "skipped.jsonl"]
    found = {}
    for path in files:
        data = path.read_bytes() if path.exists() else b""
        found[path.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    # the first start writes it, with as many workers as it has
    recipe = re.sub(r"workers: \d+", "workers: some", (out / "recipe.yaml").read_text())
    found["recipe.yaml"] = hashlib.sha256(recipe.encode()).hexdigest()
    found["card.md"] = hashlib.sha256((out / "card.md").read_bytes()).hexdigest()
    found["order"] = hashlib.sha256(json.dumps(order(out)).encode()).hexdigest()
    return found


def compare(out: Path, wanted: dict[str, str], steps: int = STEPS) -> list[str]:
    """What of a run is not as it is in the straight one."""
    try:
        got = digests(out, steps)
    except (OSError, ValueError) as error:
        return [str(error)]
    return [name for name in sorted(wanted.keys() | got.keys()) if wanted.get(name) != got.get(name)]


@functools.cache
def straight() -> tuple[Path, dict[str, str], dict[str, Any], float]:
    """A run without a break: its folder, its digests, what `train` told, and its seconds."""
    recipe, out = recipe_file(), fresh("straight")
    ended = _fork.run(lambda: train(recipe, out, shim=Shim(out)))
    assert ended.code == 0, ended.said
    return out, digests(out), ended.value, ended.seconds


def finish(recipe: Path, out: Path, *overrides: str, tries: int = 3) -> _fork.Ended:
    """Take a run up again until it ends by itself."""
    for _ in range(tries):
        ended = _fork.run(lambda: train(recipe, out, *overrides))
        if ended.code == 0 and ended.value["finished"]:
            break
    return ended


def clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    Path(f"{out}.order").unlink(missing_ok=True)
