"""Folders in, strict loading, meta device, sites, refusals."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune import config, registry
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.llm.hf import HF, Config
from tests.llm import tiny


def test_is_an_entry():
    assert registry.find("llm", "hf") is HF


def test_what_it_says_of_itself(tmp_path):
    llm = tiny.llm(tmp_path)
    assert (llm.width, llm.depth, llm.heads) == (32, 2, 4)
    assert [site.layer_idx for site in llm.attention_modules()] == [0, 1]
    assert [name for name, module in llm.named_modules() if module in llm.attention_modules()] == [
        "model.model.layers.0.self_attn",
        "model.model.layers.1.self_attn",
    ]
    assert llm.head(torch.zeros(3, 5, 32)).shape == (3, 5, llm.model.config.vocab_size)


def test_meta_needs_no_weights(tmp_path):
    folder = tiny.folder(tmp_path, weights=False)
    with torch.device("meta"):
        llm = HF(Config(folder=str(folder)))
    assert all(parameter.is_meta for parameter in llm.parameters())
    llm.load_weights()  # a config without weights: random, by its seed
    assert not any(tensor.is_meta for tensor in [*llm.parameters(), *llm.buffers()])
    again = HF(Config(folder=str(folder)))
    for one, other in zip(llm.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    other = HF(Config(folder=str(folder), seed=1))
    assert not torch.equal(next(other.parameters()), next(llm.parameters()))


def test_building_draws_nothing_from_the_common_generator(tmp_path):
    folder = tiny.folder(tmp_path, weights=False)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    HF(Config(folder=str(folder)))
    assert torch.equal(torch.rand(2), expected)


def test_loading_is_strict_and_lists_everything(tmp_path):
    folder = tiny.folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.stranger.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing model.norm.weight") as caught:
        HF(Config(folder=str(folder))).load_weights()
    assert "stranger" in str(caught.value)


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny.folder(tmp_path, weights=False)
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="pickled"):
        HF(Config(folder=str(folder))).load_weights()


def test_code_of_a_folder_is_not_run(tmp_path):
    import json

    folder = tiny.folder(tmp_path, weights=False)
    tree = json.loads((folder / "config.json").read_text())
    tree.update(model_type="unheard_of", auto_map={"AutoConfig": "evil.Evil"})
    (folder / "config.json").write_text(json.dumps(tree))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError):
        HF(Config(folder=str(folder)))


@pytest.mark.parametrize("tree", [{}, {"folder": "a", "repo": "b"}, {"folder": "a", "revision": "main"}])
def test_one_source(tree):
    with pytest.raises(ConfigError):
        config.validate(Config, {"name": "hf", **tree})


def test_missing_folder_speaks(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HF(Config(folder=str(tmp_path)))


def test_too_small_an_embedding_is_refused(tmp_path):
    folder = tiny.folder(tmp_path, weights=False, vocab_size=100)
    with pytest.raises(ModelError, match="100 of the model"):
        HF(Config(folder=str(folder)))


def test_logits_changed_after_the_head_are_refused(tmp_path):
    folder = tiny.folder(tmp_path, weights=False, final_logit_softcapping=30.0)
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        HF(Config(folder=str(folder)))


def test_bfloat16(tmp_path):
    llm = HF(Config(folder=str(tiny.folder(tmp_path)), dtype="bfloat16"))
    llm.load_weights()
    assert {parameter.dtype for parameter in llm.parameters()} == {torch.bfloat16}
    out = llm.forward(llm.embed(torch.tensor([[30, 31]])), torch.tensor([[0, 1]]), None)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_tied_embeddings_load(tmp_path):
    llm = tiny.llm(tmp_path, tie_word_embeddings=True)
    assert llm.model.lm_head.weight is llm.model.model.embed_tokens.weight


def test_built_on_meta_first_of_all_it_leaves_other_libraries_alone(tmp_path):
    """In a process of its own: a library that is imported meanwhile must not make its constants on the meta device."""
    code = """
import sys, torch
from mmtune.llm.hf import HF, Config
with torch.device("meta"):
    HF(Config(folder=sys.argv[1]))
from torchaudio.compliance import kaldi
print(kaldi.fbank(torch.zeros(1, 800)).shape[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny.folder(tmp_path, weights=False))], capture_output=True, text=True
    )
    assert done.stdout.strip() == "3", done.stderr
