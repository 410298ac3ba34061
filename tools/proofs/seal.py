"""A damaged or unsealed checkpoint is never used: the run says which, falls back, and ends as the straight one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from mmtune.checkpoint import seal
from mmtune.errors import CheckpointError
from mmtune.training import resume as states

from . import _fork
from ._base import Guard, Verdict
from ._stage import STEPS, clear, compare, finish, fresh, recipe_file, straight

Damage = Callable[[Path, random.Random], None]


def _cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _space(path: Path, draw: random.Random) -> None:
    """Another kind of blank, which a reader of JSON passes over."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\n", b"\t", 1) if b"\n" in data else data + b"\t")


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def _older(path: Path, draw: random.Random) -> None:
    """The file of another state in its place: each whole, and together never saved."""
    other = next(p for p in sorted(path.parent.parent.glob("step-*")) if p != path.parent) / path.name
    shutil.copy(other, path)


def _stranger(path: Path, draw: random.Random) -> None:
    """A file that nobody sealed."""
    shutil.copy(path, path.with_name(f"more.{path.name}"))


def _link(path: Path, draw: random.Random) -> None:
    """A link to the same bytes elsewhere, which may change after the check."""
    elsewhere = path.parent.parent / f"elsewhere.{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


DAMAGES: dict[str, tuple[Damage, int]] = {
    "cut": (_cut, 12),
    "flipped": (_flip, 12),
    "with another blank": (_space, 1),
    "removed": (_remove, 1),
    "of an older state": (_older, 1),
    "beside a stranger": (_stranger, 1),
    "a link": (_link, 1),
}
"""What is done to each file, and how often in the full form."""


def prove(short: bool) -> Verdict:
    verdict = Verdict("seal", "damages noticed, named and not used")
    out, wanted, _, _ = straight()
    newest, older = f"step-{STEPS:08d}", f"step-{STEPS - 2:08d}"
    draw = random.Random(3)
    files = sorted(path.name for path in (out / "state" / newest).iterdir())
    verdict.need(seal.MANIFEST in files and len(files) >= 5, f"too few files in a state: {files}")
    for name in files:
        for what, (damage, times) in DAMAGES.items():
            for _ in range(1 if short else times):
                folder = fresh("states")
                shutil.copytree(out / "state", folder)
                path = folder / newest / name
                before = (path.read_bytes(), sorted(path.parent.iterdir()))
                damage(path, draw)
                changed = not path.exists() or path.is_symlink() or before != (
                    path.read_bytes(), sorted(path.parent.iterdir())
                )  # fmt: skip
                verdict.need(changed, f"{name} {what}: nothing was damaged")
                said: list[str] = []
                try:
                    state = states.load(folder, said.append)
                except CheckpointError as error:
                    state, said = None, [str(error)]
                named = any(newest in line and "damaged" in line for line in said)
                fell = any(f"falling back to {older}" in line for line in said)
                verdict.check(
                    state is not None and state.step == STEPS - 2 and named and fell,
                    f"{name} {what}: took {state and state.step}, said {said}",
                )
                shutil.rmtree(folder)
    _all_damaged(verdict, out, newest, older)
    _weights(verdict, out, draw, short)
    rerun = _taken_up(verdict, out, wanted, files[:1] if short else files, newest, draw)
    verdict.notes = [f"{len(files)} files of a state and those of the weights, {len(DAMAGES)} damages",
                     f"taken up to the end {rerun}"]  # fmt: skip
    return verdict


def _all_damaged(verdict: Verdict, out: Path, newest: str, older: str) -> None:
    """Nothing whole is left: an error, not a start from the beginning."""
    folder = fresh("states")
    shutil.copytree(out / "state", folder)
    for name in (newest, older):
        (folder / name / seal.MANIFEST).unlink()
    try:
        found = states.load(folder, lambda text: None)
        verdict.check(False, f"both states unsealed: took {found and found.step}")
    except CheckpointError as error:
        verdict.check("all of them damaged" in str(error), str(error))
    shutil.rmtree(folder)


def _weights(verdict: Verdict, out: Path, draw: random.Random, short: bool) -> None:
    """Weights for chat are as sealed as states."""
    from mmtune.checkpoint import store

    def read(run: Path) -> str:
        try:
            store.load_run(run)
        except CheckpointError as error:
            return str(error)
        return "taken"

    whole = _fork.run(lambda: read(out)).value
    verdict.need(whole == "taken", f"whole weights are not read: {whole}")
    names = sorted(path.name for path in (out / "weights").iterdir())
    for name in names[-1:] if short else names:
        for what in ("cut", "flipped", "removed", "beside a stranger"):
            run = fresh("weights")
            shutil.copytree(out, run)
            DAMAGES[what][0](run / "weights" / name, draw)
            said = _fork.run(lambda: read(run)).value  # noqa: B023
            verdict.check(said not in (None, "taken") and "damaged" in said, f"weights/{name} {what}: {said}")
            shutil.rmtree(run)


def _taken_up(
    verdict: Verdict, out: Path, wanted: dict[str, str], files: list[str], newest: str, draw: random.Random
) -> int:
    """Damage the newest state of a finished run; taken up, it makes the last steps again and ends the same."""
    for name in files:
        run = fresh("damaged")
        shutil.copytree(out, run)
        shutil.copy(f"{out}.order", f"{run}.order")
        _flip(run / "state" / newest / name, draw)
        ended = finish(recipe_file(), run)
        wrong = compare(run, wanted)
        again = "going on after step" in ended.said
        aside = (run / "state" / f"{newest}.damaged").is_dir()
        verdict.check(
            ended.code == 0 and again and aside and not wrong, f"{name}: {'; '.join(wrong)} {ended.said[-300:]}"
        )
        clear(run)
    return len(files)


_SEAL, _STATES = "mmtune.checkpoint.seal", "mmtune.training.resume"

GUARDS = (
    Guard("digests are compared", _SEAL, "faults", "or file_digest(path) != digest:", "or False:"),
    Guard(
        "missing files are seen",
        _SEAL,
        "faults",
        "if not path.is_file() or path.is_symlink():",
        "if path.is_symlink():",
    ),
    Guard(
        "links are no files", _SEAL, "faults", "if not path.is_file() or path.is_symlink():", "if not path.is_file():"
    ),
    Guard("a seal that is a link is none", _SEAL, "faults", "if seal.is_symlink():", "if False:"),
    Guard("a seal is as it was written", _SEAL, "faults", "if text != _manifest(listed):", "if False:"),
    Guard("strangers are seen", _SEAL, "faults", "for name in sorted(here - set(known))]", "for name in ()]"),
    Guard(
        "no seal, no state",
        _SEAL,
        "faults",
        'return [f"{MANIFEST}: missing, the folder was never sealed"]',
        "return []",
    ),
    Guard("a seal that cannot be read is none", _SEAL, "faults", 'return [f"{MANIFEST}: damaged"]', "return []"),
    Guard("states are checked", _STATES, "load", "        faults = seal.faults(path)\n", "        faults = []\n"),
    Guard(
        "damage is said", _STATES, "load", '        say(f"warning: {path.name}', '        str(f"warning: {path.name}'
    ),
    Guard(
        "falling back is said",
        _STATES,
        "load",
        '                    say(f"falling back',
        '                    str(f"falling back',
    ),
    Guard(
        "nothing whole is an error", _STATES, "load", "    if damaged:\n        raise", "    if False:\n        raise"
    ),
    Guard(
        "damaged states are put aside",
        _STATES,
        "put_aside",
        "            os.rename(path, aside)\n",
        "            pass\n",
    ),
    Guard(
        "two states are kept", _STATES, "save", "    for path in whole[max(2, keep) :]:", "    for path in whole[1:]:"
    ),
    Guard(
        "weights are checked",
        "mmtune.checkpoint.store",
        "load_weights",
        "    damage = seal.faults(folder)\n",
        "    damage = []\n",
    ),
)
