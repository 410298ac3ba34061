"""The files that README and docs name, made small and on the spot: drawn clips, tables about them, tiny checkpoints."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from contextlib import redirect_stderr
from pathlib import Path

import transformers
from PIL import Image

from mmtune.data.world.make import make_shards
from tests.checkpoint.foreign.makers import llava_hf, llm
from tests.media import make as media
from tools import docs

ROOT = Path(__file__).resolve().parent.parent
FILMS = 6
PICTURES = 4


def make(folder: Path) -> None:
    """Fill a folder with everything that the pages name. Some seconds."""
    transformers.utils.logging.disable_progress_bar()
    clips = _clips(folder / "drawn")
    shutil.copytree(folder / "drawn", folder / "shards" / "pocket")
    for shard in (folder / "shards" / "pocket").glob("*.tar"):
        shard.rename(shard.with_name("full-train-0000.tar"))  # as the card of the pocket world calls its shards
    _films(folder, clips)
    _talks(folder, clips)
    shutil.copytree(ROOT / "mmtune" / "pocket" / "chat", folder / "runs" / "small")
    write_examples(folder)
    llava_hf.folder(folder / "llava-1.5")
    llm.make(folder)  # pickled, as Vicuna was published
    (folder / "llm").rename(folder / "vicuna")
    for name in ("tools", "configs", "tests"):
        (folder / name).symlink_to(ROOT / name)


def write_examples(folder: Path) -> None:
    """mine/ with the classes that CONTRIBUTING.md has whole."""
    for name, source in docs.examples(ROOT / "CONTRIBUTING.md").items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")


def _clips(folder: Path) -> list[tuple[bytes, dict]]:
    """(MP4, record with conversations and a caption) of some drawn clips."""
    with redirect_stderr(io.StringIO()):
        paths = make_shards(
            folder, FILMS, 3, "easy", split="train", per_shard=FILMS, workers=1, progress=lambda done: None,
            kinds=["video"],
        )  # fmt: skip
    with tarfile.open(paths[0]) as tar:
        read = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    keys = sorted(name.removesuffix(".mp4") for name in read if name.endswith(".mp4"))
    return [(read[f"{key}.mp4"], json.loads(read[f"{key}.json"])) for key in keys]


def _films(folder: Path, clips: list[tuple[bytes, dict]]) -> None:
    """films/ with films.csv and pairs.json, videos/ with clips.csv, and the clips that chats are about."""
    for files, table in (("films", "films.csv"), ("videos", "clips.csv")):
        (folder / files).mkdir()
        rows = [("video", "caption")]
        for number, (content, record) in enumerate(clips):
            (folder / files / f"{number}.mp4").write_bytes(content)
            rows.append((f"{number}.mp4", record["caption"]))
        with (folder / table).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    captions = [record["caption"] for _, record in clips]
    pairs = [
        {"video": f"{number}.mp4", "question": "Describe the clip.", "chosen": said, "rejected": captions[number - 1]}
        for number, said in enumerate(captions)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    for name in ("clip.mp4", "talk.mp4"):
        (folder / name).write_bytes(clips[0][0])


def _talks(folder: Path, clips: list[tuple[bytes, dict]]) -> None:
    """shards/ of one's own, my/ with pictures, talks.json with pictures/, and single pictures."""
    _shard(folder / "shards" / "own.tar", [("mp4", content, "video") for content, _ in clips])
    pictures = [media.image(media.picture(64, 48, seed)) for seed in range(PICTURES)]
    _shard(folder / "my" / "0.tar", [("png", content, "image") for content in pictures])
    (folder / "pictures").mkdir()
    for number, content in enumerate(pictures):
        (folder / "pictures" / f"{number}.png").write_bytes(content)
    (folder / "talks.json").write_text(json.dumps([_talk(f"{n}.png", "image") for n in range(PICTURES)]))
    shutil.copytree(folder / "pictures", folder / "folder")
    for number in range(PICTURES):
        (folder / "folder" / f"{number}.txt").write_text("a picture of many colours")
    for name in ("photo.jpg", "sign.jpg", "photo.png"):
        Image.open(io.BytesIO(pictures[0])).convert("RGB").save(folder / name)


def _talk(name: str, kind: str) -> dict:
    said = [("human", f"<{kind}>\nWhat happens here?"), ("gpt", "something moves")]
    choices = ["something moves", "nothing moves"]
    return {kind: name, "conversations": [{"from": who, "value": text} for who, text in said], "choices": choices}


def _shard(path: Path, items: list[tuple[str, bytes, str]]) -> None:
    """A tar in which each item has a conversation about it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (suffix, content, kind) in enumerate(items):
            key = f"{number:06d}"
            record = json.dumps(_talk(f"{key}.{suffix}", kind)).encode()
            for name, raw in ((f"{key}.{suffix}", content), (f"{key}.json", record)):
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
