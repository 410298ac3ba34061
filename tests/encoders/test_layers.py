"""Features of several layers of a tower lie side by side in every token; what has no layers says so by name."""

import pytest
import torch

from mmtune import config, registry, testing
from mmtune.errors import ConfigError, ModelError
from mmtune.testing.encoders import item
from tests.encoders import tiny

LAYERED = ["blip2_eva", "clip", "hf_audio", "hf_vision", "imagebind_audio", "imagebind_vision", "timm_vit"]
CHECKS = [check for check in testing.checks("encoders") if check.__name__ not in ("sampling", "prepare_repeats")]


def options(name, folder):
    """The smallest config of an encoder, for tokens that a layer has."""
    return {**tiny.TINY[name](folder), "tokens": "patches"}


@pytest.fixture(scope="module", params=LAYERED)
def tower(request, tmp_path_factory):
    return request.param, options(request.param, tmp_path_factory.mktemp(request.param) / "weights")


@torch.no_grad()
def tokens(encoder):
    x = item(encoder, 2)[None]
    return encoder(x, torch.ones(x.shape[:2], dtype=torch.bool)).tokens


def test_layers_lie_side_by_side_in_the_order_asked_for(tower):
    name, tree = tower
    one, two, both = (testing.make("encoders", name, {**tree, "layers": layers}) for layers in ([-1], [-2], [-1, -2]))
    assert (both.shape.layers, both.shape.layer_width, both.width) == (2, one.width, 2 * one.width)
    assert (both.grid, both.tokens_per_frame) == (one.grid, one.tokens_per_frame)
    seen = tokens(both)
    assert torch.equal(seen, torch.cat([tokens(one), tokens(two)], -1))
    assert not torch.allclose(tokens(one), tokens(two)), "two layers say the same"
    turned = testing.make("encoders", name, {**tree, "layers": [-2, -1]})
    assert torch.equal(tokens(turned), torch.cat([tokens(two), tokens(one)], -1))
    assert len({encoder.fingerprint() for encoder in (one, two, both, turned)}) == 4


def test_one_layer_is_what_it_was(tower):
    """A recipe without `layers` is written without it, and stored features are found by the same key."""
    name, tree = tower
    plain = testing.make("encoders", name, tree)
    assert "layers" not in plain.config.model_dump(mode="json")
    assert plain.shape.layers == 1
    layer = plain.config.model_dump().get("layer", -1)
    torch.testing.assert_close(tokens(testing.make("encoders", name, {**tree, "layers": [layer]})), tokens(plain))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_several_layers_keep_the_contract(tower, check):
    name, tree = tower
    check(testing.make("encoders", name, {**tree, "layers": [0, -1]}))


def test_what_has_no_layers_says_so(tower):
    name, tree = tower
    whole = "queries" if name == "blip2_eva" else "pooled"
    for wrong, told in (({"tokens": whole, "layers": [-1]}, whole), ({"layers": [-1, -1]}, "twice")):
        with pytest.raises(ConfigError, match=told):
            testing.make("encoders", name, {**tree, **wrong})
    with pytest.raises(ConfigError):
        testing.make("encoders", name, {**tree, "layers": []})
    for wrong in ([-1, 40], [-1, -40]):
        with pytest.raises(ModelError, match="40"):
            testing.make("encoders", name, {**tree, "layers": wrong})


def test_a_block_by_two_numbers_is_one_block(tmp_path):
    with pytest.raises(ModelError, match=r"\[-1, 1\]"):
        testing.make("encoders", "clip", {**options("clip", tmp_path / "w"), "layers": [-1, 1]})


def test_stages_of_several_sizes_are_refused(tmp_path):
    folder = tiny.sound_folder(tmp_path / "clap", "clap")
    with pytest.raises(ConfigError, match="clap_audio_model"):
        testing.make("encoders", "hf_audio", {"weights": str(folder), "layers": [0, -1]})
    stages = {"model": "resnet10t", "tokens": "patches", "norm": False, "size": None}
    with pytest.raises(ConfigError, match=r"\(11, 11\) and \(6, 6\)"):
        testing.make("encoders", "timm_vit", {**stages, "layers": [-2, -1]})


@pytest.mark.parametrize("kind", ["ast", "whisper"])
def test_sound_towers_norm_each_layer_as_the_last(kind, tmp_path):
    tree = {"weights": str(tiny.sound_folder(tmp_path / kind, kind))}
    last = testing.make("encoders", "hf_audio", tree)
    both = testing.make("encoders", "hf_audio", {**tree, "layers": [0, -1]})
    torch.testing.assert_close(tokens(both)[..., last.width :], tokens(last))


@pytest.mark.parametrize(("name", "inside"), [("anyres", "encoder"), ("p2p_points", "image")])
def test_an_encoder_around_another_hands_its_layers_on(name, inside, tmp_path):
    tree = tiny.TINY[name](tmp_path / "w")
    with pytest.raises(ConfigError, match="layers"):
        testing.make("encoders", name, {**tree, "layers": [0, -1]})
    encoder = testing.make("encoders", name, {**tree, inside: {**tree[inside], "layers": [0, -1]}})
    plain = testing.make("encoders", name, tree)
    assert encoder.shape.layers == 2
    assert encoder.shape.layer_width == plain.width - plain.extra
    for check in (testing.encoders.shapes, testing.encoders.a_masked_frame_changes_nothing):
        check(encoder)


def test_tiles_of_several_layers_reach_the_language_model(tmp_path):
    """The connector `anyres` reads the marks behind all layers."""
    tree = tiny.TINY["anyres"](tmp_path / "w")
    encoder = testing.make("encoders", "anyres", {**tree, "encoder": {**tree["encoder"], "layers": [0, -1]}})
    found = registry.find("connectors", "anyres")
    connector = found(config.validate(found.Config, {"name": "anyres"}), encoder.shape, 16)
    assert connector.shape.width == encoder.shape.layers * encoder.shape.layer_width
    x = item(encoder, 1)[None]
    out = connector(encoder(x, torch.ones(x.shape[:2], dtype=torch.bool)))
    assert out.tokens.shape[-1] == 16 and out.mask.all()


def test_a_shape_whose_layers_do_not_fit_is_refused():
    from mmtune.errors import ShapeError
    from mmtune.types import FeatureShape

    assert FeatureShape(8, 4, layers=3, extra=2).layer_width == 2
    for wrong in ({"layers": 3}, {"layers": 0}, {"extra": 8}, {"extra": -1}):
        with pytest.raises(ShapeError):
            FeatureShape(8, 4, **wrong)
