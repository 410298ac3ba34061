"""BLIP-2's eye: the tower against formulas written out plainly, how far it goes, and what it reads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune.encoders.blip2_eva import Blip2Eva, Config
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.types import Media
from tests.encoders.tiny import BLIP2, blip2_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("eye")
    blip2_folder(path)
    return path


def made(folder=None, **changes):
    eye = Blip2Eva(Config(**{**BLIP2, "weights": folder and str(folder), **changes}))
    eye.load_weights()
    return eye


def see(eye, x):
    with torch.no_grad():
        return eye(x[:, None], torch.ones(len(x), 1, dtype=torch.bool)).tokens[:, 0]


def norm(state, name, x, epsilon):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def tower(state, image, patch, depth, heads):
    """One picture through the tower, patch by patch and head by head: [3,height,width] -> [1+N,E]"""
    rows = []
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            cut = image[:, top : top + patch, left : left + patch].flatten()
            rows.append(state["vit.patch_embed.proj.weight"].flatten(1) @ cut + state["vit.patch_embed.proj.bias"])
    x = torch.stack([state["vit.cls_token"][0, 0], *rows]) + state["vit.pos_embed"][0]
    size = x.shape[1] // heads
    for n in range(depth):
        name = f"vit.blocks.{n}"
        y = norm(state, f"{name}.norm1", x, 1e-6)
        query, key, value = (y @ state[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        query, value = query + state[f"{name}.attn.q_bias"], value + state[f"{name}.attn.v_bias"]
        seen = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            seen.append((size**-0.5 * query[:, part] @ key[:, part].T).softmax(-1) @ value[:, part])
        x = x + torch.cat(seen, -1) @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
        y = norm(state, f"{name}.norm2", x, 1e-6) @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
    return x


def test_the_tower_by_hand(folder):
    eye, x = made(folder, tokens="all"), torch.randn(2, 3, 16, 16)
    state = load_file(folder / "model.safetensors")
    want = torch.stack([tower(state, image, 8, 2, 2) for image in x])
    with torch.no_grad():
        torch.testing.assert_close(eye.tower.vit(x), want, rtol=1e-5, atol=1e-5)
    want = norm(state, "ln_vision", want, 1e-5)
    torch.testing.assert_close(see(eye, x), want, rtol=1e-5, atol=1e-5)
    bare = made(folder, tokens="patches", norm=False)
    with torch.no_grad():
        torch.testing.assert_close(see(bare, x), eye.tower.vit(x)[:, 1:])
    assert bare.grid == (2, 2) and eye.grid is None


def test_the_queries_read_all_tokens_after_the_norm(folder):
    eye, whole, x = made(folder), made(folder, tokens="all"), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        want = eye.tower.qformer(eye.tower.query_tokens, see(whole, x))
    torch.testing.assert_close(see(eye, x), want)
    assert (eye.tokens_per_frame, eye.width, eye.grid) == (3, 8, None)


def test_frozen_means_without_dropout(folder):
    eye, x = made(folder).train(), torch.randn(1, 3, 16, 16)
    assert torch.equal(see(eye, x), see(eye, x))
    assert not any(module.training for module in eye.modules())


def test_another_size_interpolates_the_positions(folder):
    eye, large = made(folder, tokens="patches"), made(folder, tokens="patches", size=32)
    assert large.grid == (4, 4)
    small_table, table = eye.tower.vit.pos_embed[0], large.tower.vit.pos_embed[0]
    assert torch.equal(table[0], small_table[0])
    want = torch.nn.functional.interpolate(
        small_table[1:].T.reshape(1, -1, 2, 2), size=(4, 4), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(table[1:], want[0].flatten(1).T)
    with pytest.raises(ModelError, match="6 rows"):
        large.resized(torch.zeros(1, 6, 12))


def test_what_is_not_built_is_not_read(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"vit", "ln_vision", "query_tokens", "qformer"}
    names = set(made(folder, tokens="patches", norm=False).tower.state_dict())
    assert names == {name for name in tensors if name.startswith("vit.")}
    save_file({name: t for name, t in tensors.items() if name != "query_tokens"}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="missing query_tokens"):
        made(tmp_path / "a.safetensors")
    assert made(tmp_path / "a.safetensors", tokens="all").tokens_per_frame == 5


def test_frames_are_stretched_and_normalised(folder):
    eye = made(folder, frames=4, rule="video_llama")
    frames = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(eye.prepare(Media("video", frames)), (frames / 255 - mean) / std)
    wide = torch.zeros(1, 3, 20, 60, dtype=torch.uint8)
    wide[..., 30:] = 255
    out = eye.prepare(Media("image", wide))
    assert out.shape == (1, 3, 16, 16) and (out[..., 0] < 0).all() and (out[..., -1] > 0).all()
    assert eye.sampling("video").rule == "video_llama" and eye.sampling("video").frames == 4


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"norm": False}, "norm: false"),
        ({"size": 20}, "`size`: 20"),
        ({"trained_size": 20}, "`trained_size`"),
        ({"vit_heads": 5}, "`vit_heads`: 12"),
    ],
)
def test_mistakes_speak(changes, word):
    with pytest.raises(ConfigError, match=word):
        made(**changes)


def test_full_size():
    with torch.device("meta"):
        eye = Blip2Eva(Config())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in eye.tower.named_children()}
    layer = 4 * (768 * 768 + 768) + 2 * 768 + 2 * 768 * 3072 + 3072 + 768 + 2 * 768
    looks = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    assert count["qformer"] == 12 * layer + 6 * looks + 2 * 768
    assert round(count["vit"] / 1e5) == 9859 and round(count["qformer"] / 1e5) == 1051
    assert eye.tower.vit.blocks[0].mlp.fc1.out_features == int(1408 * 4.3637) == 6144
    assert (eye.tokens_per_frame, eye.width) == (32, 768)
