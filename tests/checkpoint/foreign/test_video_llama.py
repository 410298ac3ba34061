"""Video-LLaMA, BLIP-2 and EVA: published names in full size, what trains, oddities by name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmtune import config, params
from mmtune import model as models
from mmtune.checkpoint import convert, store
from mmtune.checkpoint.foreign.base import Opened, Source
from mmtune.checkpoint.foreign.blip2 import Blip2
from mmtune.checkpoint.foreign.blip2 import Config as Blip2Config
from mmtune.checkpoint.foreign.eva import Config as EvaConfig
from mmtune.checkpoint.foreign.eva import Eva
from mmtune.checkpoint.foreign.video_llama import Config, VideoLlama
from mmtune.encoders.blip2_eva import Config as EyeConfig
from mmtune.errors import CheckpointError
from mmtune.recipe import Recipe
from tests.checkpoint.foreign.made import make
from tests.checkpoint.foreign.makers import _eye, blip2, video_llama
from tests.llm.tiny import folder as llama

PUBLISHED = {
    "sight": {"queries": 32, "width": 768, "hidden": 3072, "depth": 2, "every": 1, "memory": 768},
    "sound": {"queries": 8, "width": 768, "hidden": 3072, "depth": 2, "every": 1, "memory": 1024},
}
BRANCHES = {
    "sight": {
        "encoder": {"name": "blip2_eva", "weights": "nowhere"},
        "connector": {"name": "video_qformer"},
    },
    "sound": {
        "encoder": {"name": "imagebind_audio", "weights": "nowhere", "frames": 8},
        "connector": {"name": "video_qformer", "queries": 8, "frames": 8},
    },
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """A language model of the published width, of which only names and shapes are ever made."""
    path = tmp_path_factory.mktemp("wide") / "llm"
    return str(llama(path, weights=False, hidden_size=4096, num_attention_heads=32, num_key_value_heads=32))


@pytest.fixture(scope="module")
def full(wide) -> Opened:
    tree = {"model": {"branches": BRANCHES, "llm": {"name": "hf", "folder": wide}, "fusion": {"name": "tokens"}}}
    recipe = config.validate(Recipe, {**tree, "chat": {"prompt": "video_llama2"}})
    return Opened(models.build(recipe.model, weights=False, device="meta"), recipe)


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_full_size_files_have_the_published_names_and_shapes(full) -> None:
    counter = {"Qformer.bert.embeddings.position_ids": (1, 512)}
    files = VideoLlama(Config()).write(full).tensors
    vl, al = (shapes(files[f"video_llama_{one}.pth"]["model"]) for one in ("vl", "al"))
    assert vl == _eye.sight(PUBLISHED["sight"], 4096) | {f"video_{n}": s for n, s in counter.items()}
    assert al == _eye.sound(PUBLISHED["sound"], 4096) | {f"audio_{n}": s for n, s in counter.items()}
    files = Blip2(Blip2Config()).write(full).tensors
    qformer = _eye.qformer("", queries=32, width=768, hidden=3072, depth=12, every=2, memory=1408)
    assert shapes(files["blip2_pretrained.pth"]["model"]) == qformer | _eye.norm("ln_vision", 1408) | counter
    assert shapes(files["eva_vit_g.pth"]) == _eye.tower(**_eye.FULL)
    assert shapes(Eva(EvaConfig()).write(full).tensors["eva_vit_g.pth"]) == _eye.tower(**_eye.FULL)


def test_full_size_files_come_in(full) -> None:
    """Sizes are read from the tensors, and every name of the encoder is given in its shape."""
    counter = torch.empty(1, 512, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        tower = _eye.draw(_eye.tower(**{**_eye.FULL, "blocks": 40}))
        wanted = _eye.qformer("", queries=32, width=768, hidden=3072, depth=12, every=2, memory=1408)
        own = _eye.draw(wanted | _eye.norm("ln_vision", 1408) | _eye.linear("t5_proj", 768, 4096))
    own["Qformer.bert.embeddings.position_ids"] = counter
    sources = {"blip2": Source.memory("blip2", own), "eva": Source.memory("eva", tower)}
    got = Blip2(Blip2Config()).read(sources)
    default = EyeConfig(qformer_hidden=3072)  # the same as null
    assert EyeConfig.model_validate(got.recipe["encoder"]) == default
    assert shapes(got.part("encoder")) == shapes(full.model.branches["sight"].encoder.tower.state_dict())


SPEC = {"qformer": 18_905_088, "query_tokens": 24_576, "frame_positions": 24_576, "proj": 3_149_824}
"""Of the vision branch."""
HEARING = {"qformer": 19_691_520, "query_tokens": 6_144, "frame_positions": 8_192, "proj": 3_149_824}
"""Keys and values of the sound branch read 1024 values instead of 768."""


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("which", "counts"), [("vl", SPEC), ("al", HEARING)])
def test_the_recipes_train_what_was_published(which, counts, stage, wide) -> None:
    tree = config.read(config.locate(f"video_llama_7b_{which}_stage{stage}", "recipes"))
    tree["model"]["llm"] = {"name": "hf", "folder": wide}
    recipe = config.validate(Recipe, tree)
    model = models.build(recipe.model, weights=False, device="meta")
    parts = params.partition(model, recipe.groups)
    found: dict[str, int] = {}
    for name, parameter in parts["connector"]:
        part = name.split(".")[3]
        found[part] = found.get(part, 0) + parameter.numel()
    assert found == counts
    assert sum(counts.values()) == {"vl": 22_104_064, "al": 22_855_680}[which]
    trained = {id(parameter) for named in parts.values() for _, parameter in named}
    assert not any(p.requires_grad for p in model.parameters() if id(p) not in trained)


def unpickled(paths: dict[str, Path]) -> dict[str, Path]:
    """The same files as safetensors, which take no process of their own to be read."""
    found = {}
    for role, path in paths.items():
        if path.suffix == ".pth":
            tensors = torch.load(path, weights_only=True)["model"]
            path = path.with_suffix(".safetensors")
            save_file(tensors, path)
        found[role] = path
    return found


def words(paths: dict[str, Path]) -> list[str]:
    return [f"{role}={path}" for role, path in paths.items()]


def test_oddities_are_chosen_by_the_importer_and_answers_are_the_weights(tmp_path) -> None:
    """The tensors reach the modules they belong to; the recipe names what the published weights depend on."""
    made = make("video_llama", tmp_path / "published")
    paths = unpickled(made.paths)
    run = convert.import_checkpoint("video_llama", words(paths), tmp_path / "run", made.options)
    model, processor, recipe = store.load_run(run)
    eye, ear = (recipe.model.branches[name].encoder for name in ("sight", "sound"))
    assert (eye.rule, eye.frames, eye.vit_depth, eye.vit_heads, eye.cross_every) == ("video_llama", 8, 2, 2, 2)
    assert (ear.spacing, ear.centre, ear.frames, ear.heads) == ("short", "running", 8, 2)
    assert type(eye)().rule == "uniform" and type(ear)().spacing == "full" and type(ear)().centre == "clip"
    assert recipe.chat.prompt == "video_llama2" and "sampled at" in processor.template.timestamps
    out = convert.export_checkpoint(run, "video_llama", tmp_path / "out")
    al = torch.load(out / "video_llama_al.pth", weights_only=True)["model"]
    connector = model.branches["sound"].connector
    assert torch.equal(al["audio_llama_proj.weight"], connector.proj.weight)
    assert torch.equal(al["audio_position_embedding.weight"], connector.frame_positions.weight)
    assert set(al) == {*_eye.sound(video_llama.SOUND, 32), "audio_Qformer.bert.embeddings.position_ids"}
    again = unpickled({**paths, "vl": out / "video_llama_vl.pth", "al": out / "video_llama_al.pth"})
    twin = store.load_run(convert.import_checkpoint("video_llama", words(again), tmp_path / "twin", made.options))[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name


def sources(**changes: dict[str, Tensor] | None) -> dict[str, Source]:
    """Tiny sources in memory for BLIP-2's importer."""
    given = {"blip2": blip2.tensors(), "eva": _eye.draw(_eye.tower(**_eye.TINY)), **changes}
    return {role: Source.memory(role, tensors) for role, tensors in given.items() if tensors is not None}


def test_the_tower_may_lie_in_either_file_but_not_in_both() -> None:
    options = Blip2Config(blocks=2, vit_heads=2, qformer_heads=2)
    tower = {f"visual_encoder.{name}": t for name, t in _eye.draw(_eye.tower(**_eye.TINY)).items()}
    whole = {**blip2.tensors(), **tower}
    inside = Blip2(options).read(sources(blip2=whole, eva=None))
    beside = Blip2(options).read(sources())
    assert inside.recipe == beside.recipe
    assert inside.part("encoder").keys() == beside.part("encoder").keys()
    for given in (sources(blip2=whole), sources(eva=None)):
        with pytest.raises(CheckpointError, match="blip2 in memory"):
            Blip2(options).read(given)


def test_the_text_side_of_stage_1_is_left_out_and_nothing_else() -> None:
    text = {
        "Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(20, 16),
        "Qformer.bert.embeddings.position_embeddings.weight": torch.zeros(512, 16),
        "Qformer.bert.encoder.layer.1.intermediate.dense.weight": torch.zeros(64, 16),
        "Qformer.bert.encoder.layer.1.output.LayerNorm.bias": torch.zeros(16),
        "Qformer.cls.predictions.transform.dense.weight": torch.zeros(16, 16),
        "vision_proj.weight": torch.zeros(8, 16),
        "text_proj.bias": torch.zeros(8),
        "itm_head.weight": torch.zeros(2, 16),
        "temp": torch.tensor(0.07),
    }
    reader = Blip2(Blip2Config(blocks=2, vit_heads=2, qformer_heads=2))
    plain, full = reader.read(sources()), reader.read(sources(blip2={**blip2.tensors(), **text}))
    assert full.recipe == plain.recipe and full.part("encoder").keys() == plain.part("encoder").keys()
    with pytest.raises(CheckpointError, match="itm_tail"):
        reader.read(sources(blip2={**blip2.tensors(), "itm_tail": torch.zeros(2)})).tensors()


def branch_table(frozen: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces: list = []
    VideoLlama(Config(frozen=frozen, qformer_heads=2))._branch("sight", Source.memory("vl", tensors), pieces)
    return pieces[0].table.into(pieces[0].tensors)


def test_frozen_parts_inside_are_refused_or_left_out_by_name() -> None:
    vl = _eye.draw(_eye.sight(video_llama.SIGHT, 32)) | _eye.counter("video_") | _eye.counter()
    inside = {"ln_vision.weight": torch.ones(16), "visual_encoder.cls_token": torch.zeros(1, 1, 16)}
    buffer = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    plain = branch_table("refuse", {**vl, **buffer})
    assert len(plain) == len(vl) - 2
    with pytest.raises(CheckpointError, match=r"ln_vision\.weight: no rule"):
        branch_table("refuse", {**vl, **inside})
    assert branch_table("leave", {**vl, **inside}).keys() == plain.keys()


def test_a_connector_beyond_the_layout_is_told(wide) -> None:
    connector = {"name": "video_qformer", "token_positions": True}
    tree = {"branches": {"sight": {**BRANCHES["sight"], "connector": connector}}, "fusion": {"name": "tokens"}}
    recipe = config.validate(
        Recipe, {"model": {**tree, "llm": {"name": "hf", "folder": wide}}, "chat": {"prompt": "video_llama2"}}
    )
    run = Opened(models.build(recipe.model, weights=False, device="meta"), recipe)
    with pytest.raises(CheckpointError, match=r"connector\.token_positions: no rule"):
        VideoLlama(Config()).write(run)


def test_the_audio_branch_comes_with_its_imagebind(tmp_path: Path) -> None:
    made = make("video_llama", tmp_path / "published")
    paths = unpickled(made.paths)
    del paths["imagebind"]
    with pytest.raises(CheckpointError, match="one of `al` and `imagebind` alone"):
        convert.import_checkpoint("video_llama", words(paths), tmp_path / "run", made.options)
    del paths["al"]
    recipe = store.read_recipe(convert.import_checkpoint("video_llama", words(paths), tmp_path / "run", made.options))
    assert list(recipe.model.branches) == ["sight"]
