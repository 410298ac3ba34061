"""Clouds become pictures as published or as an eye would see them, and the canvas trains in front of a frozen tower."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmtune import config
from mmtune.encoders.p2p_points import Config, P2PPoints
from mmtune.errors import CheckpointError, ConfigError, MediaError, Reason
from mmtune.layers import clouds
from mmtune.types import Media
from tests.encoders.tiny import p2p


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return p2p(tmp_path_factory.mktemp("p2p"))


def made(base, **options):
    encoder = P2PPoints(config.validate(Config, {**base, **options}))
    encoder.load_weights()
    return encoder


def cloud(count=100, seed=0, columns=()):
    g = torch.Generator().manual_seed(seed)
    return Media("points", torch.rand(count, max(3, len(columns)), generator=g), origin="made", columns=columns)


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[None], torch.ones(1, len(x), dtype=torch.bool)).tokens[0]


def test_a_prepared_cloud_is_itself_and_its_views(base):
    encoder = made(base, views="validation")
    x = encoder.prepare(cloud())
    assert x.shape == (8, 64, 6)
    for view in range(8):
        turned = x[view, :, :3] @ clouds.rotations(clouds.radians(clouds.VALIDATION))[view].float().T
        torch.testing.assert_close(x[view, :, 3:], turned)
    assert x[0, :, :3].norm(dim=-1).max() <= 1 + 1e-6
    assert run(encoder, x).shape == (8, 9, 24)


def test_axes_and_scale_of_the_published_clouds(base):
    points = cloud(64).data
    as_they_are = made(base, normalise=False).prepare(Media("points", points))[0, :, :3]
    want = points[:, [2, 0, 1]] * torch.tensor([-1.0, -1, 1])
    torch.testing.assert_close(as_they_are.sort(0).values, want.sort(0).values)
    scaled = made(base).prepare(Media("points", points * 50 + 3))[0, :, :3]
    centred = want - want.mean(0)
    want = centred / centred.norm(dim=1).max()
    torch.testing.assert_close(scaled.sort(0).values, want.sort(0).values, rtol=1e-4, atol=1e-5)


def test_small_clouds_repeat_and_large_ones_are_thinned(base):
    small = made(base).prepare(cloud(10))[0]
    assert small.shape == (64, 6) and len({tuple(p) for p in small.tolist()}) == 10
    large = made(base, pool=80).prepare(cloud(5000))[0]
    assert len({tuple(p) for p in large.tolist()}) == 64


def test_random_views_only_where_asked_for_and_with_a_seed(base):
    plain, random = made(base), made(base, train_views=2)
    rng = lambda: np.random.default_rng(1)  # noqa: E731
    assert torch.equal(plain.prepare(cloud(), rng()), plain.prepare(cloud()))
    one, two = random.prepare(cloud(), rng()), random.prepare(cloud(), np.random.default_rng(2))
    assert one.shape == (2, 64, 6) and not torch.equal(one, two)
    assert torch.equal(one, random.prepare(cloud(), rng()))
    assert torch.equal(random.prepare(cloud()), plain.prepare(cloud()))
    assert random.max_frames == 2


@pytest.mark.parametrize("view", ["front", "validation"])
def test_a_cloud_without_extent_is_refused_by_name(base, view):
    flat = Media("points", torch.ones(30, 3), origin="one spot")
    with pytest.raises(MediaError, match="one spot") as error:
        made(base, views=view).prepare(flat)
    assert error.value.reason == Reason.unreadable_points


def test_the_picture_has_the_towers_own_statistics(base):
    encoder = made(base)
    seen = []
    encoder.draw.register_forward_hook(lambda module, given, out: seen.append(out))
    picture = encoder.pictures(encoder.prepare(cloud()))
    assert seen[0].min() >= 0 and seen[0].max() <= 1
    torch.testing.assert_close(picture * 0.25 + 0.5, seen[0])


def test_plain_colouring_has_no_parameters_of_its_own_and_shows_colours(base):
    options = {"colouring": "plain", "extent": 1.0, "normalise": False, "object": None, "fine": 1, "views": "front"}
    encoder = made(base, **options)
    assert encoder.draw is None
    assert all(name.startswith("image.") for name in encoder.state_dict())
    names = ("x", "y", "z", "red", "green", "blue")
    spots = torch.tensor([[0.9, 0.9, 0, 1, 0, 0], [-0.9, -0.9, 0, 0, 0, 1], [-0.9, -0.9, 0.5, 0, 1, 0]])
    picture = encoder.prepare(Media("points", spots, columns=names))[0] * 0.25 + 0.5
    assert picture.shape == (3, 24, 24)
    torch.testing.assert_close(picture[:, 1, 22], torch.tensor([1.0, 0, 0]))  # right and up
    torch.testing.assert_close(picture[:, 22, 1], torch.tensor([0.0, 1, 0]))  # left and down, the nearer one
    torch.testing.assert_close(picture[:, 12, 12], torch.zeros(3))
    grey = encoder.prepare(Media("points", spots[:, :3]))[0] * 0.25 + 0.5
    torch.testing.assert_close(grey[:, 1, 22], torch.full((3,), 0.8))
    fitted = made(base, **{**options, "extent": None, "fine": 2}).prepare(Media("points", spots, columns=names))
    assert fitted.shape == (1, 3, 24, 24)


def test_the_canvas_learns_through_a_frozen_tower_whose_norms_may_train(base):
    encoder = made(base)
    encoder.requires_grad_(False)
    encoder.draw.requires_grad_(True)
    norms = [p for name, p in encoder.image.named_parameters() if "norm" in name]
    for parameter in norms:
        parameter.requires_grad_(True)
    x = torch.stack([encoder.prepare(cloud(seed=i)) for i in range(2)])
    encoder(x, torch.ones(2, 1, dtype=torch.bool)).tokens.square().sum().backward()
    opened = {id(p) for p in (*encoder.draw.parameters(), *norms)}
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in opened), name
    assert all(p.grad.abs().sum() > 0 for p in encoder.draw.parameters())


def test_weights_of_all_and_of_the_canvas_alone(base, tmp_path):
    encoder = made(base)
    torch.manual_seed(3)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    state = {name: t.clone() for name, t in encoder.state_dict().items()}
    whole, canvas = tmp_path / "whole.safetensors", tmp_path / "canvas.safetensors"
    save_file(state, whole)
    save_file({name: t for name, t in state.items() if name.startswith("draw.")}, canvas)
    image = {key: value for key, value in base["image"].items() if key != "weights"}
    image |= {"model": "vit_tiny_patch16_224", "size": 24}
    image |= {"args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}}
    again = made(base, weights=str(whole), image=image)
    assert all(torch.equal(t, state[name]) for name, t in again.state_dict().items())
    half = made(base, weights=str(canvas)).state_dict()
    assert all(torch.equal(t, state[name]) == name.startswith("draw.") for name, t in half.items() if t.numel() > 1)
    with pytest.raises(CheckpointError, match="image.tower"):
        made(base, weights=str(canvas), image=image)
    with pytest.raises(CheckpointError, match="unexpected"):
        made(base, weights=str(whole))


def test_what_does_not_fit_is_refused(base):
    with pytest.raises(ConfigError, match="object"):
        made(base, object=21)
    with pytest.raises(ConfigError, match="object"):
        made(base, object=26)
    with pytest.raises(ConfigError, match="`p2p_points`"):
        made(base, image={"name": "p2p_points", **base})
    with pytest.raises(ConfigError, match=r"image\.colour"):
        made(base, image={**base["image"], "colour": 1})


def test_the_schema_does_not_run_in_circles():
    assert "image" in config.schema(Config)["properties"]
