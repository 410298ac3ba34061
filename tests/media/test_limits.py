"""Limits are set in a recipe and on the command line, name themselves where they refuse, and reach whoever decodes."""

import subprocess
import sys

import pytest
import yaml

from mmtune import config, media
from mmtune.data.ledger import Ledger
from mmtune.errors import ConfigError, MediaError, Note
from mmtune.media import Limits, _limits
from tests.media import make


@pytest.fixture(autouse=True)
def _fresh():
    yield
    _limits._said.clear()
    _limits._usual.clear()


FILM = make.video(16, sound=True)
CASES = [
    ("image", make.image(make.picture()), "bytes", 10),
    ("image", make.image(make.picture()), "image_pixels", 10),
    ("image", make.image(make.picture(), "JPEG", progressive=True), "scan_pixels", 2000),
    ("video", FILM, "bytes", 10),
    ("video", FILM, "frame_pixels", 10),
    ("video", FILM, "output_pixels", 10),
    ("video", FILM, "video_seconds", 0.5),
    ("video", FILM, "packets", 3),
    ("video", FILM, "decoded_frames", 2),
    ("video", FILM, "wall_seconds", 0),
    ("audio", FILM, "audio_seconds", 0.5),
    ("audio", make.wav(make.sine(16000, 0.5)), "audio_seconds", 0.25),
    ("audio", make.wav(make.sine(16000, 0.5)), "audio_values", 100),
    ("audio", make.wav(make.sine(16000, 0.5)), "channels", 0),
    ("audio", make.wav(make.sine(16000, 0.5)), "min_rate", 20000),
    ("audio", make.wav(make.sine(16000, 0.5)), "max_rate", 2000),
    ("points", b"1 2 3\n4 5 6\n", "points", 1),
    ("points", b"1 2 3\n4 5 6\n", "point_values", 1),
]


@pytest.mark.parametrize(("kind", "data", "name", "value"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_a_limit_that_refuses_says_its_name_and_what_to_type(kind, data, name, value):
    for refuse in (lambda: make.get(kind, data, Limits(**{name: value})), lambda: make.get(kind, data)):
        with pytest.raises(MediaError) as error:
            refuse()
        assert f"(limit {name})" in error.value.expected
        assert f"limits.{name}=" in error.value.hint and f"--limit {name}=" in error.value.hint
        media.say([f"{name}={value}"])  # the second time it comes from the command line
    _limits._said.clear()
    _limits._usual.clear()
    assert make.get(kind, data).data.numel()


def test_the_command_line_is_above_a_recipe():
    media.say(["points=7", "limits.wall_seconds=1_0"])
    assert media.settled(Limits(points=9, channels=2)) == Limits(points=7, channels=2, wall_seconds=10)
    assert _limits.said() == ["points=7", "wall_seconds=10"]


@pytest.mark.parametrize("text", ["points", "pionts=4", "points=x", "points=-1", "complete=2", "=4", "points=nan"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(ConfigError) as error:
        media.say([text])
    assert text in str(error.value)


def test_a_recipe_has_every_limit_and_refuses_others(monkeypatch):
    from mmtune.recipe import Recipe

    assert config.load(Recipe, "pocket", ["limits.decoded_frames=5"]).limits == Limits(decoded_frames=5)
    with pytest.raises(ConfigError, match="unknown key; the known keys are"):
        config.load(Recipe, "pocket", ["limits.decoded=5"])
    assert set(yaml.safe_load(config.dump(Limits()))) == set(Limits.model_fields)
    assert all(field.description for field in Limits.model_fields.values())


def test_the_limits_of_a_recipe_are_those_of_its_processor(tmp_path):
    from mmtune.checkpoint.store import processor_for
    from mmtune.model import build
    from mmtune.recipe import Recipe
    from mmtune.types import MediaRef, Sample, Turn

    recipe = config.load(Recipe, "pocket", ["limits.image_pixels=100"])
    stream = next(iter(recipe.streams.values()))
    processor = processor_for(recipe, build(recipe.model, weights=False, device="meta"), stream.prompt)
    ref = MediaRef("image", make.image(make.picture()), "large.png")
    with pytest.raises(MediaError, match=r"at most 100 \(limit image_pixels\)"):
        processor.example(Sample("one", (Turn("user", (ref, "what?")), Turn("assistant", ("that",)))))


@pytest.mark.parametrize("words", ["chat", "eval x --task y", "data check x.tar --recipe pocket"])
def test_commands_take_limits(words):
    words = [*words.split(), "--limit", "pionts=4"]
    child = subprocess.run([sys.executable, "-m", "mmtune", *words], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2 or child.returncode == 1
    assert "pionts=4" in child.stderr and "decoded_frames" in child.stderr and "Traceback" not in child.stderr


def test_a_ledger_counts_what_was_unusual_and_goes_on_counting(tmp_path):
    ledger = Ledger(tmp_path / "skipped.jsonl")
    ledger.take(notes=[Note.open_length])
    ledger.take(notes=[Note.open_length, Note.gaps_filled])
    other = Ledger(tmp_path / "skipped.jsonl")
    other.restore(ledger.position())
    other.take(notes=["gaps_filled"])
    assert other.unusual() == "open_length 2, gaps_filled 2" and other.summary() == "nothing skipped"


def test_notes_come_through_a_worker():
    import torch

    from mmtune.data import _serialize
    from mmtune.types import Example

    zero = torch.zeros(2, dtype=torch.int64)
    example = Example("one", zero, zero, notes=(Note.open_length, Note.open_length))
    assert _serialize.unpack(*_serialize.load(_serialize.dump(*_serialize.pack(example)))).notes == example.notes


def test_the_page_names_every_limit_with_its_value():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "media.md").read_text()
    for name in Limits.model_fields:
        assert f"`{name}`" in page, name
    for note in Note:
        assert f"`{note}`" in page, note
    for value in ("50 million", "1,000 million", "500,000", "1,000 and 384,000 Hz"):
        assert value in page
