"""A run folder, written as training writes it, answers at the command line; and `mmtune show` says what it is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmtune
from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.commands import show
from mmtune.errors import CheckpointError
from mmtune.recipe import Recipe
from mmtune.serve.conversation import Settings
from mmtune.serve.run_info import RunInfo
from tests.encoders.tiny import clip_folder
from tests.llm import tiny

ROOT = Path(__file__).resolve().parents[2]


def recipe(folder: Path) -> Recipe:
    """Tiny parts; the connector trains."""
    branch = {
        "encoder": {"name": "clip", "weights": str(folder / "clip"), "frames": 2},
        "connector": {"name": "linear"},
        "kinds": ["image", "video"],
    }
    tree = {
        "model": {
            "branches": {"sight": branch},
            "llm": {"name": "hf", "folder": str(folder / "llm")},
            "fusion": {"name": "tokens"},
        },
        "streams": {"all": {"data": ["nowhere/*.tar"], "prompt": "pocket", "format": "llava"}},
        "groups": {"connector": {"match": ["branches.*.connector.*"], "lr": 0.001}},
        "run": {"length": 128, "device": "cpu"},
        "chat": {"max_tokens": 8, "notice": "a tiny model with random weights"},
    }
    return config.validate(Recipe, tree)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    clip_folder(folder / "clip")
    tiny.folder(folder / "llm")
    made = recipe(folder)
    torch.manual_seed(0)
    store.save_run(folder / "run", models.build(made.model), made)
    return folder / "run"


@pytest.fixture(scope="module")
def picture(run: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path = run.parent / "a.png"
    path.write_bytes(file.getvalue())
    return str(path)


def _chat(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmtune", "chat", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=False
    )


def test_a_run_answers_as_it_does_from_python(run: Path, picture: str) -> None:
    done = _chat(str(run), "--image", picture, "what is this", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["tokens"]["media"] == 9 and 1 <= record["tokens"]["answer"] <= 8
    assert "random weights" in done.stderr
    talk = mmtune.chat(run, device="cpu", settings=Settings(max_tokens=8))
    talk.attach(picture)
    assert talk.ask("what is this").whole() == record["answer"]


def test_a_kind_without_a_branch_is_refused_before_weights_are_read(run: Path, tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(64))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())  # no weights there at all
    done = _chat(str(tmp_path / "run"), "--audio", str(sound), "what is this")
    assert done.returncode == 2 and done.stdout == ""
    assert "audio" in done.stderr and "image, video" in done.stderr


def test_a_run_without_weights_says_so(run: Path, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "base.yaml"):
        (tmp_path / name).write_text((run / name).read_text())
    with pytest.raises(CheckpointError, match="no weights yet"):
        RunInfo.read(tmp_path, device="cpu").load()


def test_the_quick_look_at_a_recipe_agrees_with_the_full_one(run: Path) -> None:
    info, full = RunInfo.read(run), store.read_recipe(run)
    assert info.kinds == full.model.branches["sight"].kinds
    assert (info.notice, info.max_tokens, info.temperature) == (
        full.chat.notice,
        full.chat.max_tokens,
        full.chat.temperature,
    )


def test_show_says_who_trains_what(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.run(str(run), [], groups=True)
    said = capsys.readouterr().out
    assert "branch sight: image, video -> clip" in said and "up to 18 tokens" in said
    assert "branches.sight.connector.proj.weight" in said
    assert "parameters train" in said
