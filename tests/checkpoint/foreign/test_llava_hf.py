"""LLaVA as transformers computes it: same logits, same answer, in every spelling of names; trained, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmtune import media
from mmtune.checkpoint import carry, store
from mmtune.errors import CheckpointError
from mmtune.generate import generate
from mmtune.types import Batch, MediaRef, Sample, Turn
from tests.checkpoint.foreign.makers import llava_hf as tiny


def picture(path: Path, width: int, height: int) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def sample(path: Path) -> Sample:
    ref = MediaRef("image", path, path.name)
    return Sample("one", (Turn("user", (ref, "what is this")), Turn("assistant", ("a red circle",))))


def ours(run: Path, path: Path):
    """Example, logits [T,V] and greedy answer of our run."""
    model, processor, recipe = store.load_run(run)
    example = processor.example(sample(path), answer=True)
    from mmtune.data.collate import collate

    batch: Batch = collate([[example]], pad=model.llm.tokenizer.pad)
    with torch.no_grad():
        logits = model.llm.head(model(batch))[0, : len(example)]
    return example, logits, model, processor
