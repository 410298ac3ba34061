"""`mmtune import` and `mmtune export`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmtune import cli, registry
from mmtune.errors import MmtuneError, UsageError
from tests.checkpoint.foreign.makers import llava_hf as tiny


def typed(*words: str):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_list_names_every_kind_with_its_paths_and_options() -> None:
    said = typed("import", "--list")
    assert said.exit_code == 0
    for kind in registry.names("checkpoint/foreign"):
        found = registry.find("checkpoint/foreign", kind)
        assert f"{kind}: {found.about}" in said.output
        assert found.about and found.roles, kind
        for name, field in found.Config.model_fields.items():
            assert field.description, f"{kind}: option {name} is not explained"
            assert f"--option {name}=" in said.output
    assert "lora_alpha=...: For import, which needs it: scale of the LoRA times its rank" in said.output


@pytest.mark.parametrize("version", ["llava", "llava_next"])
def test_in_chat_and_out(version: str, tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published", version)
    Image.new("RGB", (50, 30), (200, 30, 40)).save(folder / "picture.png")
    done = typed("import", "llava_hf", folder, "--out", tmp_path / "run", "--set", "chat.max_tokens=5")
    assert done.exit_code == 0 and f"mmtune chat {tmp_path / 'run'}" in done.output, done.output
    answer = typed("chat", tmp_path / "run", "what is this", "--image", folder / "picture.png", "--json")
    assert answer.exit_code == 0, answer.output
    (media,) = json.loads(answer.stdout)["media"]
    # three lines of three; in 48 x 48: the whole, then of six lines the four that show more than border
    assert media["tokens"] == (9 if version == "llava" else 9 + 4 * (6 + 1)), media
    out = typed("export", tmp_path / "run", "--layout", "llava_hf", "--out", tmp_path / "out")
    assert out.exit_code == 0 and "model.safetensors" in out.output
    assert {path.name for path in tmp_path.iterdir()} == {"published", "run", "out"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("import", "without a kind"),
        ("import llava_hf --out x", "without paths"),
        ("import llava_hf folder", "without --out"),
        ("import nothing folder --out x", "checkpoint/foreign has no 'nothing'"),
        ("import llava_hf nowhere --out x", "there is no nowhere"),
        ("import llava_hf a b --out x", "at most 1: folder=PATH"),
        ("import llava_hf base=a --out x", "no role 'base'"),
        ("import pllava . base=. --out x", "pllava without lora_alpha"),
        ("import video_llama . --out x", "no path for"),
        ("import llava_hf . --out x --set chat", "KEY=VALUE"),
        ("import llava_hf . --out x --option resize=never", "resize"),
        ("export nowhere --layout llava_hf --out x", "nowhere has no recipe.yaml"),
        ("export nowhere --layout llm --out x", "llm is read only"),
        ("export nowhere --layout llm --out x", "--kind with one of blip2, eva"),
    ],
)
def test_mistakes_are_told(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MmtuneError) as caught:
        CliRunner().invoke(cli.app, words.split(), standalone_mode=False, catch_exceptions=False)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    from mmtune.checkpoint import convert

    folder, _ = tiny.folder(tmp_path / "published")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    with pytest.raises(UsageError, match=r"/run\b"):
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    assert (tmp_path / "run" / "mine").read_text() == "mine"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmtune.checkpoint import convert, store

    folder, _ = tiny.folder(tmp_path / "published")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_run", full)
    with pytest.raises(OSError, match="No space"):
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
