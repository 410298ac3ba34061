"""Shards and a processor small enough to follow by hand."""

import io
import json
import tarfile

import torch

from mmtune.errors import DataError, Reason
from mmtune.types import Example, Slot

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde\x00\x00\x00\x0c"
    b"IDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef\x00\x00\x00\x00IEND\xaeB`\x82"
)
"""One red pixel."""


def write(path, members, form=tarfile.USTAR_FORMAT):
    """A tar of (name, bytes) or (name, TarInfo) in their order."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def talk(key, answer="red", **more):
    """A LLaVA record as members."""
    turns = [{"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": answer}]
    facts = {"id": key, "image": f"{key}.png", "conversations": turns, **more}
    return [(f"{key}.json", json.dumps(facts).encode()), (f"{key}.png", PNG)]


def shards(folder, count=3, size=7, first=0, more=None):
    """`count` shards of `size` talks; `more(key)` gives further fields of a record, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        keys = [f"{first + number * size + i:06d}" for i in range(size)]
        members = [member for key in keys for member in talk(key, **((more(key) or {}) if more else {}))]
        paths.append(write(folder / f"{number:05d}.tar", members))
    return paths


class Letters:
    """A token for each letter of the answers, one place for each medium; answers with "bad" are refused."""

    def __init__(self, pixels=4):
        self.pixels = pixels

    def example(self, sample, answer=False, rng=None):
        said = "".join(turn.text for turn in sample.turns if turn.role == "assistant")
        if "bad" in said:
            raise DataError(Reason.unreadable_image, f"{sample.id}: planted")
        media = sample.media
        tokens = torch.tensor([0] * len(media) + [ord(letter) for letter in said], dtype=torch.int64)
        slots = tuple(Slot("sight", i, 1, i) for i in range(len(media)))
        drawn = 0.0 if rng is None else float(rng.random())
        items = [torch.full((1 + len(said) % 3, self.pixels), len(ref.read()) + drawn) for ref in media]
        return Example(sample.id, tokens, tokens.clone(), slots, {"sight": items} if items else {}, sample.stream)
