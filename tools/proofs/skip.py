"""A sample that is skipped changes nothing else: the run without it beforehand is the same, to the bit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

from mmtune.data import index
from tests.training import world

from . import _fork
from ._base import Guard, Verdict
from ._stage import STEPS, clear, fresh, order, recipe_file, train


def _members(shard: Path) -> dict[str, bytes]:
    import tarfile

    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def _faults(stream: str, members: dict[str, bytes], key: str) -> list[dict[str, bytes]]:
    """The sample, spoilt in several ways."""
    text = json.loads(members[f"{key}.json"])
    blank = {**text, "conversations": [*text["conversations"][:1], {"from": "gpt", "value": " "}]}
    ways = [{f"{key}.json": json.dumps(blank).encode()}, {f"{key}.json": members[f"{key}.json"][:-9]}]
    if stream == "pictures":
        picture = members[f"{key}.png"]
        ways = [{f"{key}.png": picture[:50]}, {f"{key}.png": b"no picture"}, *ways]
    return ways


def prove(short: bool) -> Verdict:
    verdict = Verdict("skip", "runs with a bad sample equal to the run that never had it")
    base = recipe_file().parent
    pictures, words = (0, 1, 2, 4, 5, 6, 7, 9, 12, 15), (0, 1, 3, 4, 6, 8, 10, 11, 13, 14)
    picked = [*(("pictures", number) for number in pictures), *(("words", number) for number in words)]
    picked = [("pictures", 1), ("words", 5)] if short else picked
    named = 0
    for number, (stream, sample) in enumerate(picked):
        key = f"{sample:06d}"
        results = []
        for spoilt in (True, False):
            folder, out = fresh("skip"), fresh("run")
            shutil.copytree(base, folder)
            recipe = folder / "recipe.yaml"
            recipe.write_text(recipe.read_text().replace(str(base), str(folder)))
            shard = next(path for path in sorted((folder / stream).glob("*.tar")) if f"{key}.json" in _members(path))
            members = _members(shard)
            if spoilt:
                ways = _faults(stream, members, key)
                members.update(ways[number % len(ways)])
            else:
                members = {name: data for name, data in members.items() if not name.startswith(key + ".")}
            world.write_tar(shard, members)
            index.beside(shard).unlink()
            # workers and a kill in one of them, because nothing of that may show either
            workers = f"run.workers={number % 3}" if spoilt else "run.workers=0"
            if spoilt and number % 4 == 1:
                _fork.run(lambda: train(recipe, out, workers), kill_after=0.5, number=signal.SIGKILL)  # noqa: B023
            ended = _fork.run(lambda: train(recipe, out, workers))  # noqa: B023
            if ended.code:
                verdict.need(False, f"{stream} {key}: {ended.said[-400:]}")
                break
            weights = {path.name: path.read_bytes() for path in (out / "weights").glob("*.safetensors")}
            state = out / f"state/step-{STEPS:08d}"
            weights |= {path.name: path.read_bytes() for path in state.glob("*.safetensors")}
            rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
            ours = [row for row in rows if row["member"] == key and row["stream"] == stream]
            results.append((weights, order(out), bool(ours)))
            clear(out), shutil.rmtree(folder)
        if len(results) == 2:
            (one, steps, skipped), (two, others, stranger) = results
            named += skipped
            verdict.need(not stranger, f"{stream} {key}: named although it was taken away")
            differ = [name for name in one if one[name] != two[name]]
            verdict.check(not differ and steps == others, f"{stream} {key}: {', '.join(differ)} differ")
    verdict.need(named >= len(picked) * 3 // 4, f"only {named} of {len(picked)} bad samples came up")
    verdict.notes = [f"{named} of {len(picked)} bad samples came up and were named"]
    return verdict


GUARDS = (
    Guard(
        "the order asks for the name, not the place",
        "mmtune.data.shards",
        "Corpus._keep",
        "[hash_text(names[ordinal]) for ordinal in chosen_indexes]",
        "[hash_text(str(ordinal)) for ordinal in chosen_indexes]",
    ),
    Guard(
        "the next sample takes its place",
        "mmtune.data.loader",
        "Loader._fill",
        "                continue\n",
        "                break\n",
    ),
)
