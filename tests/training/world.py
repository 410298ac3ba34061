"""A tiny world on disk: a random language model, a random image tower, shards of coloured squares, and a recipe.

The answer to every question is the colour of the picture, so a connector alone can learn it.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.encoders.tiny import clip_folder
from tests.llm.tiny import folder as llm_folder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (240, 240, 240)}


def png(colour: str, shade: int = 0) -> bytes:
    data = io.BytesIO()
    values = tuple(max(0, value - shade) for value in COLOURS[colour])
    Image.new("RGB", (24, 24), values).save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def shards(folder: Path, shards: int = 2, each: int = 8, text: bool = False) -> str:
    """Shards in the llava spelling, indexed; returns their pattern."""
    from mmtune.data import index

    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    for shard in range(shards):
        members = {}
        for place in range(each):
            number = shard * each + place
            colour = names[number % len(names)]
            key = f"{number:06d}"
            if text:
                record: dict[str, Any] = {"conversations": said(f"say {colour} {number}", f"{colour} it is")}
            else:
                members[f"{key}.png"] = png(colour, shade=number)
                entry = {"type": "colour", "temporal": False, "question": "what colour is it?", "answer": colour}
                ask = said("<image>\nwhat colour is it?", colour)
                record = {"conversations": ask, "questions": [entry]}
            members[f"{key}.json"] = json.dumps({"id": key, **record}).encode()
        write_tar(folder / f"part-{shard:04d}.tar", members)
    pattern = str(folder / "part-*.tar")
    index.index_shards([pattern])
    return pattern


def tree(folder: Path, **run: Any) -> dict[str, Any]:
    """A recipe with two streams and two groups: pictures train the connector, text trains the LLM's norms."""
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "plain.yaml"
    template.write_text(
        'begin: "<|bos|>"\nuser: {before: "<|user|>"}\nassistant: {before: "<|assistant|>", after: "<|end|>"}\n'
        'media: {image: ["<|media|>", "<|/media|>"], video: ["<|media|>", "<|/media|>"]}\nstop: ["<|end|>"]\n'
    )
    encoder = {"name": "clip", "weights": str(clip_folder(folder / "tower")), "layer": -1}
    return {
        "model": {
            "branches": {"sight": {"encoder": encoder, "connector": {"name": "mlp"}}},
            "llm": {"name": "hf", "folder": str(llm_folder(folder / "llm"))},
            "fusion": {"name": "tokens"},
        },
        "streams": {
            "pictures": {"data": [shards(folder / "pictures")], "format": "llava", "prompt": str(template)},
            "words": {"data": [shards(folder / "words", text=True)], "format": "llava", "prompt": str(template)},
        },
        "groups": {
            "sight": {"match": ["branches.sight.connector.*"], "lr": 3e-3, "streams": ["pictures"]},
            "speech": {"match": ["llm.*norm*"], "lr": 1e-3, "streams": ["words"]},
        },
        "schedule": {"steps": 8, "warmup": 2},
        "run": {"batch_tokens": 128, "length": 64, "device": "cpu", "workers": 0, "seed": 3, **run},
        "chat": {"prompt": str(template)},
    }


def recipe(folder: Path, changes: dict[str, Any] | None = None, **run: Any) -> Any:
    from mmtune import config
    from mmtune.recipe import Recipe

    return config.validate(Recipe, config.merge(tree(folder, **run), changes or {}))
