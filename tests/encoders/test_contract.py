"""Every encoder keeps the contract; a newcomer is tested by being there (and having a line in tiny.py)."""

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from mmtune import config, registry
from mmtune.errors import MediaError
from mmtune.types import Media
from tests.encoders.tiny import TINY

NAMES = registry.names("encoders")
Entry = config.entry("encoders")


class Holder(config.Config):
    encoder: Entry
    """The one under test."""


def media(kind: str, frames: int = 1, seed: int = 0) -> Media:
    """A small random item of a kind; a video's or sound's length grows with `frames`."""
    g = torch.Generator().manual_seed(seed)
    if kind in ("image", "video"):
        data = torch.randint(0, 256, (frames, 3, 30, 40), dtype=torch.uint8, generator=g)
        times = torch.arange(frames, dtype=torch.float64) if kind == "video" else None
        return Media(kind, data, times, origin="made")
    if kind == "audio":
        return Media(kind, torch.rand(1, 32000 * frames, generator=g) - 0.5, rate=16000, origin="made")
    return Media(kind, torch.randn(256, 6, generator=g), origin="made")


@pytest.fixture(scope="module", params=NAMES)
def encoder(request, tmp_path_factory):
    name = request.param
    assert name in TINY, f"encoder {name}: add its smallest config to tests/encoders/tiny.py"
    found = registry.find("encoders", name)
    tree = {"name": name, **TINY[name](tmp_path_factory.mktemp(name) / "weights")}
    torch.manual_seed(0)
    made = found(config.validate(Holder, {"encoder": tree}).encoder)
    made.load_weights()
    return made.eval()


def item(encoder, frames: int, seed: int = 0) -> torch.Tensor:
    """A prepared item with exactly `frames` frames."""
    kind = next(k for k in ("video", "audio", "image", "points") if k in encoder.kinds)
    one = [encoder.prepare(media(kind, 1 if kind in ("image", "points") else frames, seed + i)) for i in range(frames)]
    return torch.cat(one)[:frames]


@pytest.mark.parametrize("frames", [1, 3])
def test_shapes(encoder, frames):
    x = torch.stack([item(encoder, frames), item(encoder, frames, seed=9)])
    with torch.no_grad():
        out = encoder(x, torch.ones(2, frames, dtype=torch.bool))
    assert out.tokens.shape == (2, frames, encoder.tokens_per_frame, encoder.width)
    assert out.grid == encoder.grid
    assert encoder.max_frames >= 1
    assert torch.isfinite(out.tokens).all()
    assert not torch.allclose(out.tokens[0], out.tokens[1])


def test_a_masked_frame_changes_nothing(encoder):
    x = torch.stack([item(encoder, 3), item(encoder, 3, seed=9)])
    frames = torch.tensor([[True, True, True], [True, False, False]])
    other = x.clone()
    other[1, 1:] = torch.randn_like(other[1, 1:]) * 100
    with torch.no_grad():
        one, two = encoder(x, frames), encoder(other, frames)
        alone = encoder(x[1:, :1], frames[1:, :1])
    assert torch.equal(one.tokens[frames], two.tokens[frames])
    torch.testing.assert_close(one.tokens[1, :1], alone.tokens[0], rtol=1e-5, atol=1e-5)


def test_prepare_repeats_and_pickles(encoder):
    for kind in encoder.kinds:
        one = media(kind, 1 if kind in ("image", "points") else 2)
        first = encoder.prepare(one, np.random.default_rng(3))
        again = encoder.prepare(one, np.random.default_rng(3))
        assert torch.equal(first, again)
        assert torch.equal(encoder.prepare(one), encoder.prepare(one))
        assert torch.equal(pickle.loads(pickle.dumps(first)), first)
        assert first.shape[0] >= 1


def test_a_worker_can_carry_the_encoder(encoder):
    copy = pickle.loads(pickle.dumps(encoder))
    kind = encoder.kinds[0]
    assert torch.equal(copy.prepare(media(kind)), encoder.prepare(media(kind)))


def test_other_kinds_are_refused(encoder):
    for kind in {"image", "video", "audio", "points"} - set(encoder.kinds):
        with pytest.raises(MediaError, match=kind):
            encoder.prepare(media(kind))


def test_config_survives_yaml(encoder):
    text = config.dump({"encoder": encoder.config.model_dump(mode="json")})
    assert config.validate(Holder, config.parse(text, "test")).encoder == encoder.config


def test_fields_are_explained(encoder):
    unexplained = [name for name, field in type(encoder.config).model_fields.items() if not field.description]
    assert [name for name in unexplained if name != "name"] == []


def test_sampling(encoder):
    for kind in encoder.kinds:
        assert encoder.sampling(kind).frames >= 1


def test_builds_on_the_meta_device(encoder):
    with torch.device("meta"):
        twin = type(encoder)(encoder.config)
    assert twin.shape == encoder.shape
    assert all(p.is_meta for p in twin.parameters())


def test_random_weights_are_seeded(encoder):
    one = type(encoder)(encoder.config)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    two = type(encoder)(encoder.config)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fingerprint() == two.fingerprint()


def test_fingerprint_follows_the_weights(encoder):
    before = encoder.fingerprint()
    assert encoder.fingerprint() == before
    parameter = next(encoder.parameters())
    with torch.no_grad():
        kept = parameter.clone()
        parameter.add_(1)
        changed = encoder.fingerprint()
        parameter.copy_(kept)
    assert changed != before
    assert encoder.fingerprint() == before


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_package_speaks(name):
    """With a package hidden, asking for the encoder names the package; it is never a bare ImportError."""
    code = textwrap.dedent(f"""
        import sys
        from mmtune import registry
        from mmtune.errors import ModelError
        before = set(sys.modules)
        optional = ("open_clip", "timm", "transformers", "torchaudio")
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name in optional:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Hide())
        try:
            registry.find("encoders", {name!r})
            print("needs none")
        except ModelError as error:
            assert any(o in str(error) for o in optional) and "pip install" in str(error), error
            print("spoke")
    """)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
