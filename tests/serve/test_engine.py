"""The engine on a tiny random model of real parts: what is computed, once, and that nothing changes the answer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune import generate, prompt
from mmtune.connectors.linear import Config as LinearConfig
from mmtune.connectors.linear import Linear
from mmtune.encoders.clip import Clip
from mmtune.encoders.clip import Config as ClipConfig
from mmtune.errors import DataError, MediaError, UsageError
from mmtune.fusion.tokens import Config as TokensConfig
from mmtune.fusion.tokens import Tokens
from mmtune.model import Branch, MultimodalModel
from mmtune.processor import Processor
from mmtune.serve import engine as engines
from mmtune.serve.conversation import Conversation, Settings
from mmtune.serve.engine import Engine
from mmtune.types import MediaRef, Quote, Sample, Turn
from tests.encoders.tiny import clip_folder
from tests.llm import tiny


def picture(seed: int, name: str = "") -> MediaRef:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return MediaRef("image", file.getvalue(), name or f"{seed}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def parts(folder: Path):
    torch.manual_seed(0)
    llm = tiny.llm(folder / "llm")
    encoder = Clip(ClipConfig(weights=str(clip_folder(folder / "clip")), frames=2))
    encoder.load_weights()
    connector = Linear(LinearConfig(name="linear"), encoder.shape, llm.width)
    model = MultimodalModel({"sight": Branch(encoder, connector)}, llm, Tokens(TokensConfig(), 32, 2, 4))

    def make(length: int | None = None):
        processor = Processor(model.branches, llm.tokenizer, prompt.load("pocket"), length=length)
        return model.eval(), processor

    return make


def _ask(*parts) -> Sample:
    return Sample("x", (Turn("user", parts),))


def test_an_answer_is_what_the_model_says_without_an_engine(parts) -> None:
    model, processor = parts()
    sample = _ask(picture(1), "what is this")
    plain = processor.example(sample, answer=True)
    expected = list(generate.stream(model, plain, processor.stops, max_tokens=12))
    engine = Engine(Path("run"), model, processor)
    assert list(engine.stream(engine.prompt(sample), 12, 0.0, 0)) == expected
    assert len(set(expected)) > 1  # a model that says one thing would prove nothing


def test_a_picture_is_encoded_once_in_a_conversation(parts) -> None:
    model, processor = parts()
    seen = []
    model.branches["sight"].encoder.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[0]))
    talk = Conversation(Engine(Path("run"), model, processor), settings=Settings(max_tokens=3))
    first = talk.attach(picture(1))
    assert first.branch == "sight" and first.frames == 1 and first.tokens == 9 and first.seconds > 0
    for question in ("what is this", "how many", "where"):
        "".join(talk.ask(question))
    again = talk.attach(picture(1, "same bytes.png"))
    assert again.seconds == 0 and again.digest == first.digest
    assert seen == [1]
    talk.attach(picture(2))
    assert seen == [1, 1]


def test_a_second_question_is_answered_as_if_all_were_read_anew(parts) -> None:
    model, processor = parts()
    engine = Engine(Path("run"), model, processor)
    talk = Conversation(engine, settings=Settings(max_tokens=6))
    talk.attach(picture(1))
    one = "".join(talk.ask("what is this"))
    two = talk.ask("how many")
    said = "".join(two)
    turns = Turn("user", (picture(1), "what is this")), Turn("assistant", (one,)), Turn("user", ("how many",))
    whole = Sample("y", turns)
    anew = Engine(Path("run"), *parts())
    ids = list(anew.stream(anew.prompt(whole), 6, 0.0, 0))
    assert anew.decode(ids).strip() == said.strip()
    assert two.prompt_tokens == anew.prompt(whole).tokens


def test_the_memory_for_features_is_bounded(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Path("run"), *parts())
    monkeypatch.setattr(engines, "KEPT_BYTES", 2 * 9 * 32 * 4)
    for seed in (1, 2, 3):
        engine.look(picture(seed))
    assert len(engine._features._kept) == 2
    assert engine.look(picture(3)).seconds == 0 and engine.look(picture(1)).seconds > 0


def test_the_prompt_is_shown_with_marks_and_places(parts) -> None:
    engine = Engine(Path("run"), *parts())
    shown = engine.rendered(_ask(picture(1, "a.png"), Quote("ocr", "EXIT <|end|>"), "what is this"))
    assert shown.startswith(
        "<|bos|><|user|><|media|>[image a.png: sight, 9 tokens]<|/media|><|quote|>ocr: EXIT <|end|><|/quote|>"
        "what is this<|end|><|assistant|>"
    )
    assert shown.endswith(" tokens)")


def test_the_oldest_exchanges_go_when_it_gets_too_long(parts) -> None:
    engine = Engine(Path("run"), *parts(length=60))
    talk = Conversation(engine, system="be brief", settings=Settings(max_tokens=4))
    talk.attach(picture(1))
    answers = []
    for _ in range(6):
        answers.append(talk.ask("what is this a red circle"))
        "".join(answers[-1])
    assert answers[0].left_out == 0 and answers[0].media
    assert answers[-1].left_out > 0 and not answers[-1].media
    assert all(answer.prompt_tokens <= 60 for answer in answers)
    assert len(talk.turns) == 12  # told, not forgotten
    assert "earlier exchanges left out" in talk.rendered() and "be brief" in talk.rendered()


def test_a_question_that_cannot_fit_is_refused(parts) -> None:
    engine = Engine(Path("run"), *parts(length=20))
    with pytest.raises(DataError, match=r"alone, with its media, has \d+ tokens\nexpected: at most 20\ntry: "):
        engine.prompt(_ask("what " * 50))


def test_media_that_cannot_be_used_are_refused(parts) -> None:
    engine = Engine(Path("run"), *parts())
    with pytest.raises(MediaError, match=r"bad\.png"):
        engine.look(MediaRef("image", picture(1).read()[:100], "bad.png"))
    with pytest.raises(UsageError, match="audio"):
        engine.look(MediaRef("audio", b"x", "a.wav"))
