"""Sources to convert, small enough to follow by hand, and what a conversion made of them."""

import io
import json

import numpy as np
from PIL import Image

from mmtune import registry
from mmtune.data.convert.base import Options
from mmtune.data.convert.run import convert
from mmtune.data.shards import Corpus
from tests.data import tars
from tests.media import make

TALK = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A red square."}]


def picture(shade=0, form="PNG", size=(8, 6)):
    data = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(data, form)
    return data.getvalue()


def folder(path):
    """Pictures and a film below a folder."""
    (path / "a").mkdir(parents=True)
    (path / "a" / "1.png").write_bytes(tars.PNG)
    (path / "b.jfif").write_bytes(picture(40, "JPEG"))
    (path / "noend").write_bytes(picture(80, "JPEG"))
    (path / "C.JPG").write_bytes(picture(90, "JPEG"))
    (path / "v_1.mp4").write_bytes(make.video(count=4, rate=4, width=16, height=16))
    (path / "s.wav").write_bytes(make.wav(make.sine(8000, 0.1), 8000))
    (path / "p.npy").write_bytes(_points())
    (path / "secret.txt").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return path


def _points():
    data = io.BytesIO()
    np.save(data, np.zeros((4, 3), np.float32))
    return data.getvalue()


def said(rows, path, **how):
    """Rows as a JSON list converted into `path`/out; the report and the lines about refused records."""
    return made(listed(rows, path), path / "out", **how)


def listed(rows, path):
    """Rows as a file with a JSON list."""
    file = path / "records.json"
    file.write_text(json.dumps(rows))
    return file


def made(source, out, workers=1, resume=False, overwrite=False, **options):
    """A conversion, its report and its refused records."""
    if "media" in options:
        options["media"] = tuple(map(str, options["media"]))
    report = convert(str(source), str(out), Options(**options), workers, resume, overwrite)
    return report, lines(out)


def lines(out):
    return [json.loads(line) for line in (out / "convert.jsonl").read_text().splitlines()]


def samples(out, name="llava"):
    """The shards as training reads them."""
    entry = registry.find("data/formats", name)
    spelled = entry(entry.Config(name=name))
    return [spelled.sample(record) for record in Corpus(out)]


def shards(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}
