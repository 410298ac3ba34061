"""Killed anywhere, a run that is taken up ends as the one that was never interrupted, to the bit.

Kills: at every write, fsync, rename and deletion of all saves; the same with what was not flushed lost, as in a power
cut; at random moments; several times in one run; with another number of data workers each time; by SIGTERM, which has
to save first. And a save beside the training holds the step it names, on a slow disk too; a full disk costs a save and
nothing else; what changed is refused, each kind of change by name.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from mmtune.checkpoint import seal
from mmtune.training import resume as states

from . import _fork
from ._base import Guard, Verdict
from ._shim import Shim, lose, sealed
from ._stage import (
    STEPS,
    clear,
    compare,
    digests,
    finish,
    fresh,
    order,
    pairs_file,
    recipe_file,
    signalled,
    straight,
    train,
)


def prove(short: bool) -> Verdict:
    verdict = Verdict("resume", "interrupted runs that ended as the straight one, or refused what they had to")
    out, wanted, told, seconds = straight()
    calls = told["calls"]
    saw = Counter(call.split()[0] for call in calls)
    verdict.need({"write", "fsync", "rename", "unlink"} <= set(saw), f"the shim saw too little of a save: {dict(saw)}")
    verdict.need(Path(out / "skipped.jsonl").read_text().count("\n") > 1, "the straight run skipped nothing")
    verdict.need(len(order(out)) == STEPS, "the straight run was not watched")

    start, *saves = _parts(calls)
    verdict.need(len(saves) == STEPS // 2, f"{len(saves)} saves in {STEPS} steps")
    # what takes seconds comes first
    edits = _edits(verdict, 2 if short else 99)
    _by_signal(verdict, wanted, [signal.SIGTERM] if short else [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    _slow_disk(verdict)
    _two_runs(verdict, wanted)
    parts = _many_times(verdict, wanted, (3,) if short else (2, 3, 7))
    _pairs(verdict)
    last = max(number for number, call in enumerate(calls, 1) if call.startswith("rename state/.step-"))
    full = _full_disk(verdict, wanted, calls, [last] if short else [*start[::4], *saves[1][::4], last - 3, last])
    few = _spread(calls, 4) if short else [*start, *saves[-1]]
    for number in few:
        _killed_at(verdict, number, calls[number - 1], wanted, power=False)
    cuts = _spread(calls, 5)[1:4] if short else [*start, *saves[-2]]
    lost = sum(_killed_at(verdict, number, calls[number - 1], wanted, power=True) for number in cuts)
    verdict.need(lost > 0, "no power cut lost anything")
    again = _cut_again(verdict, wanted, 3 if short else 99)
    hit = _at_random(verdict, 1 if short else 50, seconds, wanted)
    asked = _at_random(verdict, 1 if short else 20, seconds, wanted, signal.SIGTERM)
    verdict.notes = [
        f"kills at {len(few)} of {len(calls)} disk calls ({', '.join(f'{name} {n}' for name, n in saw.items())})",
        f"power cuts at {len(cuts)} ({lost} things lost)",
        f"power cuts after a resume {again}",
        f"random kills {hit}, random requests to end {asked}",
        f"chains of resumes {parts}",
        f"full disks {full}",
        f"edits refused {edits}",
    ]
    return verdict


def _parts(calls: list[str]) -> list[range]:
    """Numbers of the calls at the start of a run, and of each save."""
    begins = [number for number, call in enumerate(calls, 1) if call == "mkdir .weights.draft"]
    ends = [*begins[1:], len(calls) + 1]
    return [range(1, begins[0]), *(range(*pair) for pair in zip(begins, ends, strict=True))]


def _spread(calls: list[str], count: int) -> list[int]:
    """Some calls: those around renames and deletions first, because there is most to lose; then evenly spread."""
    renames = [i + 1 for i, call in enumerate(calls) if call.startswith("rename")]
    chosen = {renames[-1], renames[-1] + 1, renames[-1] + 2, renames[1] + 1, renames[len(renames) // 2]}
    return sorted([*chosen, *range(3, len(calls), max(1, len(calls) // count))][:count])


def _killed_at(verdict: Verdict, number: int, call: str, wanted: dict[str, str], power: bool) -> int:
    """Killed at a call, then taken up; returns what a power cut took."""
    recipe, out, journal = recipe_file(), fresh("kill"), fresh("journal")
    where = f"{'power cut' if power else 'killed'} at call {number}, {call}"
    ended = _fork.run(lambda: train(recipe, out, shim=Shim(out, kill=number, journal=journal)))
    verdict.need(
        ended.code == -signal.SIGKILL, f"{where}: did not fire, it ended with {ended.code}: {ended.said[-300:]}"
    )
    lost = lose(out, journal) if power else 0
    wrong = _finished(out, wanted, sealed(journal))
    verdict.check(not wrong, f"{where}: {'; '.join(wrong)}")
    clear(out)
    return lost


def _finished(out: Path, wanted: dict[str, str], newest: int) -> list[str]:
    """Take a run up to its end: what is wrong then, or with where it began, `newest` being the last state sealed."""
    ended = finish(recipe_file(), out)
    wrong = [f"ended with {ended.code}: {ended.said[-400:]}"] if ended.code else compare(out, wanted)
    went = re.search(r"going on after step (\d+)", ended.said)
    if newest and (went is None or int(went[1]) < newest):
        wrong.append(f"began after step {went[1] if went else 0}, although step {newest} was sealed")
    return wrong


def _cut_again(verdict: Verdict, wanted: dict[str, str], most: int) -> int:
    """Killed after a sample was skipped, taken up, and then the power goes: at each call up to the first save's end.

    Taking up drops lines of the ledger, and what is saved counts on the others.
    """
    recipe, lines = recipe_file(), Path(straight()[0] / "skipped.jsonl").read_text().splitlines()
    step = max(json.loads(line)["step"] for line in lines if json.loads(line)["step"] < STEPS - 2)

    def first(out: Path, journal: Path | None) -> int:
        """Returns the step of the newest state."""
        _fork.run(
            lambda: train(recipe, out, shim=Shim(out, journal=journal), patch=signalled(step + 2, signal.SIGKILL))
        )
        saved = states.load(out / "state", lambda text: None)
        return saved.step if saved else 0

    out = fresh("twice")
    kept = first(out, None)
    before = Path(out / "skipped.jsonl").read_text().count("\n")
    calls = _fork.run(lambda: train(recipe, out, shim=Shim(out))).value["calls"]
    verdict.need(kept > 0 and before > 1, f"killed in step {step}, with {before} lines: nothing to lose")
    dropped = [number for number, call in enumerate(calls, 1) if call.startswith("replace .skipped.jsonl")]
    verdict.need(bool(dropped), f"no line was dropped: {calls[:20]}")
    clear(out)
    end = next((number for number, call in enumerate(calls, 1) if call.startswith("rename state/.step-")), 0) + 2
    numbers = range(1, end) if most > end else [dropped[0] + more for more in range(most)]
    for number in numbers:
        out, journals = fresh("twice"), [fresh("journal"), fresh("journal")]
        where = f"power cut at call {number} after a resume, {calls[number - 1]}"
        kept = first(out, journals[0])
        ended = _fork.run(lambda: train(recipe, out, shim=Shim(out, kill=number, journal=journals[1])))  # noqa: B023
        verdict.need(ended.code == -signal.SIGKILL, f"{where}: did not fire: {ended.code} {ended.said[-300:]}")
        lose(out, *journals)
        wrong = _finished(out, wanted, kept)
        verdict.check(not wrong, f"{where}: {'; '.join(wrong)}")
        clear(out)
    return len(numbers)


def _at_random(
    verdict: Verdict, count: int, seconds: float, wanted: dict[str, str], number: signal.Signals = signal.SIGKILL
) -> str:
    """A signal at random moments, with random numbers of workers; taken up, it is the straight run."""
    draw, hit = random.Random(7), 0
    for place in range(count):
        recipe, out, moment = recipe_file(), fresh("random"), draw.uniform(0.1, 1.1) * seconds
        workers = f"run.workers={draw.choice((0, 0, 1, 2))}"
        ended = _fork.run(lambda: train(recipe, out, workers), kill_after=moment, number=number)  # noqa: B023
        # where a run listens already or still, it ends by itself and tells the code
        fired = ended.code == -number or (ended.value or {}).get("code") == 128 + number
        hit += fired
        if not fired:
            seconds = ended.seconds  # the machine is less busy than it was
        ended = finish(recipe, out)
        wrong = [ended.said[-400:]] if ended.code else compare(out, wanted)
        verdict.check(not wrong, f"{number.name} {place} after {moment:.2f} s: {'; '.join(wrong)}")
        clear(out)
    verdict.need(hit >= count // 2, f"only {hit} of {count} times {number.name} came before the end")
    return f"{hit} hit of {count}"


def _many_times(verdict: Verdict, wanted: dict[str, str], lengths: tuple[int, ...]) -> int:
    """Stopped every few steps, killed in between, each time with another number of workers."""
    for length in lengths:
        _chain(verdict, recipe_file(), wanted, length)
    return len(lengths)


def _pairs(verdict: Verdict) -> None:
    """A run of pairs goes on with the reference that it began with."""
    recipe, out = pairs_file(), fresh("pairs")
    ended = _fork.run(lambda: train(recipe, out))
    verdict.need(ended.code == 0, f"the straight run of pairs: {ended.said[-300:]}")
    _chain(verdict, recipe, digests(out), 3)


def _chain(verdict: Verdict, recipe: Path, wanted: dict[str, str], length: int) -> None:
    out = fresh("chain")
    for part in range(40):
        workers = f"run.workers={(0, 2, 1, 4)[part % 4]}"
        how = signal.SIGKILL if part % 3 == 2 else signal.SIGTERM
        ended = _fork.run(lambda: train(recipe, out, workers, patch=signalled(length, how)))  # noqa: B023
        if ended.code == 0 and ended.value["finished"]:
            break
    verdict.need(part > 0, f"a chain of {length} steps each was not interrupted")
    wrong = compare(out, wanted)
    said = f"{recipe.stem}, stopped after each {length} steps, {part} times: {'; '.join(wrong)} {ended.said[-300:]}"
    verdict.check(not wrong, said)
    clear(out)


def _by_signal(verdict: Verdict, wanted: dict[str, str], numbers: list[signal.Signals]) -> None:
    """A signal ends the step, saves, and gives its own exit code."""
    for number in numbers:
        recipe, out = recipe_file(), fresh("signal")
        slow = Shim(out, slow=0.02)  # the write of the step before is still going on
        ended = _fork.run(lambda: train(recipe, out, shim=slow, patch=signalled(3, number)))  # noqa: B023
        saved = states.load(out / "state", lambda text: None)
        told = ended.value or {}
        verdict.need(told.get("step") == 3, f"{number.name}: did not fire in step 3: {told} {ended.said[-300:]}")
        fine = told.get("code") == 128 + number and saved is not None and saved.step == 3
        ended = finish(recipe, out)
        wrong = compare(out, wanted)
        verdict.check(fine and not wrong, f"{number.name}: {told}, saved {saved and saved.step}, {'; '.join(wrong)}")
        clear(out)


def _slow_disk(verdict: Verdict) -> None:
    """While a save is written the training goes on, and what is written is the step that the save names."""
    recipe, out = recipe_file(), fresh("slow")

    def work() -> dict[str, object]:
        import threading

        from mmtune.training import async_writer

        overlapped = 0

        def patch() -> None:
            real = states.seed_step

            def seed(*args: int) -> None:
                nonlocal overlapped
                overlapped += any(thread.name.startswith("mmtune-save") for thread in threading.enumerate())
                real(*args)

            states.seed_step = seed

        told = train(recipe, out, shim=Shim(out, slow=0.004), patch=patch)
        return {**told, "overlapped": overlapped, "module": async_writer.__name__}

    ended = _fork.run(work)
    verdict.need(bool(ended.value and ended.value["overlapped"]), f"no step ran beside a save: {ended.said[-300:]}")
    for step in (STEPS - 2, STEPS):
        # the same step saved by a run that does nothing else, and waits
        alone = fresh("alone")
        _fork.run(lambda: train(recipe, alone, patch=signalled(step, signal.SIGTERM)))  # noqa: B023
        wrong = [
            path.name
            for path in sorted((alone / f"state/step-{step:08d}").glob("*"))
            if (out / f"state/step-{step:08d}" / path.name).read_bytes() != path.read_bytes()
        ]
        verdict.check(not wrong, f"saved beside the training, step {step} is not itself: {', '.join(wrong)}")
        clear(alone)
    clear(out)


def _two_runs(verdict: Verdict, wanted: dict[str, str]) -> None:
    """A second run in the folder is refused; one that was killed leaves no lock, although its workers live on a bit."""
    recipe, out = recipe_file(), fresh("shared")

    def work() -> list[object]:
        said: list[object] = []

        def patch() -> None:
            real = states.seed_step

            def seed(*args: int) -> None:
                if not said:
                    second = _fork.run(lambda: train(recipe, out))
                    said.extend((second.code, "is in use by another run" in second.said))
                    print("a second run came", flush=True)
                real(*args)

            states.seed_step = seed

        train(recipe, out, patch=patch)
        return said

    ended = _fork.run(work)
    verdict.need("a second run came" in ended.said, f"no second run: {ended.said[-300:]}")
    wrong = compare(out, wanted) if ended.code == 0 else [ended.said[-300:]]
    refused = bool(ended.value and ended.value[0] and ended.value[1])
    verdict.check(refused and not wrong, f"a second run in the folder: {ended.value} {'; '.join(wrong)}")
    clear(out)


def _full_disk(verdict: Verdict, wanted: dict[str, str], calls: list[str], numbers: Sequence[int]) -> int:
    """No room from some call on: the run stops loudly, what was sealed stays, and it goes on when there is room."""
    numbers = [number for number in numbers if calls[number - 1].startswith(("write", "fsync", "rename", "mkdir"))]
    for number in numbers:
        recipe, out, journal = recipe_file(), fresh("full"), fresh("journal")
        ended = _fork.run(
            lambda: train(recipe, out, shim=Shim(out, fail=number, full=True, journal=journal))  # noqa: B023
        )
        where = f"disk full at call {number}, {calls[number - 1]}"
        loud = ended.code != 0 and "No space left" in ended.said
        newest = states.load(out / "state", lambda text: None)
        kept = (newest.step if newest else 0) >= sealed(journal)
        left = [path.name for path in out.rglob("*.draft")]
        ended = finish(recipe, out)
        wrong = compare(out, wanted)
        verdict.check(
            loud and kept and not left and not wrong,
            f"{where}: loud {loud}, kept {newest and newest.step}, left {left}, {'; '.join(wrong)}",
        )
        clear(out)
    return len(numbers)


def _edits(verdict: Verdict, most: int) -> int:
    """What a run is made of is changed between a stop and a resume: refused by name, and taken when allowed."""
    import shutil

    from mmtune.training import checkpoint_manager

    def edit_json(path: str, change: Callable[[dict], None]) -> Callable[[Path, Path], tuple[str, ...]]:
        def edit(world: Path, out: Path) -> tuple[str, ...]:
            tree = json.loads((world / path).read_text())
            change(tree)
            (world / path).write_text(json.dumps(tree))
            return ()

        return edit

    def weights(world: Path, out: Path) -> tuple[str, ...]:
        file = world / "tower/open_clip_model.safetensors"
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
        return ()

    def teacher(world: Path, out: Path) -> tuple[str, ...]:
        folder = world / "teacher/weights"
        read = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
        seal.write(folder, lambda draft: [save_file({n: 2 * t for n, t in read[f].items()}, draft / f) for f in read])
        return ()

    def words(world: Path, out: Path) -> tuple[str, ...]:
        edit_json("llm/tokenizer.json", _swap_words)(world, out)
        file = world / "teacher/recipe.yaml"  # whoever teaches has the same words
        file.write_text(file.read_text().replace(str(recipe_file().parent / "llm"), str(world / "llm")))
        return ()

    def shard(world: Path, out: Path) -> tuple[str, ...]:
        from tests.training.world import shards

        shutil.rmtree(world / "words")
        shards(world / "words", each=9, text=True)
        return ()

    def flipped(world: Path, out: Path) -> tuple[str, ...]:
        file = sorted((world / "words").glob("*.tar"))[0]
        data = bytearray(file.read_bytes())
        data[600] ^= 1
        file.write_bytes(data)
        return ()

    def prompt(world: Path, out: Path) -> tuple[str, ...]:
        file = out / "prompts/plain.yaml"
        file.write_text(file.read_text().replace('user: {before: "<|user|>"}', 'user: {before: "<|system|>"}'))
        return ()

    def ledger(world: Path, out: Path) -> tuple[str, ...]:
        lines = (out / "skipped.jsonl").read_text().splitlines(keepends=True)
        (out / "skipped.jsonl").write_text("".join(lines[1:]))
        return ()

    def other_line(world: Path, out: Path) -> tuple[str, ...]:
        text = (out / "skipped.jsonl").read_text()
        (out / "skipped.jsonl").write_text(text.replace("pictures", "pastures", 1))
        return ()

    def setting(text: str) -> Callable[[Path, Path], tuple[str, ...]]:
        return lambda world, out: (text,)

    def version() -> None:
        real = checkpoint_manager.store.versions
        checkpoint_manager.store.versions = lambda: {**real(), "mmtune": "99.0"}

    plan: list[tuple[str, str, Callable[[Path, Path], tuple[str, ...]], Callable[[], None] | None]] = [
        ("data", "other samples", shard, None),
        ("ledger", "a lost line", ledger, None),
        ("ledger", "an altered line", other_line, None),
        ("recipe", "a rate", setting("groups.sight.lr=0.5"), None),
        ("recipe", "more steps", setting("schedule.steps=12"), None),
        ("data", "a flipped bit", flipped, None),
        ("base", "a flipped bit of a tower", weights, None),
        ("prompts", "another mark", prompt, None),
        ("code", "another version", setting("run.workers=0"), version),
        ("tokenizer", "another word", words, None),
        ("models", "another teacher", teacher, None),
    ]
    for kind, what, edit, patch in plan[:most]:
        world, out = fresh("world"), fresh("edited")
        shutil.copytree(recipe_file().parent, world)
        text = (world / "recipe.yaml").read_text().replace(str(recipe_file().parent), str(world))
        (world / "recipe.yaml").write_text(text)
        recipe = world / "recipe.yaml"
        _fork.run(lambda: train(recipe, out, patch=signalled(7, signal.SIGTERM)))  # noqa: B023
        more = edit(world, out)
        refused = _fork.run(lambda: train(recipe, out, *more, patch=patch))  # noqa: B023
        named = "has changed since it was saved" in refused.said and f"--allow {kind}" in refused.said
        others = [k for k in checkpoint_manager.KINDS if k != kind and f"--allow {k}" in refused.said]
        taken = _fork.run(lambda: train(recipe, out, *more, patch=patch, allow=(kind,)))  # noqa: B023
        verdict.check(
            refused.code != 0 and named and not others and taken.code == 0,
            f"{kind}, {what}: refused {refused.code != 0}, named {named}, also named {others}, taken when allowed "
            f"{taken.code == 0}: {refused.said[-300:] if not named else taken.said[-300:]}",
        )
        clear(out)
    return min(most, len(plan))


def _swap_words(tree: dict) -> None:
    vocabulary = tree["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


_SEAL, _STATES, _MANAGER = "mmtune.checkpoint.seal", "mmtune.training.resume", "mmtune.training.checkpoint_manager"

GUARDS = (
    Guard(
        "files are flushed before the seal", _SEAL, "write", "            flush(draft / name)\n", "            pass\n"
    ),
    Guard("the seal is flushed", _SEAL, "write", "        flush(seal)\n", "        pass\n"),
    Guard(
        "the rename is flushed before older ones go", _SEAL, "write", "        flush(folder.parent)\n", "        pass\n"
    ),
    Guard(
        "small files are flushed before they replace",
        "mmtune.disk",
        "_replace",
        "        flush(draft)\n",
        "        pass\n",
    ),
    Guard(
        "older states go after the new one is sealed",
        _STATES,
        "save",
        "    try:\n        seal.write(target, fill)",
        "    [shutil.rmtree(path) for path in list(_states(folder))]\n    try:\n        seal.write(target, fill)",
    ),
    Guard("a full disk is said as what it is", _SEAL, "write", "        raise\n", "        return\n"),
    Guard(
        "the state is sealed last",
        _MANAGER,
        "CheckpointManager.save",
        """                store.write_weights(self.out, files, self.recipe, facts)
                states.save(self.out / "state", moment, self.recipe.run.keep)
""",
        """                states.save(self.out / "state", moment, self.recipe.run.keep)
                store.write_weights(self.out, files, self.recipe, facts)
""",
    ),
    Guard(
        "the ledger is flushed before a state names it",
        _MANAGER,
        "CheckpointManager.save",
        "            self.loader.ledger.flush()\n",
        "",
    ),
    Guard(
        "a copy is taken before training goes on",
        "mmtune.checkpoint.tensors",
        "snapshot",
        '.to("cpu", copy=True)',
        '.to("cpu")',
    ),
    Guard(
        "a failed write ends the run",
        "mmtune.training.async_writer",
        "AsyncWriter._run",
        "                self._error = error  # first: saying it may fail\n",
        "                pass\n",
    ),
    Guard(
        "random numbers are those of the step",
        _STATES,
        "seed_step",
        "    torch.manual_seed(value % 2**63)\n",
        "    pass\n",
    ),
    Guard(
        "optimizers are taken up",
        _MANAGER,
        "CheckpointManager._take",
        "            holders[name].load(state.optimizers[name])\n",
        "            pass\n",
    ),
    Guard(
        "objectives are taken up",
        "mmtune.training.train_plan",
        "TrainPlan.objectives_with_state",
        "if type(objective).state is not Objective.state",
        "if False",
    ),
    Guard("the reference is taken up", "mmtune.objectives.dpo", "DPO.load", "self._reference.load(tensors)", "pass"),
    Guard(
        "weights are taken up",
        _MANAGER,
        "CheckpointManager._take",
        'store.copy_into({"state": everything}, {"state": state.weights})',
        "pass",
    ),
    Guard(
        "the counts of the ledger are taken up",
        _MANAGER,
        "CheckpointManager._take",
        'self.loader.ledger.restore(state.info["ledger"])',
        "pass",
    ),
    Guard(
        "the mean loss is taken up",
        _MANAGER,
        "CheckpointManager.restore",
        'for loss, count in state.info["recent"]',
        "for loss, count in []",
    ),
    Guard(
        "a signal waits for the save",
        "mmtune.training.signals",
        "Stop._caught",
        "        if self.code:\n",
        "        if True:\n",
    ),
    Guard("one run in a folder", "mmtune.training.lock", "_take", "        if held is True or", "        if True or"),
    Guard(
        "differences are refused", _MANAGER, "CheckpointManager.restore", "if _kind(line) not in allow]", "if False]"
    ),
    *(
        Guard(f"{kind} is compared", _MANAGER, "CheckpointManager.facts", old, new)
        for kind, old, new in (
            ("the recipe", '"recipe": without_secrets(recipe),', '"recipe": None,'),
            ("the base", '"base": {part: one["sha256"] for part, one in self.setup.base.items()},', '"base": None,'),
            ("the teacher", '"models": self.setup.others.digests,', '"models": None,'),
            ("the tokenizer", '"tokenizer": self.model.llm.tokenizer.fingerprint(),', '"tokenizer": None,'),
            ("the data", '"data": self.loader.fingerprint(),', '"data": None,'),
            ("the prompt", 'stream.processor.template.model_dump(mode="json")', "None"),
            ("the version", 'if name != "git"}', "if False}"),
        )
    ),
    Guard(
        "lost lines of the ledger are seen",
        "mmtune.data.ledger",
        "Ledger.faults",
        '!= position["sha256"]',
        "!= 0 and False",
    ),
    Guard(
        "a ledger that is too short is seen",
        "mmtune.data.ledger",
        "Ledger.faults",
        "if length < size:",
        "if length < size: return []\n        if False:",
    ),
    Guard(
        "damage that came later is other data",
        "mmtune.data.shards",
        "Corpus.fingerprint",
        "for label, text in self._faults:",
        "for label, text in ():",
    ),
)
