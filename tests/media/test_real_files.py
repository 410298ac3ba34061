"""Real and odd files, where a folder of them is at hand: everything loads or is refused by a MediaError.

The folder is named by MMTUNE_MEDIA, or is a sibling of the checkout; without one these tests are skipped.
"""

import os
from pathlib import Path

import pytest
import torch

from mmtune.errors import MediaError, Reason
from mmtune.media import Limits, Sampling, _formats, load, video
from mmtune.types import MediaRef

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "media"
FOLDER = Path(os.environ.get("MMTUNE_MEDIA", _BESIDE))
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file()) if FOLDER.is_dir() else []
HAVE = pytest.mark.skipif(not FILES, reason="no folder of real media: set MMTUNE_MEDIA")

REFUSED = {
    "badbitcount.bmp", "badpalettesize.bmp", "rgba32abf.bmp", "broken_data_stream.png", "truncated_end_chunk.png",
    "truncated_jpeg.jpg", "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif",
    "crash-1185209cf7655b5aed8ae5e77784dfdd18ab59e9.tif", "crash-338516dbd2f0e83caddb8ce256c22db3bd6dc40f.tif",
    "crash-4f085cc12ece8cde18758d42608bed6a2a2cfb1c.tif", "crash-86214e58da443d2b80820cff9677a38a33dcbbca.tif",
}  # fmt: skip
"""Files known to be damaged or of a rare layout."""


def _names(paths: list[Path]) -> list:
    return [pytest.param(path, id=path.name) for path in paths] or [pytest.param(None, id="no folder")]


@HAVE
@pytest.mark.parametrize("path", _names(FILES))
def test_a_file_loads_or_is_refused_by_name(path):
    data = path.read_bytes()
    name = _formats.detect(data)
    assert name is not None
    for place, kind in enumerate(_formats.FORMATS[name]):
        try:
            media = load(MediaRef(kind, path, path.name), Sampling(frames=4))
        except MediaError as error:
            assert path.name in str(error) and isinstance(error.reason, Reason)
            assert path.name in REFUSED or (place == 1 and error.reason == Reason.no_audio_stream)
        else:
            assert path.name not in REFUSED
            assert media.data.numel() and torch.isfinite(media.data.float()).all()
            assert kind != "video" or media.data.shape[0] == 4


@HAVE
@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
@pytest.mark.parametrize("path", _names([p for p in FILES if p.suffix in (".mp4", ".avi", ".webm")]))
def test_backends_agree(path, backend):
    if problem := video.available()[backend]:
        pytest.skip(f"{backend}: {problem}")
    data = path.read_bytes()
    name, limits, sampling = _formats.detect(data), Limits(), Sampling(frames=3)
    ours = video.decode(data, name, sampling, limits, path.name, "pyav")
    try:
        theirs = video.decode(data, name, sampling, limits, path.name, backend)
    except MediaError as error:
        assert "does not see" in str(error)  # rotated, or in colours that the backend ignores
        return
    assert torch.equal(ours.times, theirs.times)
    assert (ours.data.int() - theirs.data.int()).abs().float().mean() < 1
