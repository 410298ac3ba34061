"""Encode, connect, fuse, read: who has gradients, blank items, the loss against a plain one, modes, building."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mmtune import media
from mmtune import model as model_module
from mmtune.collate import collate
from mmtune.connectors import anyres, mlp
from mmtune.errors import ConfigError, ModelError
from mmtune.fusion import tokens as fusion_tokens
from mmtune.llm.hf import Config as HFConfig
from mmtune.model import Branch, MultimodalModel, build
from mmtune.processor import Processor
from mmtune.prompt import Template
from mmtune.tuners.hf_peft import Config as PeftConfig
from mmtune.types import IGNORE, Sample, Turn
from tests import toys
from tests.llm import tiny
from tests.losses import cross_entropy
from tests.toys import clip, picture


@pytest.fixture(autouse=True)
def _loading(monkeypatch):
    monkeypatch.setattr(media, "load", toys.fake_load, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("llm"))


def section(folder, tuners=(), branches=None):
    sight = SimpleNamespace(
        encoder=toys.ColourConfig(name="tests.toys:Colours"),
        connector=toys.FlatConfig(name="tests.toys:Flat"),
        kinds=None,
    )
    sound = SimpleNamespace(
        encoder=toys.ColourConfig(name="tests.toys:Tones"),
        connector=toys.FlatConfig(name="tests.toys:Flat"),
        kinds=None,
    )
    return SimpleNamespace(
        branches={"sight": sight, "sound": sound} if branches is None else branches,
        llm=HFConfig(folder=str(folder)),
        fusion=fusion_tokens.Config(),
        tuners=list(tuners),
    )


def make(folder, *tuners):
    torch.manual_seed(0)
    return build(section(folder, tuners))


TEMPLATE = {
    "begin": "<|bos|>",
    "user": {"before": "<|user|>", "after": "<|end|>"},
    "assistant": {"before": "<|assistant|>", "after": "<|end|>"},
    "stop": ["<|end|>"],
    "media": dict.fromkeys(("image", "video", "audio"), ("<|media|>", "<|/media|>")),
}


def processor(model):
    return Processor(model.branches, model.llm.tokenizer, Template.model_validate(TEMPLATE))


def sample(*parts, answer="a red circle", name="s"):
    return Sample(name, (Turn("user", parts), Turn("assistant", (answer,))))


def batch(model, *samples):
    one = processor(model)
    return collate([[one.example(each)] for each in samples], model.llm.tokenizer.pad, multiple=1)


MIXED = (sample(picture(), "what is this"), sample("how", answer="two"), sample(clip(3), "now", answer="a blue square"))


def test_names(folder):
    names = {name.split(".")[0] for name, _ in make(folder).named_parameters()}
    assert names == {"branches", "llm"}
    assert "branches.sight.encoder.mix.weight" in dict(make(folder).named_parameters())
    assert "branches.sound.connector.matrix.weight" in dict(make(folder).named_parameters())


def test_only_connectors_are_open_after_building(folder):
    opened = [name for name, p in make(folder).named_parameters() if p.requires_grad]
    assert opened == [f"branches.{b}.connector.matrix.{w}" for b in ("sight", "sound") for w in ("weight", "bias")]


def test_loss_is_the_plain_sum_over_labels(folder):
    model = make(folder)
    given = batch(model, *MIXED)
    loss, count = cross_entropy(model, given)
    logits = model.llm.head(model(given))
    plain = F.cross_entropy(logits.flatten(0, 1), given.labels.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, plain)
    assert count == int((given.labels != IGNORE).sum()) and loss.dtype == torch.float32


def test_loss_of_a_batch_is_the_sum_of_its_samples(folder):
    """Padding, and items of unequal length, change nothing."""
    model = make(folder)
    together, count = cross_entropy(model, batch(model, *MIXED))
    alone = [cross_entropy(model, batch(model, each)) for each in MIXED]
    torch.testing.assert_close(together, sum(loss for loss, _ in alone), atol=1e-4, rtol=1e-5)
    assert count == sum(n for _, n in alone)


def test_loss_in_pieces_is_the_same_with_the_same_gradients(folder, monkeypatch):
    model = make(folder)
    given = batch(model, *MIXED)
    whole, _ = cross_entropy(model, given)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(model_module, "LOGITS", 4 * model.llm.tokenizer.vocabulary)
    pieces, _ = cross_entropy(model, given)
    pieces.backward()
    torch.testing.assert_close(pieces, whole)
    assert expected
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_gradients_reach_connectors_and_nothing_frozen(folder):
    model = make(folder)
    cross_entropy(model, batch(model, *MIXED))[0].backward()
    assert model.branches["sight"].connector.matrix.weight.grad.abs().max() > 0
    assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)


def test_a_frozen_encoder_keeps_no_graph_and_an_opened_one_does(folder):
    model = make(folder)
    given = batch(model, *MIXED)
    assert not model.encode(given)["sight"].tokens.requires_grad
    model.branches["sight"].encoder.mix.requires_grad_(True)
    cross_entropy(model, given)[0].backward()
    assert model.branches["sight"].encoder.mix.weight.grad.abs().max() > 0


def test_a_branch_without_items_takes_part_with_zero(folder):
    model = make(folder)
    model.branches["sound"].encoder.mix.requires_grad_(True)
    given = batch(model, sample("how", answer="two"))
    loss, _ = cross_entropy(model, given)
    loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and not p.grad.any(), name
    with torch.no_grad():
        assert torch.equal(cross_entropy(model, given)[0], loss.detach())


def test_a_frozen_branch_without_items_is_not_run(folder):
    model = make(folder)
    model.branches["sound"].requires_grad_(False)
    assert set(model.connect(model.encode(batch(model, sample(picture(), "how"))))) == {"sight"}
    with torch.no_grad():
        assert not model.connect({})


def test_encoders_never_leave_eval_mode_and_frozen_dropout_sleeps(folder):
    model = make(folder, PeftConfig(method="lora", r=2, target_modules=["q_proj"], lora_dropout=0.5)).train()
    awake = {name for name, module in model.named_modules() if module.training}
    assert {"branches.sight.connector.drop", "branches.sight.connector.matrix"} <= awake
    assert any("lora_dropout" in name for name in awake)
    assert not any("encoder" in name or name.endswith("self_attn") or "base_layer" in name for name in awake)
    model.branches["sight"].requires_grad_(False)
    model.train()
    assert not model.branches["sight"].connector.drop.training
    assert not any(module.training for module in model.eval().modules())


def test_stored_features_pass_the_encoder_by(folder):
    model = make(folder).eval()
    given = batch(model, *MIXED)
    with torch.no_grad():
        expected = model(given)
        features = model.encode(given)
        given.media = {name: f.tokens for name, f in features.items()}
        model.branches["sight"].cached = True
        model.branches["sight"].encoder.mix.weight.fill_(float("nan"))
        assert torch.equal(model(given), expected)
        given.media = {"sight": given.media["sight"].half()}
        torch.testing.assert_close(model(given), expected, atol=1e-1, rtol=1e-1)


def test_features_of_another_shape_are_refused(folder):
    model = make(folder)
    model.branches["sight"].cached = True
    given = batch(model, *MIXED)
    given.media = {"sight": torch.zeros(2, 3, 5, 3)}
    with pytest.raises(ModelError, match=r"\[2, 3, 5, 3\]"):
        model.encode(given)


def test_items_of_a_strange_branch_are_refused(folder):
    model = make(folder)
    given = batch(model, sample(picture(), "what"))
    for table in (given.media, given.frame_mask, given.slots):
        table["smell"] = table.pop("sight")
    with pytest.raises(ModelError, match="smell"):
        model(given)


def test_kinds_that_the_encoder_does_not_take_are_refused():
    pair = toys.Pair()
    with pytest.raises(ConfigError, match="audio.*image, video"):
        Branch(pair.encoder, pair.connector, ("image", "audio"))


def test_builds_on_meta_with_the_same_names(folder):
    lora = PeftConfig(method="lora", r=2, target_modules=["q_proj", "v_proj"])
    real, meta = make(folder, lora), build(section(folder, [lora]), device="meta")
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in meta.named_parameters()}
    assert all(p.is_meta for p in meta.parameters())


def test_without_weights_nothing_is_read(folder, monkeypatch):
    monkeypatch.setattr("mmtune.llm.hf.HF.load_weights", None)
    assert not any(p.is_meta for p in build(section(folder), weights=False).parameters())


def test_loaded_weights_are_those_of_the_folder(folder):
    reference = tiny.llm(folder.parent / "again")
    for (name, one), other in zip(make(folder).llm.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tuned_names_hold_after_a_second_tuner_and_all_stay_open(folder):
    first = PeftConfig(method="ln_tuning", target_modules=["input_layernorm"])
    second = PeftConfig(method="lora", r=2, target_modules=["q_proj"], adapter="two")
    model = make(folder, first, second)
    names = model.tuned["hf_peft"]
    parameters = dict(model.named_parameters())
    assert len(names) == len(set(names)) and all(parameters[name].requires_grad for name in names)
    assert set(names) == {n for n, p in model.llm.named_parameters(prefix="llm") if p.requires_grad}
    assert any("ln_tuning" in name for name in names) and any("lora" in name for name in names)


def test_a_model_without_branches_reads_text(folder):
    model = build(section(folder, branches={}))
    loss, count = cross_entropy(model, batch(model, sample("how", answer="two")))
    assert loss.isfinite() and count > 0 and isinstance(model, MultimodalModel)


def test_no_labels_give_zero_that_can_be_differentiated(folder):
    model = make(folder)
    given = batch(model, *MIXED)
    given.labels.fill_(IGNORE)
    loss, count = cross_entropy(model, given)
    loss.backward()
    assert count == 0 and loss.item() == 0


def test_a_connector_of_tiles_behind_another_encoder_is_refused(folder):
    encoder = toys.ColourConfig(name="tests.toys:Colours")
    sight = SimpleNamespace(encoder=encoder, connector=anyres.Config(hidden=8), kinds=None)
    with pytest.raises(ConfigError, match="connector anyres behind the encoder tests.toys:Colours"):
        build(section(folder, branches={"sight": sight}), device="meta")


def test_a_connector_starts_at_the_scale_of_the_words(folder):
    """`match_scale` is told the root mean square of the word embeddings when the model is built."""
    sight = SimpleNamespace(
        encoder=toys.ColourConfig(name="tests.toys:Colours"),
        connector=mlp.Config(hidden=8, out_norm=True, match_scale=True),
        kinds=None,
    )
    model = build(section(folder, branches={"sight": sight}))
    ids = torch.arange(model.llm.tokenizer.vocabulary)
    rms = float(model.llm.embed(ids).square().mean().sqrt())
    assert rms != pytest.approx(1.0, rel=0.1), "or the test would see nothing"
    assert float(model.branches["sight"].connector.scale.gain) == pytest.approx(rms, rel=0.02)


def test_a_build_is_the_same_whatever_was_drawn_before_and_whatever_is_built_beside(folder):
    """An encoder that draws its weights without a seed trains, and its run finds the same encoder again."""

    def built(state, **more):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = build(section(folder, **more), seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        return model.state_dict()

    one, two = built(1), built(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    beside = built(3, tuners=[PeftConfig(method="lora", r=2, target_modules=["q_proj"])])
    alone = built(4, branches={"sound": section(folder).branches["sound"]})
    for name in (name for name in one if ".encoder." in name):
        assert torch.equal(one[name], beside[name]) and torch.equal(one[name], alone.get(name, one[name])), name
    assert not torch.equal(
        build(section(folder), seed=6).state_dict()["branches.sight.connector.matrix.weight"],
        one["branches.sight.connector.matrix.weight"],
    )
