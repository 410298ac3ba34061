"""An export is the model that it was made of, or it is refused by name and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtune.checkpoint import convert, store, write
from mmtune.checkpoint.foreign.base import Opened
from mmtune.errors import CheckpointError
from mmtune.tuners import _merge
from tests.checkpoint.foreign.made import make
from tests.checkpoint.foreign.makers import llava_hf as tiny
from tests.checkpoint.foreign.runs import around, tuned, varied
from tests.encoders.tiny import hf_folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = tiny.folder(tmp_path_factory.mktemp("published") / "llava")
    return convert.import_checkpoint("llava_hf", [str(folder)], folder.parent / "run")


def refused(run: Opened, kind: str, tmp_path: Path, *words: str, options: tuple[str, ...] = ()) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert.export_opened(run, kind, tmp_path / "out", options)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert caught.value.expected and caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "r": 4, "use_dora": True, "target_modules": "[q_proj, v_proj]"},
        {"method": "oft", "oft_block_size": 8, "r": 0, "target_modules": "[q_proj, down_proj]"},
        {"method": "miss", "r": 4, "target_modules": "[q_proj]"},
        {"method": "lora", "r": 4, "target_modules": "[embed_tokens, q_proj]", "modules_to_save": "[lm_head]"},
    ],
    ids=lambda settings: "-".join(str(one) for one in list(settings.values())[:4]),
)
def test_what_peft_merges_comes_out_as_it_is(llava: Path, settings: dict, tmp_path: Path) -> None:
    """The sum with `get_delta_weight` is another model for most methods; the reading back refuses that."""
    plain, run = varied(llava), varied(llava, tuned(**settings), moved="llm.")
    ids = torch.arange(30, 40)[None]
    llms = (plain.model.llm, run.model.llm)
    with torch.no_grad():
        before, after = (one.head(one.forward(one.embed(ids), torch.arange(10)[None], None)) for one in llms)
    assert (before - after).abs().max() > 1e-3, "the tuner does something"
    lines: list[str] = []
    out = convert.export_opened(run, "llava_hf", tmp_path / "out", say=lines.append)
    assert (out / "model.safetensors").is_file() and any("float32" in line for line in lines)


def test_two_tuners_on_top_of_each_other(llava: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    two = "[{name: hf_peft, method: hra, r: 4, target_modules: [q_proj]}, "
    two += "{name: hf_peft, method: lora, adapter: more, r: 4, target_modules: [q_proj, v_proj]}]"
    changes = [f"model.tuners={two}", "groups.tuned={match: ['@hf_peft'], lr: 0.01}"]
    convert.export_opened(varied(llava, changes, moved="llm."), "llava_hf", tmp_path / "out")
    assert not [one for one in recwarn if "peft_config" in str(one.message)]


def test_a_merge_that_is_another_layer_is_found(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if peft's merge of a method were wrong: the layer is tried before anything is written."""
    from peft.tuners.lora.layer import Linear

    run = varied(llava, tuned(method="lora", r=4, target_modules="[q_proj]"), moved="llm.")
    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 1.5 * real(self, adapter))
    monkeypatch.setattr(write, "write_export", lambda *_: pytest.fail("something was written"))
    refused(run, "llava_hf", tmp_path, "hf_peft: lora", "layers.0.self_attn.q_proj", "off by")


def test_what_cannot_be_merged_is_named(llava: Path, tmp_path: Path) -> None:
    for number, (settings, word) in enumerate(
        [
            ({"method": "lily", "r": 4, "target_modules": "[q_proj]"}, "hf_peft: lily"),
            ({"method": "beft", "target_modules": "[q_proj]"}, "hf_peft: beft"),
            ({"method": "prompt_tuning", "num_virtual_tokens": 3}, "prefix."),
        ]
    ):
        here = tmp_path / str(number)
        here.mkdir()
        run = varied(llava, tuned(**settings), moved="llm.")
        refused(run, "llava_hf", here, word)


def test_the_model_stays_as_it_is(llava: Path, tmp_path: Path) -> None:
    run = varied(llava, tuned(method="oft", oft_block_size=8, r=0, target_modules="[q_proj]"))
    model = run.model.llm.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = _merge.merged(model)
    assert not done.refused and set(done.state).isdisjoint(name for name in before if "oft" in name)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


ENCODER = "model.branches.sight.encoder."


def test_settings_that_the_layout_has_no_word_for(llava: Path, tmp_path: Path) -> None:
    """All of them are told at once; what is seen only in pixels is told by the reading back."""
    changes = [f"{ENCODER}{one}" for one in ("channels=bgr", "norm=true", "size=48")]
    run = varied(llava, changes)
    refused(run, "llava_hf", tmp_path, "channels: bgr", "norm: true", "size: 48")
    smaller = varied(llava, [f"{ENCODER}decode_side=100"])
    refused(smaller, "llava_hf", tmp_path, "decode_side: 100")


def test_settings_that_it_has_a_word_for(llava: Path, tmp_path: Path) -> None:
    changes = [f"{ENCODER}{one}" for one in ("tokens=all", "layer=0", "mean=[0.1,0.2,0.3]", "resize=pad")]
    run = varied(llava, changes)
    convert.export_opened(run, "llava_hf", tmp_path / "out")


@pytest.mark.parametrize(("kind", "tokens"), [("siglip", "patches"), ("siglip", "all"), ("dinov2", "patches")])
def test_other_towers_come_out_exact_or_not_at_all(llava: Path, kind: str, tokens: str, tmp_path: Path) -> None:
    """A SigLIP has no class token that `default` could leave out."""
    tower = hf_folder(tmp_path / "tower", kind)
    changes = [f"{ENCODER}weights={tower}", f"{ENCODER}tokens={tokens}"]
    run = varied(llava, changes, moved="branches.")
    try:
        out = convert.export_opened(run, "llava_hf", tmp_path / "out")
    except CheckpointError as error:
        assert kind == "dinov2" and "transformers" in str(error), error
        return
    back = convert.import_checkpoint("llava_hf", [str(out)], tmp_path / "back")
    assert store.read_recipe(back).model.branches["sight"].encoder.layer == -2


def test_weights_that_train_outside_of_an_adapter_are_not_lost(tmp_path: Path) -> None:
    """The file of LLaMA-Adapter has prompts and gates; a base that was trained too would stay behind."""
    made = make("llama_adapter_v1", tmp_path / "published")
    base = convert.import_checkpoint("llama_adapter_v1", made.words, tmp_path / "base", made.options)
    changes = ["groups.more={match: [llm.model.lm_head.weight], lr: 0.01}"]
    run = varied(base, changes, moved="llm.model.lm_head")
    refused(run, "llama_adapter_v1", tmp_path, "another model", "logits", "trained llm.model.lm_head.weight")
    convert.export_checkpoint(base, "llama_adapter_v1", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("blip2", ["channels=bgr"], "channels"),
        ("eva", ["mean=[0.1,0.2,0.3]"], "mean"),
        ("imagebind", ["mean=-4.0"], "mean: -4.0"),
    ],
)
def test_settings_of_an_encoder_that_is_exported_alone(kind: str, changes: list, word: str, tmp_path: Path) -> None:
    """Its file has no word for them; a run that holds it is exported and read back by the same kind."""
    made = make(kind, tmp_path / "published")
    part = convert.import_checkpoint(kind, made.words, tmp_path / "part", made.options)
    around(part, tmp_path / "base")
    convert.export_checkpoint(tmp_path / "base", kind, tmp_path / "good")
    run = varied(tmp_path / "base", [f"model.branches.one.encoder.{one}" for one in changes])
    refused(run, kind, tmp_path, word)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama_adapter_v2", ["model.branches.sight.encoder.project=false"], ["project: False (there True)"]),
        ("video_llama", [tuned(method="lora", r=4, target_modules="[q_proj]")[0]], ["hf_peft: lora"]),
    ],
)
def test_what_stands_in_the_way_is_named(kind: str, changes: list[str], words: list[str], tmp_path: Path) -> None:
    """Also where the file cannot even be read back."""
    made = make(kind, tmp_path / "published")
    base = convert.import_checkpoint(kind, made.words, tmp_path / "base", made.options, made.changes)
    more = ["groups.more={match: ['@hf_peft'], lr: 0.01}"] if "tuners" in changes[0] else []
    refused(varied(base, [*changes, *more], moved="llm."), kind, tmp_path, *words)


def test_one_setting_of_p2p_is_named_by_itself(tmp_path: Path) -> None:
    """`normalise` alone is a setting of its own; the data set, with its number of points, stays the same."""
    made = make("p2p", tmp_path / "published")
    part = convert.import_checkpoint("p2p", made.words, tmp_path / "part", made.options)
    run = varied(around(part, tmp_path / "base"), ["model.branches.one.encoder.normalise=false"])
    back = convert.importer("p2p").read_back(run, tmp_path, tmp_path)
    assert back[0].options["data"] == "modelnet40"


def test_a_run_that_gives_no_numbers_is_told_apart(llava: Path, tmp_path: Path) -> None:
    run = varied(llava)
    run.model.branches["sight"].connector.layers[1].bias.fill_(3e38)
    run.model.branches["sight"].connector.layers[0].bias.fill_(3e38)
    refused(run, "llava_hf", tmp_path, "of the run itself are not finite")
