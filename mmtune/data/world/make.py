"""Writes the world as webdataset shards: tar files in which members with one key belong together.

Clip i of a split is a function of (seed, level, split, i) alone, so the shards come out the same, byte for byte,
however many workers draw them and however many clips were asked for before it in the same shard.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmtune import children, disk
from mmtune.data.world.cloud import ply
from mmtune.data.world.draw import clip
from mmtune.data.world.language import CAPTION_PROMPTS, HEARD, Question, captions, describe, questions
from mmtune.data.world.scene import LEVELS, PLACES, SPLITS, Scene, draw_scene
from mmtune.data.world.sound import wav_bytes, wave
from mmtune.data.world.video import jpeg, mp4
from mmtune.errors import UsageError
from mmtune.types import Kind

TURNS = 8
"""Questions in one conversation, at most; a description is one more turn."""
CYCLE: tuple[Kind, ...] = ("video", "video", "video", "video", "image")
"""What the conversations of successive records are about, over and over."""
MEMBER: dict[Kind, str] = {"video": "mp4", "image": "jpg", "audio": "wav", "points": "ply"}
MEDIA = tuple(MEMBER.values())


def make_shards(
    out: Path,
    clips: int,
    seed: int,
    level: str,
    split: str = "train",
    per_shard: int = 500,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    media: Iterable[str] = MEDIA,
    kinds: Iterable[Kind] = CYCLE,
) -> list[Path]:
    """Draw `clips` scenes and write `out/<level>-<split>-<number>.tar`; returns the paths.

    progress: called after each record with the number of records written so far.  media: which files a record gets
    beside its .json.  kinds: what the conversations of successive records are about, over and over.

    Raises UsageError for an unknown level, split, medium or kind, for sounds on level easy, which asks nothing about
    them, for counts below one, and where `out` holds further shards
    of this level and split, which one pattern would mix with the new ones.
    """
    media, kinds = tuple(media), tuple(kinds)
    for name, seen, known in (
        ("level", [level], LEVELS),
        ("split", [split], SPLITS),
        ("medium", media, MEDIA),
        ("kind", kinds or [""], tuple(MEMBER)),
    ):
        if odd := [s for s in seen if s not in known]:
            raise UsageError(seen=f"{name} {odd[0]!r}", expected=f"one of {', '.join(known)}")
    if "audio" in kinds and level != "full":
        raise UsageError(seen=f"kind 'audio' on level {level}", expected="level full, which asks about sounds")
    for name, number in (("clips", clips), ("per_shard", per_shard), ("workers", workers)):
        if number < 1:
            raise UsageError(seen=f"{name} = {number}", expected="at least 1")
    from webdataset import TarWriter

    names = [f"{level}-{split}-{number:05d}.tar" for number in range(-(-clips // per_shard))]
    if left := sorted({path.name for path in out.glob(f"{level}-{split}-*.tar")} - set(names)):
        raise UsageError(
            seen=f"{out} holds {left[0]}{' and more' * (len(left) > 1)} of a larger set",
            expected="no shards but those that are made again",
            hint="give another folder, or delete them first",
        )
    out.mkdir(parents=True, exist_ok=True)
    paths, written = [], 0
    records = _records(partial(record, seed=seed, level=level, split=split, media=media, kinds=kinds), clips, workers)
    for first, name in zip(range(0, clips, per_shard), names, strict=True):
        path = out / name
        part = path.with_suffix(".tar.part")
        with disk.create(part) as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for item in islice(records, min(per_shard, clips - first)):
                tar.write(item)
                written += 1
                if progress:
                    progress(written)
        part.replace(path)
        paths.append(path)
    return paths


def record(
    index: int,
    seed: int,
    level: str,
    split: str,
    media: tuple[str, ...] = MEDIA,
    kinds: tuple[Kind, ...] = CYCLE,
) -> dict[str, Any]:
    """The members of record `index`: suffix to bytes, and "__key__"."""
    rng = random.Random(f"{seed}:{level}:{split}:{index}")
    kind = kinds[index % len(kinds)]
    scene = draw_scene(rng, level, split)
    while kind == "points" and not scene.snapshot(0.0).solids:  # a cloud needs something to be there from the start
        scene = draw_scene(rng, level, split)
    key = f"{index:07d}"
    facts = _facts(scene, rng, key, kind) | {"id": f"{level}-{split}-{seed}-{key}", "split": split}
    item: dict[str, Any] = {"__key__": key, "json": json.dumps(facts, sort_keys=True).encode()}
    samples = wave(scene) if {"mp4", "wav"} & {*media} else None
    frames = clip(scene)
    for suffix in media:
        if suffix == "mp4":
            item[suffix] = mp4(frames, samples)
        elif suffix == "jpg":
            item[suffix] = jpeg(frames[0])
        elif suffix == "wav":
            item[suffix] = wav_bytes(samples)  # type: ignore[arg-type]
        else:
            item[suffix] = ply(scene)
    return item


def _facts(scene: Scene, rng: random.Random, key: str, kind: Kind) -> dict[str, Any]:
    shown = scene if kind == "video" else scene.snapshot(0.0)
    if kind == "points":
        shown = replace(shown, sign=None)  # signs are painted, and a cloud holds solids only
    hearing = [q for q in questions(scene, rng, heard=True) if q.type in HEARD]
    if kind == "audio":
        turns = asked = hearing
        said = [scene.sound.kind]
    else:
        asked = questions(shown, rng, still=kind != "video")
        description = Question("describe", rng.choice(CAPTION_PROMPTS), describe(shown))
        turns = asked[:TURNS]
        # mostly last: a description that comes first answers what is asked after it
        turns.insert(0 if rng.random() < 0.3 else len(turns), description)
        said = captions(shown, rng)
    talk = [{"from": who, "value": text} for q in turns for who, text in (("human", q.question), ("gpt", q.answer))]
    talk[0]["value"] = f"<{kind}>\n{talk[0]['value']}"
    return {
        "level": scene.level,
        "caption": said[0],
        "captions": said,
        "conversations": talk,
        kind: f"{key}.{MEMBER[kind]}",
        "questions": [_plain(q) for q in asked],
        "hearing": [_plain(q) for q in hearing],
        "scene": _compact(scene),
    }


def _plain(question: Question) -> dict[str, Any]:
    return asdict(question) | {"temporal": question.temporal}


def _compact(scene: Scene) -> dict[str, Any]:
    solids = []
    for solid in scene.solids:
        facts: dict[str, Any] = {n: getattr(solid, n) for n in ("shape", "colour", "size", "texture")}
        facts["place"] = PLACES[solid.place]
        if solid.event:
            facts["event"] = {
                k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(solid.event).items() if v is not None
            }
            facts["end_place"], facts["end_size"] = PLACES[solid.end_place], solid.end_size
        solids.append(facts)
    sign = {"text": scene.sign.text, "place": PLACES[scene.sign.place]} if scene.sign else None
    return {"solids": solids, "sign": sign, "sound": asdict(scene.sound), "seed": scene.seed}


def _records(make: Callable[[int], dict[str, Any]], clips: int, workers: int) -> Iterator[dict[str, Any]]:
    """Records in order of their index, drawn by `workers` processes at most a few batches ahead of the writer."""
    if workers == 1:
        yield from map(make, range(clips))
        return
    starts = iter(range(0, clips, 20))
    with children.isolated(), ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        batch = partial(_batch, make, clips)
        ahead = [pool.submit(batch, start) for start in islice(starts, 2 * workers)]
        while ahead:
            done = ahead.pop(0).result()
            ahead += [pool.submit(batch, start) for start in islice(starts, 1)]
            yield from done


def _batch(make: Callable[[int], dict[str, Any]], clips: int, start: int) -> list[dict[str, Any]]:
    return [make(i) for i in range(start, min(start + 20, clips))]
