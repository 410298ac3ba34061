"""What `mmtune init` says of the way out of a run: a layout that takes it, or the part that none has a place for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mmtune import config, model, registry
from mmtune.recipe import Recipe
from tests.commands.test_init import POCKET, TALK, called, captions, here, init  # noqa: F401 - the fixture
from tests.data import tars
from tests.encoders import tiny as encoders
from tests.llm import tiny as llms
from tests.media import make

QUICK = ("schedule.epochs=null", "schedule.steps=1", "schedule.warmup=0", "run.workers=0")


def gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = llms.byte_bpe()
    words = tokenizer.get_vocab_size()
    sizes = {"vocab_size": words, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<|bos|>"}))
    return folder


@pytest.mark.parametrize(
    ("kind", "method", "layout"), [("png", "full", "llava_hf"), ("mp4", "lora", "pllava"), ("png", "adapter_v2", None)]
)
def test_a_layout_that_is_promised_takes_the_run(kind: str, method: str, layout: str | None, here: Path) -> None:  # noqa: F811
    if kind == "png":
        tars.shards(here / "shards", count=1, size=3)
    else:
        captions(here / "shards")
    llms.folder(here / "llama")
    encoders.hf_folder(here / "tower", "siglip")
    words = ("--data", "shards/*.tar", "--llm", "./llama", "--encoder", "./tower", "--prompt", "plain")
    said = called("init", *words, "--method", method, "--out", "made.yaml")
    if layout is None:
        assert "no published layout has a place for a run of it; llava_hf: " in said and "early_prompts" in said
        assert "mmtune export" not in said
        return
    assert f"a run of it can leave in the published layout {layout}" in said
    line = next(line for line in said.splitlines() if line.startswith("mmtune export"))
    called("train", "made.yaml", *QUICK, "--out", "runs/made")
    assert "compared with the run" in called(*line.split()[1:])


def test_a_language_model_that_no_layout_knows_is_named(here: Path) -> None:  # noqa: F811
    tars.shards(here / "shards", count=1, size=3)
    encoders.hf_folder(here / "tower")
    words = ("--data", "shards/*.tar", "--llm", str(gpt2(here / "gpt")), "--encoder", "./tower", "--prompt", "plain")
    said = called("init", *words, "--out", "made.yaml")
    assert "llava_hf: this layout has no place for a language model of the kind gpt2" in said
    with pytest.raises(Exception, match="bias_norm") as caught:
        called("init", *words, "--method", "adapter_v2", "--out", "other.yaml")
    assert "not on this machine" not in str(caught.value), "its layers are told by n_layer"


def test_several_data_of_one_format_are_seen_together(here: Path) -> None:  # noqa: F811
    tars.shards(here / "pictures", count=1, size=3)
    talk = {"video": "a.mp4", "conversations": TALK}
    pairs = [(f"{n}.mp4", make.video(count=8, rate=4)) for n in range(3)]
    records = [(f"{n}.json", json.dumps({**talk, "video": f"{n}.mp4"}).encode()) for n in range(3)]
    (here / "clips").mkdir()
    tars.write(here / "clips" / "0.tar", [one for both in zip(pairs, records, strict=True) for one in both])
    said = called("init", "--data", "pictures/*.tar", "--data", "clips/*.tar", *POCKET, "--out", "made.yaml")
    assert re.search(r"2 shards; of 6 records 6 are `llava` with 3 image, 3 video", said)
    assert config.load(Recipe, "./made.yaml").model.branches["sight"].kinds == ("image", "video")


def test_text_alone_needs_no_encoder(here: Path) -> None:  # noqa: F811
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    tars.write(here / "0.tar", [(f"{n}.json", json.dumps(talk).encode()) for n in range(3)])
    llms.folder(here / "llama")
    words = ("--data", "0.tar", "--llm", "./llama", "--prompt", "plain", "--method", "lora")
    recipe = init(*words)
    assert recipe.model.branches == {}
    (here / "made.yaml").unlink()
    assert init(*words, "--encoder", "pocket", "--epochs", "1").schedule.epochs == 1, "as was asked for"


def test_a_library_that_is_imported_for_a_structure_keeps_its_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchaudio makes a tensor when it is imported; on the meta device it would be one without a number for good."""
    found, where = registry.find, {}

    def find(room: str, name: str) -> type:
        where.setdefault((room, name), torch.empty(0).device.type)
        return found(room, name)

    monkeypatch.setattr(registry, "find", find)
    model.build(config.load(Recipe, "pocket").model, device="meta")
    assert where["encoders", "clip"] == "cpu"
