"""Descriptions by a run of mmtune and by a model of transformers, each made tiny on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune import config, generate
from mmtune import model as models
from mmtune.checkpoint import store
from mmtune.errors import CheckpointError, ConfigError
from mmtune.experts.caption import DESCRIBE, Caption, Config
from mmtune.types import MediaRef, Sample, Turn
from tests.encoders.tiny import clip_folder
from tests.llm import tiny
from tests.serve.test_run import recipe


def picture(seed: int) -> MediaRef:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return MediaRef("image", file.getvalue(), f"{seed}.png")


def film() -> MediaRef:
    frames = [Image.fromarray(np.full((24, 24, 3), shade, np.uint8)) for shade in (0, 0, 255, 255)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1000)
    return MediaRef("video", file.getvalue(), "film.gif")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP that knows seven words."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "small", "blue", "square"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = dict(hidden_size=16, intermediate_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(bos_token_id=2, pad_token_id=0, eos_token_id=3, sep_token_id=3)
    text = dict(vocab_size=len(words), encoder_hidden_size=16, max_position_embeddings=32, initializer_range=1.0)
    torch.manual_seed(0)
    hf_config = BlipConfig(text_config=sizes | ids | text, vision_config=sizes | dict(image_size=16, patch_size=8))
    model = BlipForConditionalGeneration(hf_config)
    model.text_decoder.cls.predictions.bias.data[:5] = -1000.0  # no end, and nothing but words
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_describes_a_picture(blip: Path) -> None:
    expert = Caption(Config(folder=str(blip), max_tokens=6))
    expert.start()
    [one] = expert.look(picture(1), None)
    assert one.text and set(one.text.split()) <= {"a", "red", "circle", "small", "blue", "square"}
    assert one.span is None and [one] == list(expert.look(picture(1), None))


def test_of_a_film_it_describes_frames(blip: Path) -> None:
    expert = Caption(Config(folder=str(blip), frames=4))
    expert.start()
    seen = []

    class Shade:
        def describe(self, pixels: np.ndarray, request: str, otherwise: str, max_tokens: int) -> str:
            seen.append((request, otherwise))
            return "dark" if pixels.mean() < 128 else "light"

    expert._describer = Shade()
    dark, light = expert.look(film(), None)
    assert (dark.text, light.text) == ("dark", "light")
    assert dark.span is not None and light.span is not None and dark.span[1] < light.span[0]
    assert seen == [("", DESCRIBE)] * 4


def test_a_model_that_chats_is_asked_in_its_own_way(blip: Path) -> None:
    from mmtune.experts._pipeline import Describer

    describer = Describer(blip, "cpu")
    asked = []
    describer._pipe = lambda **words: asked.append(words) or [{"generated_text": " a circle "}]
    describer._chats = True
    assert describer.describe(np.zeros((8, 8, 3), np.uint8), "", "What is it?", 9) == "a circle"
    [message] = asked[0]["text"]
    assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == "What is it?" and asked[0]["generate_kwargs"]["max_new_tokens"] == 9


def test_folders_that_hold_no_such_model(tmp_path: Path, blip: Path) -> None:
    for name, text in (("empty", None), ("odd", json.dumps({"model_type": "bert"}))):
        folder = tmp_path / name
        folder.mkdir()
        if text:
            (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=name):
            Caption(Config(folder=str(folder))).start()
    (tmp_path / "pickled").mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "pickled" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="pickled"):
        Caption(Config(folder=str(tmp_path / "pickled"))).start()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights."""
    folder = tmp_path_factory.mktemp("run")
    clip_folder(folder / "clip")
    tiny.folder(folder / "llm")
    made = recipe(folder)
    torch.manual_seed(0)
    store.save_run(folder / "run", models.build(made.model), made)
    return folder / "run"


def test_a_run_describes_as_it_answers(run: Path) -> None:
    expert = Caption(Config(run=str(run), device="cpu"))
    assert expert.kinds == ("image", "video") and not expert.asks
    expert.start()
    [one] = expert.look(picture(1), None)
    model, processor, _ = store.load_run(run, "cpu")
    sample = Sample("x", (Turn("user", (picture(1), DESCRIBE)),))
    [ids] = generate.answer_batch(model.eval(), [processor.example(sample, answer=True)], processor.stops, 80)
    assert one.text and one.text == processor.tokenizer.decode(ids).strip()


def test_the_question_may_be_passed_on(run: Path) -> None:
    expert = Caption(Config(run=str(run), device="cpu", ask=True))
    assert expert.asks
    expert.start()
    plain, asked = (next(iter(expert.look(picture(1), ask))).text for ask in (None, "How many objects are there?"))
    assert plain != asked


def test_its_version_is_that_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {branches: {a: {kinds: [audio, image]}}}")
    expert = Caption(Config(run=str(tmp_path)))
    assert expert.kinds == ("image", "audio")
    before = expert.version
    assert before == Caption(Config(run=str(tmp_path))).version
    (tmp_path / "weights").write_bytes(b"1")
    assert expert.version != before


def test_either_a_run_or_a_folder() -> None:
    for options in ({}, {"run": "a", "folder": "b"}):
        with pytest.raises(ConfigError, match="caption:run=FOLDER"):
            config.validate(Config, options)
