"""Learned text before the text: the same numbers as peft's own wrapper, also packed and with a cache."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from mmtune import config
from mmtune.errors import ModelError
from mmtune.tuners.hf_peft import Config, HfPeft
from tests.llm import tiny

METHODS = {
    "prompt_tuning": (peft.PromptTuningConfig, {}),
    "p_tuning": (peft.PromptEncoderConfig, {"encoder_hidden_size": 12}),
    "prefix_tuning": (peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 12}),
}
LENGTH = 3


def tuned(path, method, kind="llama"):
    llm = tiny.llm(path, kind).requires_grad_(False)
    tree = {"name": "hf_peft", "method": method, "num_virtual_tokens": LENGTH, **METHODS[method][1]}
    torch.manual_seed(0)
    names = HfPeft(config.validate(Config, tree)).apply(llm)
    return llm.eval(), names


def read(llm, ids, positions=None, segments=None, cache=None, start=0):
    positions = torch.arange(start, start + ids.shape[1]).expand_as(ids) if positions is None else positions
    return llm.head(llm.forward(llm.embed(ids), positions, segments, cache))


IDS = torch.arange(30, 39)[None]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_of_peft_itself(tmp_path, method, kind):
    llm, _ = tuned(tmp_path, method, kind)
    build, options = METHODS[method]
    peft_config = build(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, **options)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), peft_config).eval()
    model.prompt_encoder["default"].load_state_dict(llm.prefix.encoder.state_dict())
    want = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(read(llm, IDS), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_packed_and_cached_equal_alone(tmp_path, method):
    llm, _ = tuned(tmp_path, method)
    alone, short = read(llm, IDS), read(llm, IDS[:, :5])
    packed = torch.cat([IDS, IDS[:, :5], IDS[:, :2] * 0], 1)
    positions = torch.cat([torch.arange(9), torch.arange(5), torch.arange(2)])[None]
    segments = torch.tensor([[1] * 9 + [2] * 5 + [0] * 2], dtype=torch.int32)
    got = read(llm, packed, positions, segments)
    torch.testing.assert_close(got[:, :9], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[:, 9:14], short, rtol=1e-4, atol=1e-4)
    cache = llm.new_cache()
    steps = [read(llm, IDS[:, :4], cache=cache)]
    steps += [read(llm, IDS[:, t : t + 1], cache=cache, start=t) for t in range(4, 9)]
    torch.testing.assert_close(torch.cat(steps, 1), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_all_of_it_learns_and_nothing_else(tmp_path, method):
    llm, names = tuned(tmp_path, method)
    parameters = dict(llm.named_parameters())
    assert names == [name for name in parameters if name.startswith("prefix.")]
    for name in names:
        parameters[name].requires_grad_(True)
    read(llm, IDS).logsumexp(-1).sum().backward()
    assert [name for name in names if not parameters[name].grad.any()] == []
    assert all(p.grad is None for name, p in parameters.items() if name not in names)


def test_one_text_before_the_text(tmp_path):
    llm, _ = tuned(tmp_path, "prompt_tuning")
    with pytest.raises(ModelError, match="p_tuning"):
        HfPeft(Config(method="p_tuning", num_virtual_tokens=2)).apply(llm)
