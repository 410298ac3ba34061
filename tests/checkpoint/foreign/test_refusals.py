"""Every importer refuses what is damaged, incomplete, foreign or a program, says what is wrong, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from mmtune.checkpoint import convert
from mmtune.errors import MmtuneError
from tests.checkpoint.foreign.made import KINDS, Made, make, read, rewrite, unpickled


@cache
def _original(kind: str) -> tuple[Path, Made]:
    folder = Path(mkdtemp(prefix=f"mmtune-{kind}-"))
    return folder, unpickled(make(kind, folder))


@pytest.fixture(scope="module", autouse=True)
def _clean():
    yield
    for kind in KINDS:
        if _original.cache_info().currsize:
            try:
                shutil.rmtree(_original(kind)[0], ignore_errors=True)
            except AssertionError:
                continue
    _original.cache_clear()


@pytest.fixture(params=KINDS)
def made(request, tmp_path: Path) -> tuple[str, Made]:
    """A kind, and a copy of its tiny checkpoint that may be damaged."""
    folder, original = _original(request.param)
    copy = tmp_path / "published"
    shutil.copytree(folder, copy, symlinks=True)

    def moved(path: Path | None) -> Path | None:
        return copy / path.relative_to(folder) if path else None

    paths = {role: moved(path) for role, path in original.paths.items()}
    fields = {**vars(original), "paths": paths, "trained": moved(original.trained), "config": moved(original.config)}
    return request.param, Made(**fields)


def refuse(kind: str, made: Made, tmp_path: Path, *words: str) -> str:
    """Import, expect a refusal, and that nothing is left of it; returns the message."""
    out = tmp_path / "run"
    with pytest.raises(MmtuneError) as caught:
        convert.import_checkpoint(kind, made.words, out, made.options, made.changes)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"], "something was left behind"
    return text


def _largest(tensors: dict[str, torch.Tensor]) -> str:
    return max(tensors, key=lambda name: tensors[name].numel())


def test_a_truncated_file(made, tmp_path) -> None:
    kind, one = made
    data = one.trained.read_bytes()
    one.trained.write_bytes(data[: len(data) * 2 // 3])
    refuse(kind, one, tmp_path, one.trained.name, "damaged")


def test_names_and_shapes_in_one_error(made, tmp_path) -> None:
    """A key that is missing, one too many and one in another shape are told together, in the published spelling."""
    kind, one = made
    tensors = read(one.trained, one.inside)
    names = sorted((n for n, t in tensors.items() if t.ndim >= 1 and t.numel() > 1), key=lambda n: -tensors[n].numel())
    assert len(names) >= 2, "the tiny checkpoint has too few tensors to damage"
    gone, bent = names[0], names[1]
    del tensors[gone]
    tensors[bent] = torch.zeros([size + 1 for size in tensors[bent].shape])
    tensors["a_stranger.weight"] = torch.zeros(3)
    rewrite(one.trained, tensors, one.inside)
    refuse(kind, one, tmp_path, gone, bent, "a_stranger.weight")


def test_no_matching_tensor_at_all(made, tmp_path) -> None:
    kind, one = made
    rewrite(one.trained, {"encoder.layer.0.output.dense.weight": torch.zeros(2, 2)}, one.inside)
    refuse(kind, one, tmp_path, "encoder.layer.0.output.dense.weight")


def test_a_foreign_architecture(made, tmp_path) -> None:
    kind, one = made
    if one.config is None:
        rewrite(one.trained, {f"bert.encoder.{i}.weight": torch.zeros(4, 4) for i in range(3)}, one.inside)
        refuse(kind, one, tmp_path, "bert.encoder.0.weight")
        return
    one.config.write_text(json.dumps({**json.loads(one.config.read_text()), "model_type": "bert"}))
    refuse(kind, one, tmp_path, "bert")


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it(made, tmp_path) -> None:
    """The canary is a folder that appears when the pickle is run."""
    kind, one = made
    canary = tmp_path / "published" / "canary"
    tensors = read(one.trained, one.inside)
    bad = one.trained.with_suffix(".pth")
    if one.trained.suffix == ".safetensors":
        one.trained.unlink()
    payload = {**tensors, "hello": _Canary(canary)}
    torch.save({one.inside[0]: payload} if one.inside else payload, bad)
    paths = {role: bad if path == one.trained else path for role, path in one.paths.items()}
    if bad != one.trained and one.trained.exists():
        one.trained.unlink()
    text = refuse(kind, Made(**{**vars(one), "paths": paths}), tmp_path, "would run code", bad.name)
    assert "mkdir" in text
    assert not canary.exists(), "the code in the pickle ran"
    torch.load(bad, weights_only=False)
    assert canary.is_dir(), "the canary does not sing, so the test proves nothing"


def test_a_path_where_nothing_lies(made, tmp_path) -> None:
    kind, one = made
    role = next(iter(one.paths))
    paths = {**one.paths, role: tmp_path / "nowhere"}
    refuse(kind, Made(**{**vars(one), "paths": paths}), tmp_path, "nowhere")


def test_an_unknown_option(made, tmp_path) -> None:
    kind, one = made
    refuse(kind, Made(**{**vars(one), "options": [*one.options, "no_such_thing=1"]}), tmp_path, "no_such_thing")
