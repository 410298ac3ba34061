"""Every importer in and out again: what is written equals what was read, the run loads wherever it is moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmtune.checkpoint import build_run, convert, store, write
from mmtune.errors import UsageError
from tests.checkpoint.foreign.made import KINDS, make, read


@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "published")
    run = convert.import_checkpoint(kind, made.words, tmp_path / "run", made.options, made.changes)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"published", "run"}
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(run, moved)
    if (moved / "encoder.yaml").is_file():
        _encoder(kind, made, moved)
        return
    if (moved / "llm.yaml").is_file():
        _language_model(moved)
        return
    model, _, recipe = store.load_run(moved)
    assert "here:" not in repr(recipe)
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all() if tensor.is_floating_point() else True, name
    with pytest.raises(UsageError, match="moved"):
        convert.import_checkpoint(kind, made.words, moved, made.options, made.changes)
    out = tmp_path / "out"
    if made.export is None:
        with pytest.raises(UsageError, match="read only"):
            convert.export_checkpoint(moved, kind, out)
        assert not out.exists()
        return
    convert.export_checkpoint(moved, kind, out, made.export)
    _same(made, out)


def _same(made, out: Path) -> None:
    before = read(made.trained, made.inside)
    after = read(out / (made.written or made.trained.name), made.inside)
    before = {name: tensor for name, tensor in before.items() if not name.startswith(made.lossy or ("\0",))}
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].shape == tensor.shape, name
        assert torch.equal(after[name].to(tensor.dtype), tensor), name


def _encoder(kind: str, made, folder: Path) -> None:
    """A kind that gives an encoder alone: it loads from its folder, and a run with it can be written again."""
    from mmtune import config

    entry = config.parse((folder / "encoder.yaml").read_text(), "encoder.yaml")["encoder"]
    built = build_run.part_of("encoders", {**entry, "weights": str(folder)})
    built.load_weights()
    foreign = convert.importer(kind, [*made.options, *(made.export or [])])
    if made.export is None:
        return
    exported = foreign.write(_opened(built))
    out = folder.parent / "out"
    out.mkdir()
    write.write_export(exported, out)
    _same(made, out)


def _language_model(folder: Path) -> None:
    """A kind that gives a language model alone: the folder is what `llm: hf` reads."""
    from mmtune import config

    entry = config.parse((folder / "llm.yaml").read_text(), "llm.yaml")["llm"]
    built = build_run.part_of("llm", {**entry, "folder": str(folder)})
    built.load_weights()
    assert built.tokenizer.encode("a red circle")


def _opened(encoder):
    from types import SimpleNamespace

    from mmtune.checkpoint.foreign.base import Opened

    branch = SimpleNamespace(encoder=encoder, connector=torch.nn.Identity(), kinds=encoder.kinds)
    section = SimpleNamespace(encoder=encoder.config)
    model = SimpleNamespace(
        branches={"sight": branch},
        state_dict=lambda: {f"branches.sight.encoder.{name}": t for name, t in encoder.state_dict().items()},
    )
    return Opened(model, SimpleNamespace(model=SimpleNamespace(branches={"sight": section})))
