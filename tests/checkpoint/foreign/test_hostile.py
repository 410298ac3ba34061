"""Folders that somebody else made: numbers that are none, names that lead elsewhere, files that do not end."""

from __future__ import annotations

import functools
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune.checkpoint import build_run, convert, store
from mmtune.errors import CheckpointError, ConfigError, MmtuneError
from tests.checkpoint.foreign.made import make
from tests.checkpoint.foreign.makers import imagebind, pllava
from tests.checkpoint.foreign.makers import llava_hf as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("published") / "llava")[0]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return convert.import_checkpoint("llava_hf", [str(folder)], folder.parent / "run")


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refused(folder: Path, tmp_path: Path, *words: str, changes: tuple[str, ...] = ()) -> None:
    began = time.monotonic()
    with pytest.raises(MmtuneError) as caught:
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run", changes=changes)
    assert time.monotonic() - began < 20
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert ".draft" not in text, "a folder that is not there any more"
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))


def change(file: Path, **values: object) -> None:
    tree = json.loads(file.read_text())
    for key, value in values.items():
        *where, name = key.split("__")
        functools.reduce(dict.__getitem__, where, tree)[name] = value
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_config__image_size", 10**12),
        ("vision_config__hidden_size", "wide"),
        ("vision_config__num_hidden_layers", 10**7),
        ("vision_config__patch_size", 0.5),
        ("text_config__num_hidden_layers", 10**9),
        ("text_config__hidden_size", -4),
        ("text_config__vocab_size", 1.5),
        ("vision_config__hidden_size", 32.5),
        ("vision_config__image_size", None),
        ("vision_config__patch_size", "8"),
        ("vision_config__num_attention_heads", True),
        ("vision_config__hidden_act", "nonsense"),
        ("text_config__hidden_act", "nonsense"),
        ("text_config__rms_norm_eps", "1e-5"),
        ("text_config__model_type", ["llama"]),
        ("vision_feature_layer", True),
        ("vision_feature_layer", 0),
        ("vision_feature_select_strategy", "cls"),
    ],
)
def test_numbers_of_a_foreign_config(key: str, value: object, folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    change(copy / "config.json", **{key: value})
    refused(copy, tmp_path, key.rpartition("__")[2])


def test_whole_numbers_with_a_point_are_whole(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    sizes = {f"{part}_config__{name}": 32.0 for part in ("vision", "text") for name in ("hidden_size",)}
    change(copy / "config.json", **sizes, vision_config__image_size=24.0, text_config__num_hidden_layers=2.0)
    whole, pointed = (
        convert.import_checkpoint("llava_hf", [str(one)], tmp_path / one.name / "run") for one in (folder, copy)
    )
    for part in ("llm", "sight"):
        texts = [(run / "parts" / part / "config.json").read_text() for run in (whole, pointed)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_dim", None),
        ("embed_dim", "20"),
        ("layers", [2]),
        ("width", 32.5),
        ("head_width", True),
        ("patch_size", 0),
    ],
)
def test_numbers_of_open_clip(key: str, value: object, tmp_path: Path) -> None:
    made = make("llama_adapter_v2", tmp_path / "published")
    file = made.paths["clip"] / "open_clip_config.json"
    change(file, **{f"model_cfg__{key}" if key == "embed_dim" else f"model_cfg__vision_cfg__{key}": value})
    with pytest.raises(MmtuneError) as caught:
        convert.import_checkpoint("llama_adapter_v2", made.words, tmp_path / "run", made.options)
    assert f"{key} {value!r}" in str(caught.value) and str(file) in str(caught.value)


def test_a_tower_without_class_token_under_the_default_strategy(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    change(copy / "config.json", vision_config__model_type="siglip_vision_model")
    refused(copy, tmp_path, "vision_feature_select_strategy with a siglip_vision_model")


def test_nothing_is_fetched_and_nothing_outside_is_read(run: Path, tmp_path: Path, monkeypatch) -> None:
    """An attention of a hub, an adapter's base, an index that names files elsewhere."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("something was fetched"))
    for file, text, word in (
        ("config.json", {"_attn_implementation": "someone/kernels"}, "attention 'someone/kernels'"),
        (
            "adapter_config.json",
            {"base_model_name_or_path": "someone/model", "peft_type": "LORA"},
            "adapter_config.json",
        ),
        ("model.safetensors.index.json", {"weight_map": {"a": "../../elsewhere.safetensors"}}, "no table of tensors"),
    ):
        copy = Path(shutil.copytree(run, tmp_path / file))
        path = copy / "parts/llm" / file
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **text}))
        with pytest.raises(CheckpointError, match=word):
            store.load_run(copy)
    copy = Path(shutil.copytree(run, tmp_path / "tower"))
    change(
        copy / "parts/sight/config.json", _attn_implementation="someone/kernels", auto_map={"AutoModel": "evil.Evil"}
    )
    (copy / "parts/sight/evil.py").write_text("raise SystemExit('ran')")
    store.load_run(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree.update(model={"type": "BPE"}),
        lambda tree: tree.update(added_tokens=[{"id": "x", "content": 5}]),
        lambda tree: tree["model"].update(merges=[["a"]]),
        lambda tree: tree["model"]["vocab"].update(far=4_000_000_000),
        lambda tree: tree.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"}),
        lambda tree: tree.clear(),
        lambda tree: tree["model"].update(vocab=[1, 2]),
    ],
)
def test_a_hostile_tokenizer(damage, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "parts/llm/tokenizer.json"
    tree = json.loads(file.read_text())
    damage(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(MmtuneError, match=r"tokenizer|ids of"):
        store.load_run(copy)


def test_files_that_do_not_end(run: Path, tmp_path: Path) -> None:
    for name in ("base.yaml", "recipe.yaml", "parts/llm/tokenizer.json", "parts/sight/config.json"):
        copy = Path(shutil.copytree(run, tmp_path / name.replace("/", "_")))
        (copy / name).unlink()
        (copy / name).symlink_to("/dev/zero")
        began = time.monotonic()
        with pytest.raises(MmtuneError, match=Path(name).name):
            store.load_run(copy)
        assert time.monotonic() - began < 10
    (copy / name).unlink()
    with (copy / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MmtuneError, match=r"1,099,511,627,776 bytes"):
        store.load_run(copy)


@pytest.mark.parametrize("where", ["parts/llm", "parts/sight"])
def test_numbers_that_are_none_are_found_on_loading(where: str, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / where / "model.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda one: tensors[one].numel())
    tensors[name].view(-1)[3] = float("nan") if where == "parts/llm" else float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        store.load_run(copy)
    assert name in str(caught.value) and str(file) in str(caught.value) and "1 of" in str(caught.value)


def test_numbers_that_are_none_are_not_imported(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors["multi_modal_projector.linear_1.bias"][0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, tmp_path, "NaN or infinity in multi_modal_projector.linear_1.bias (1 of")


def test_a_prompt_that_the_tokenizer_cannot_serve(folder: Path, tmp_path: Path) -> None:
    """The import refuses it, so that nobody meets it while talking with the run."""
    with pytest.raises(ConfigError) as caught:
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run", ["prompt=chatml"])
    text = str(caught.value)
    assert "chat.prompt" in text and "'chatml'" in text and "vicuna" in text and "--option prompt=" in text
    assert not list(tmp_path.iterdir())


def test_a_fraction_for_the_scale_of_a_lora(tmp_path: Path) -> None:
    made = pllava.make(tmp_path / "published")
    run = convert.import_checkpoint("pllava", made.words, tmp_path / "run", ["lora_alpha=2.5"])
    assert store.read_recipe(run).model.tuners[0].options["lora_alpha"] == 2.5
    scales = {m.scaling["default"] for m in store.load_run(run)[0].modules() if hasattr(m, "lora_A")}
    assert scales == {2.5 / pllava.RANK}
    convert.export_checkpoint(run, "pllava", tmp_path / "out", ["lora_alpha=4"])


def test_pictures_of_another_size_for_imagebind(tmp_path: Path) -> None:
    """Its positions are interpolated by a factor, bicubic and without anti-aliasing, as published."""
    from torch.nn import functional as F

    (tmp_path / "published").mkdir()
    made = imagebind.make(tmp_path / "published")
    options = ["modality=vision", "heads=2"]
    first = convert.import_checkpoint("imagebind", made.words, tmp_path / "first", options)
    table = load_file(first / "model.safetensors")["tower.positions"]
    second = convert.import_checkpoint("imagebind", made.words, tmp_path / "second", options, ["encoder.size=8"])
    from mmtune import config

    entry = config.parse((second / "encoder.yaml").read_text(), "encoder.yaml")["encoder"]
    encoder = build_run.part_of("encoders", {**entry, "weights": str(second)})
    encoder.load_weights()
    grid = table[:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, scale_factor=2.0, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert encoder.pixels.size == (8, 8) and encoder.tower.positions.shape[1] == 17
    torch.testing.assert_close(encoder.tower.positions[:, 1:], wanted)
    assert torch.equal(encoder.tower.positions[:, :1], table[:, :1])
