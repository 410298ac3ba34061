"""Nothing is written through a link: whatever a command writes in a folder of its own is tried as a link."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmtune import config
from mmtune.errors import MmtuneError
from tests.data import sources, tars
from tests.training import world

Act = Callable[[], object]
_seen: list[str] | None = None


@dataclass
class Job:
    """A command that writes into a folder."""

    folder: Path
    first: Act
    again: Act
    """The command once more, over what the first one left."""


def _note(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    write = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    if (write or event in ("os.mkdir", "os.rename")) and not isinstance(args[0], int):
        _seen.extend(os.path.abspath(os.fsdecode(path)) for path in args[: 1 + (event == "os.rename")])


sys.addaudithook(_note)


@contextmanager
def paths_written() -> Iterator[list[str]]:
    """Paths that this process opens to write, makes or renames meanwhile, drafts among them."""
    global _seen
    _seen = names = []
    try:
        yield names
    finally:
        _seen = None


def training(tmp: Path, patch: pytest.MonkeyPatch) -> Job:
    from mmtune import train
    from mmtune.commands import train as command
    from mmtune.recipe import Recipe
    from tests.training.test_trackers import Fake

    run = tmp / "run"
    held = [world.shards(tmp / "world" / "held", 1, 4)]
    tree = world.tree(tmp / "world", save_every=1, keep=2, trackers=["tensorboard", "wandb"])
    tree["schedule"] = {"steps": 2, "warmup": 0}
    tree["eval"] = {"every": 1, "streams": {"val": {"data": held, "like": "pictures"}}}
    recipe = config.validate(Recipe, tree)
    patch.setitem(sys.modules, "wandb", Fake())

    patch.setattr("mmtune.training.best_metric.BestMetric.update", lambda *_: True)

    def again() -> None:
        last = run / "state" / "step-00000002"
        if not last.is_symlink() and not last.parent.is_symlink():
            shutil.rmtree(last)
        command.run(str(run), [], None, True, False)

    return Job(run, partial(train, recipe, run, progress="off"), again)


def evaluating(tmp: Path, patch: pytest.MonkeyPatch) -> Job:
    from mmtune.eval import run as evals

    (tmp / "run").mkdir()
    recipe = SimpleNamespace(eval=SimpleNamespace(data=()), streams={})
    patch.setattr(evals, "load_run", lambda *_: (None, None, recipe))
    patch.setattr(evals, "use_features", lambda *_: nullcontext())
    patch.setattr(evals, "_usable", lambda *_: iter([["question"]]))
    patch.setattr(evals, "_ask", lambda *_: [])
    patch.setattr(evals.report, "summary", lambda *_: {})
    act = partial(evals.evaluate, tmp / "run", "pocket_qa", data=["x"], quiet=True)
    return Job(tmp / "run", act, act)


def converting(tmp: Path, _: object, **how: bool) -> Job:
    media, out = sources.folder(tmp / "media"), tmp / "out"
    rows = [{"image": "a/1.png" if number % 7 else "lost.png", "conversations": sources.TALK} for number in range(8)]
    (tmp / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    act = partial(sources.made, tmp / "list.jsonl", out, media=[media], per_shard=4)
    return Job(out, act, partial(act, **how))


def stopped(tmp: Path, patch: pytest.MonkeyPatch) -> Job:
    """A conversion that was stopped before its end goes on."""
    from mmtune.data.convert import state

    made = converting(tmp, patch, resume=True)
    finish = state.finish

    def first() -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(state, "finish", stop)
        with pytest.raises((KeyboardInterrupt, MmtuneError)):
            made.first()
        patch.setattr(state, "finish", finish)

    return Job(made.folder, first, made.again)


def indexing(tmp: Path, _: object) -> Job:
    from mmtune.data import index

    (tmp / "shards").mkdir()
    paths = tars.shards(tmp / "shards", 2, 2)

    def again() -> None:
        for path in paths:
            os.utime(path, (1, 1))
        index.index_shards([str(tmp / "shards")])

    return Job(tmp / "shards", partial(index.index_shards, [str(tmp / "shards")]), again)


def making(tmp: Path, _: object) -> Job:
    from mmtune.data.world.make import make_shards

    act = partial(make_shards, tmp / "made", 2, 0, "easy", per_shard=1, media=("jpg",))
    return Job(tmp / "made", act, act)


def beginning(tmp: Path, patch: pytest.MonkeyPatch) -> Job:
    from mmtune.commands import init

    (tmp / "new").mkdir()
    (tmp / "shards").mkdir()
    shard = str(tars.shards(tmp / "shards", count=1, size=3)[0])
    answers = init.Answers("pocket", ("pocket",), (shard,), "connector", tmp / "new" / "recipe.yaml")

    def again() -> None:
        if not answers.out.is_symlink():
            answers.out.unlink(missing_ok=True)
        init.check_out(answers.out)
        init.run(answers)

    return Job(tmp / "new", again, again)


def converting_checkpoints(tmp: Path, _: object) -> Job:
    """What import and export of every kind write: a draft beside the folder that is asked for."""
    from mmtune.checkpoint import convert, write

    (tmp / "new").mkdir()
    out = tmp / "new" / "out"

    def act() -> None:
        if not out.is_symlink():
            shutil.rmtree(out, ignore_errors=True)
        with convert._atomic_folder(out) as (draft, scratch):
            write.write_files(draft / "parts", {"config.json": {}})
            write.write_files(scratch, {"plain.json": {}})

    return Job(tmp / "new", act, act)


def keeping_features(tmp: Path, _: object) -> Job:
    from mmtune.data._feature_file import FeatureFile

    (tmp / "kept").mkdir()

    def act() -> None:
        features = FeatureFile(tmp / "kept" / "clip", 2, 3, {})
        with features.writing() as writer:
            writer.put(str(len(features.offsets)), np.ones((1, 2, 3), dtype=np.float32))

    return Job(tmp / "kept", act, act)


def saving(tmp: Path, _: object) -> Job:
    from mmtune.serve.repl import Repl
    from tests.serve.test_transcript import talk

    (tmp / "kept").mkdir()
    file, self = tmp / "kept" / "talk.json", SimpleNamespace(conversation=talk(tmp))

    def act() -> None:
        if not file.is_symlink():
            file.unlink(missing_ok=True)
        Repl._save(self, str(file))  # type: ignore[arg-type]

    return Job(tmp / "kept", act, act)


def keeping(tmp: Path, patch: pytest.MonkeyPatch) -> Job:
    from mmtune.serve import conversation_file
    from tests.serve.test_transcript import talk

    (tmp / "state").mkdir()
    patch.setenv("MMTUNE_CONVERSATION", str(tmp / "state" / "last.json"))
    made = talk(tmp)
    act = lambda: conversation_file.ConversationFile().keep(made)  # noqa: E731
    return Job(tmp / "state", act, act)


def finding(tmp: Path, _: object) -> Job:
    from mmtune.experts._cache import Cache

    act = lambda: Cache(tmp / "experts").put("ab" * 32, (), False)  # noqa: E731
    return Job(tmp / "experts", act, act)


def fetching(tmp: Path, _: object, indexed: bool = True) -> Job:
    import fsspec

    from mmtune.data import index
    from mmtune.data.remote import Cache, Remote

    (tmp / "shards").mkdir()
    path = tars.shards(tmp / "shards", 1, 2)[0]
    index.index_shards([str(tmp / "shards")])
    system = fsspec.filesystem("memory")
    for one in [path, index.beside(path)] if indexed else [path]:
        system.pipe_file(f"/links{indexed}/{one.name}", one.read_bytes())
    remote = Remote(f"memory://links{indexed}/{path.name}")

    def act() -> None:
        cache = Cache(tmp / "cache", 10**9, waits=(0.0,))
        os.close(cache.open(remote, cache.index(remote)))

    def again() -> None:
        for one in (tmp / "cache").glob("*/*.tar"):
            if not one.parent.is_symlink():
                one.unlink()
        act()

    return Job(tmp / "cache", act, again)


JOBS: dict[str, Callable[[Path, Any], Job]] = {
    "train": training,
    "eval": evaluating,
    "convert": partial(converting, overwrite=True),
    "convert resume": stopped,
    "index": indexing,
    "make": making,
    "init": beginning,
    "features": keeping_features,
    "import and export": converting_checkpoints,
    "save": saving,
    "conversation": keeping,
    "expert cache": finding,
    "remote cache": fetching,
    "remote cache, no index": partial(fetching, indexed=False),
}


def content(folder: Path) -> dict[Path, bytes | None]:
    return {one.relative_to(folder): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


@dataclass
class Trial:
    """A folder as the first command left it, of which some entries become links, and the command once more."""

    job: Job
    kept: Path
    outside: Path

    def run(self, names: list[Path], dangling: bool = False) -> set[Path]:
        """The links that are in the way, by what the command says; none when it did its work."""
        for folder in (self.job.folder, self.outside):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.kept, self.job.folder)
        self.outside.mkdir()
        links = [link for number, name in enumerate(names) if (link := self.link(name, number, dangling))]
        before = content(self.outside)
        try:
            self.job.again()
            refused = None
        except (MmtuneError, OSError) as error:
            refused = str(error)
        assert content(self.outside) == before, f"written through a link: {refused}"
        said = {link for link in links if refused and re.search(rf"{re.escape(str(link))}(?![.\w])", refused)}
        assert said or refused is None, f"refused without a name: {refused}"
        return {link.relative_to(self.job.folder) for link in said}

    def link(self, name: Path, number: int, dangling: bool) -> Path | None:
        place, canary = self.job.folder / name, self.outside / str(number)
        if not place.parent.is_dir():
            return None  # it comes and goes together with its folder
        if place.exists():
            place.rename(canary)
        else:
            canary.write_bytes(b"mine")
        if dangling:
            shutil.rmtree(canary) if canary.is_dir() else canary.unlink()
        place.symlink_to(canary)
        return place


@pytest.mark.parametrize("name", JOBS)
def test_nothing_is_written_through_links(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JOBS[name](tmp_path, monkeypatch)
    job.first()
    shutil.copytree(job.folder, tmp_path / "as it was")
    with paths_written() as paths:
        job.again()
    names = {Path(path).relative_to(job.folder) for path in paths if Path(path).is_relative_to(job.folder)} - {Path()}
    trial = Trial(job, tmp_path / "as it was", tmp_path / "outside")
    names |= {above for one in names for above in one.parents} - {Path()}
    assert names, "the command writes again"
    for depth, dangling in product(range(1, 5), (False, True)):
        left = {one for one in names if len(one.parts) == depth}
        while left and (refused := trial.run(sorted(left), dangling)):
            left -= refused
