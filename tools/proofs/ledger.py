"""What the shards hold = what was trained + what the ledger names: faults of every reason, killed and restarted.

Shards are written with one fault or several for each reason of the closed list, at known places, among whole samples
of four kinds of media. Processes read them through the real processor, are killed, and go on with another number of
workers. The list of what was planted is made while planting; it is not asked of the program.
"""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtune import registry
from mmtune.data import index
from mmtune.data import ledger as ledgers
from mmtune.data.ledger import Ledger
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.pack import BatchSpec
from mmtune.errors import Reason
from mmtune.media.base import Sampling
from mmtune.processor import Processor
from tests import toys
from tests.media import make

from . import _fork
from ._base import Guard, Verdict
from ._stage import fresh

Members = list[tuple[str, bytes | tarfile.TarInfo]]
PLAN = BatchSpec(rows=1, length=48)
EPOCHS = 2
TEMPLATE = toys.TEMPLATE.model_copy(update={"media": {**toys.TEMPLATE.media, "points": ("<m>", "</m>")}})


class Seen(toys.Colours):
    """Pictures and videos, as they come out of the real decoders."""

    def sampling(self, kind: str) -> Sampling:
        return Sampling(frames=2)


class Heard(Seen):
    kinds = ("audio",)

    def prepare(self, media: Any, rng: Any = None) -> torch.Tensor:
        return media.data.mean().expand(1, 2, 3).contiguous()


class Felt(Seen):
    kinds = ("points",)

    def prepare(self, media: Any, rng: Any = None) -> torch.Tensor:
        return media.data[:, :3].mean(0).expand(1, 2, 3).contiguous()


# ------------------------------------------------------------------------------------------------------------ planting

PICTURE = make.image(make.picture(16, 12))
SOUND = make.wav(make.sine(16000, 0.2))
CLOUD = b"ply\nformat ascii 1.0\nelement vertex 2\n" + b"".join(
    b"property float %c\n" % axis for axis in b"xyz"
) + b"end_header\n0 0 0\n1 1 1\n"  # fmt: skip


def _talk(key: str, answer: Any = "red", ask: str = "what is this", **more: Any) -> tuple[str, bytes]:
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    return f"{key}.json", json.dumps({"id": key, "conversations": turns, **more}).encode()


def _with(key: str, more: str) -> bytes:
    """A record that is fine but for what is added to it."""
    return _talk(key)[1][:-1] + f", {more}}}".encode()


def _huge_png() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def _many_points() -> bytes:
    """More points than the limit, and a byte for each of their values."""
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 5000001\n"
    return head + b"".join(b"property uchar %c\n" % axis for axis in b"xyz") + b"end_header\n" + bytes(15_000_003)


def _link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def planted(key: str) -> dict[Reason, list[Members]]:
    """For each reason, samples that have to be refused for it; the key stands for the sample's."""
    film = make.video(8)
    long_film = make.rewrite(film, b"stts", 12, 0x7FFFFF00)  # how long each frame is shown
    cut_film = make.video(24, form="matroska")
    k = key
    return {
        Reason.incomplete_group: [],  # laid by `_shards`, because its members lie apart
        Reason.truncated_shard: [],  # a shard that is cut after it was indexed
        Reason.digest_mismatch: [],  # a shard that is altered after it was indexed
        Reason.missing_key: [[_talk(k, image="lost.png")], [(f"{k}.png", PICTURE)]],
        Reason.duplicate_key: [[_talk(k), _talk(k)]],
        Reason.unsafe_suffix: [[_talk(k), (f"{k}.{s}", b"x")] for s in ("pkl", "PT", "pth", "npz", "pyd", "py.txt")],
        Reason.unsafe_member: [[_talk(k), (f"{k}.png", _link(f"{k}.png"))]],
        Reason.unreadable_image: [[_talk(k), (f"{k}.png", PICTURE[:60])], [_talk(k), (f"{k}.jpg", b"")]],
        Reason.too_many_pixels: [[_talk(k), (f"{k}.png", _huge_png())]],
        Reason.unreadable_video: [[_talk(k), (f"{k}.mp4", film[: film.index(b"moov") - 4])]],
        Reason.no_video_stream: [[_talk(k), (f"{k}.mp4", make.sound("aac", "mp4"))]],
        Reason.short_video: [[_talk(k), (f"{k}.mkv", cut_film[: len(cut_film) * 6 // 10])]],
        Reason.video_limits: [[_talk(k), (f"{k}.mp4", long_film)]],
        Reason.unreadable_audio: [[_talk(k), (f"{k}.wav", SOUND[: len(SOUND) // 2])]],
        Reason.no_audio_stream: [[_talk(k, audio=f"{k}.mp4"), (f"{k}.mp4", film)]],
        Reason.audio_limits: [[_talk(k), (f"{k}.wav", make.float_wav(np.zeros(64, np.float32), channels=64))]],
        Reason.unreadable_points: [[_talk(k), (f"{k}.ply", CLOUD.replace(b"vertex 2", b"vertex 900"))]],
        Reason.points_limits: [[_talk(k), (f"{k}.ply", _many_points())]],
        Reason.bad_text: [
            [_talk(k, "red\x1fblue")],
            [_talk(k, ask="word that nobody knows")],
            [(f"{k}.json", b"\xff{}")],
        ],
        Reason.bad_json: [
            [(f"{k}.json", text)]
            for text in (_with(k, '"a": 1, "a": 2'), _with(k, '"system": 1e999'), b"[" * 9999, b"[]")
        ],
        Reason.bad_range: [[_talk(k, start=2, end=1), (f"{k}.mp4", film)], [_talk(k, video_start=0)]],
        Reason.bad_weight: [[(f"{k}.json", _with(k, f'"weight": {one}'))] for one in ("-1", '"2"', "true", "NaN")],
        Reason.unused_field: [[_talk(k, rejected="blue")], [_talk(k, tools=[{"name": "look"}])]],
        Reason.empty_target: [
            [_talk(k, " ")],
            [_talk(k, weight=0)],
            [_talk(k, "red", conversations=[{"from": "human", "value": "what"}])],
        ],
        Reason.placeholder_mismatch: [[_talk(k, ask="<image> is <image>"), (f"{k}.png", PICTURE)]],
        Reason.too_long: [[_talk(k, "red " * 60)]],
        Reason.download_failed: [[_talk(k, status="failed_to_download")]],
        Reason.wrong_media_type: [[_talk(k), (f"{k}.png", b"ffconcat version 1.0\nfile secret.mp4\n")]],
    }


NOT_HERE = {Reason.non_finite}
"""It comes from the loss and not from the data: see the proof `finite`."""


def _whole(key: str, number: int) -> Members:
    media = [("png", PICTURE), ("wav", SOUND), ("ply", CLOUD), None][number % 4]
    return [_talk(key, "red" if number % 3 else "red and blue"), *([(f"{key}.{media[0]}", media[1])] if media else [])]


def shards(folder: Path, short: bool) -> dict[str, Reason | None]:
    """Write shards; returns id to the reason for which it has to be skipped, none for those to be trained."""
    folder.mkdir(parents=True)
    wanted: dict[str, Reason | None] = {}
    number, members, apart = 0, Members(), Members()

    def key() -> str:
        nonlocal number
        number += 1
        return f"{number:05d}"

    def good(label: str, count: int) -> None:
        for _ in range(count):
            name = key()
            members.extend(_whole(name, number))
            wanted[f"{label}/{name}"] = None

    def close(label: str) -> Path:
        with tarfile.open(folder / f"{label}.tar", "w") as tar:
            for name, content in [*members, *apart]:
                info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
                if not isinstance(content, tarfile.TarInfo):
                    info.size = len(content)
                tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        members.clear(), apart.clear()
        return folder / f"{label}.tar"

    kinds = planted("x")
    skipped = {Reason.points_limits} if short else set()  # fifteen megabytes
    for reason in kinds:
        for variant in range(len(kinds[reason])):
            if reason in skipped:
                continue
            name = key()
            members.extend(planted(name)[reason][variant])
            wanted[f"faulty/{name}"] = reason
        good("faulty", 1)
    split = key()
    members.append(_talk(split))
    apart.append((f"{split}.png", PICTURE))
    wanted[f"faulty/{split}"] = Reason.incomplete_group
    good("faulty", 2)
    close("faulty")
    for label, reason in (("cut", Reason.truncated_shard), ("changed", Reason.digest_mismatch)):
        good(label, 9)
        path = close(label)
        index.index_shards([str(path)])
        groups = index.ShardIndex.parse(index.beside(path).read_text(), label).groups
        data = bytearray(path.read_bytes())
        if label == "cut":
            place = next(iter(groups[5].members.values()))[0]
            del data[place + 3 :]
            lost = groups[5:]
        else:
            lost = [groups[2], groups[6]]
            for group in lost:
                data[next(iter(group.members.values()))[0] + 1] ^= 4
        path.write_bytes(data)
        wanted.update({f"{label}/{group.key}": reason for group in lost})
    index.index_shards([str(folder / "faulty.tar")])
    return wanted


# -------------------------------------------------------------------------------------------------------------- reading


def _loader(folder: Path, out: Path, rank: int, world: int, workers: int) -> Loader:
    branches = {"sight": toys.Pair(Seen), "sound": toys.Pair(Heard), "touch": toys.Pair(Felt)}
    processor = Processor(branches, toys.Words(), TEMPLATE, length=PLAN.length)
    llava = registry.find("data/formats", "llava")
    stream = Stream("talk", [Source((folder,), llava(llava.Config()))], processor)
    book = Ledger(out / "skipped.jsonl" if rank == 0 else None, max_bad_fraction=1.0, max_in_a_row=10**6)
    return Loader([stream], PLAN, 5, workers, book, rank, world)


def _read(folder: Path, out: Path, world: int, workers: int, die: int, save_every: int) -> int:
    """Take steps until all epochs are done or `die` steps are; returns the position. Saves as the training does."""
    saved = json.loads((out / "saved.json").read_text()) if (out / "saved.json").exists() else None
    loaders = [_loader(folder, out, rank, world, workers) for rank in range(world)]
    for loader in loaders:
        if saved:
            assert not loader.ledger.faults(saved["ledger"]), loader.ledger.faults(saved["ledger"])
            loader.restore(saved["positions"])
            loader.ledger.restore(saved["ledger"])
    step = saved["positions"]["step"] if saved else 0
    feeds = [loader.steps(step) for loader in loaders]
    count, done, taken = len(loaders[0].streams["talk"].corpus), 0, 0
    log = (out / "trained.jsonl").open("a", buffering=1)
    while done < EPOCHS * count:
        ids = [name for feed in feeds for _, batches in [next(feed)] for batch in batches for name in batch.ids]
        log.write(json.dumps([step, ids]) + "\n")
        step += 1
        taken += 1
        place = loaders[0].positions(step)
        here = place["streams"]["talk"]
        done = here["epoch"] * count + here["position"]
        if step % save_every == 0:
            part = out / "saved.part"
            part.write_text(json.dumps({"positions": place, "ledger": loaders[0].ledger.position()}))
            part.replace(out / "saved.json")
        if taken == die:
            os.kill(os.getpid(), signal.SIGKILL)
    return done


def prove(short: bool) -> Verdict:
    verdict = Verdict("ledger", "planted samples trained or named with their reason, each epoch")
    folder = fresh("faults")
    made = _fork.run(lambda: shards(folder, short))
    if made.value is None:
        verdict.need(False, made.said[-800:])
        return verdict
    wanted = {name: Reason(reason) if reason else None for name, reason in made.value.items()}
    missing = set(Reason) - NOT_HERE - {reason for reason in wanted.values() if reason}
    verdict.need(missing <= ({Reason.points_limits} if short else set()), f"not planted: {sorted(missing)}")
    layouts = [((1, 0), (2, 2))] if short else [((1, 0), (1, 0)), ((2, 0), (1, 2)), ((1, 4), (2, 1)), ((2, 2), (1, 1))]
    kills = 0
    for plan in layouts:
        out = fresh("reading")
        out.mkdir()
        for part in range(40):
            world, workers = plan[part % 2]
            die = (5, 9, 4, 11)[part % 4] if part < (3 if short else 9) else -1
            ended = _fork.run(lambda: _read(folder, out, world, workers, die, 3))  # noqa: B023
            kills += ended.code == -signal.SIGKILL
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                verdict.need(False, f"{plan}: {ended.said[-800:]}")
                break
        if ended.value is not None:
            _reconcile(verdict, folder, out, wanted, ended.value, str(plan))
    verdict.need(kills >= len(layouts) * (2 if short else 3), f"only {kills} kills")
    reasons = {reason for reason in wanted.values() if reason}
    bad = sum(reason is not None for reason in wanted.values())
    verdict.notes = [f"{len(wanted)} samples, {bad} of them faulty for {len(reasons)} reasons", f"{EPOCHS} epochs",
                     f"{len(layouts)} layouts", f"{kills} kills"]  # fmt: skip
    return verdict


def _reconcile(
    verdict: Verdict, folder: Path, out: Path, wanted: dict[str, Reason | None], done: int, where: str
) -> None:
    """Multisets: what was due up to the position, and what was trained and skipped."""
    steps = dict(json.loads(line) for line in (out / "trained.jsonl").read_text().splitlines())
    trained = Counter(name for ids in steps.values() for name in ids)
    rows = list(ledgers.read(out / "skipped.jsonl"))
    skipped = Counter(row["id"] for row in rows)
    reasons: dict[str, set[str]] = {}
    for row in rows:
        reasons.setdefault(row["id"], set()).add(row["reason"])
    due = Counter(dict.fromkeys(wanted, done // len(wanted)))
    corpus = _loader(folder, out, 1, 2, 0)
    stream, seed = corpus.streams["talk"].corpus, corpus._seeds["talk"]
    due += Counter(stream.id(stream.order(seed, done // len(wanted), place)) for place in range(done % len(wanted)))
    for name, reason in wanted.items():
        got = (trained[name], skipped[name], reasons.get(name, set()))
        right = (0, due[name], {str(reason)}) if reason else (due[name], 0, set())
        verdict.check(got == right, f"{where}, {name}, planted {reason}: trained, skipped, reasons {got}, due {right}")
    strangers = (trained + skipped).keys() - wanted.keys()
    verdict.need(not strangers, f"{where}: nobody planted {sorted(strangers)[:5]}")
    verdict.need(trained + skipped == due, f"{where}: trained + skipped is not what was due")


_INDEX, _READ = "mmtune.data.index", "mmtune.data.formats._read"

GUARDS = (
    Guard(
        "what is skipped is written down",
        "mmtune.data.loader",
        "Loader._fill",
        "self.ledger.skip(",
        "(lambda *a, **k: None)(",
    ),
    Guard(
        "lines of steps that come again go",
        "mmtune.data.ledger",
        "Ledger.rewind",
        'is not None and row["step"] < step)',
        "is not None)",
    ),
    Guard(
        "members are compared with their digest",
        "mmtune.data.shards",
        "Corpus.read",
        "if self.verify and",
        "if False and",
    ),
    Guard("links are refused", _INDEX, "_add", 'if item.type != "0":', "if False:"),
    Guard("unsafe suffixes are refused", _INDEX, "_add", "elif bad := UNSAFE.intersection(parts):", "elif bad := ():"),
    Guard("a member twice is refused", _INDEX, "_add", "elif suffix in group.members:", "elif False:"),
    Guard(
        "members that lie apart are refused", _INDEX, "_judge_runs", "if len(mates) > 1 and _apart(mates)}", "if False}"
    ),
    Guard(
        "a weight is a number that can be one",
        "mmtune.data.formats._fields",
        "weight",
        "        if not is_weight(value):",
        "        if False:",
    ),
    Guard("no key twice in JSON", "mmtune.data._json", "_object", "    if len(value) != len(pairs):", "    if False:"),
    Guard("control characters are refused", _READ, "check", "    if found:", "    if False:"),
    Guard(
        "media and places are counted",
        "mmtune.data.formats._placeholders",
        "settle",
        "elif number != there and (number or not there):",
        "elif False:",
    ),
    Guard(
        "failed downloads are refused",
        "mmtune.data.formats.llava",
        "Llava.sample",
        'if isinstance(status, str) and status != "success":',
        "if False:",
    ),
)
