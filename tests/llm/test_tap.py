"""What comes out of the layers is told to whoever asks, for one call."""

import pytest
import torch

from mmtune.errors import ModelError
from tests.llm import tiny


@pytest.fixture
def llm(tmp_path):
    return tiny.llm(tmp_path / "llm")


def read(llm, tap=None, length=6):
    ids = torch.arange(30, 30 + length)[None]
    return llm.forward(llm.embed(ids), torch.arange(length)[None], None, tap=tap)


def test_it_is_told_the_hidden_states_of_transformers(llm):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(llm.folder, attn_implementation="eager").eval()
    told = {}
    with torch.no_grad():
        hidden = read(llm, told.__setitem__)
        states = reference(input_ids=torch.arange(30, 36)[None], output_hidden_states=True).hidden_states
    assert sorted(told) == [0, 1]
    torch.testing.assert_close(told[0], states[1], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(hidden, states[2], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(llm.model.model.norm(told[1]), hidden)


def test_it_is_told_once_where_layers_are_computed_again(llm):
    llm.checkpoint_activations()
    told = []
    read(llm, lambda layer, out: told.append(layer)).sum().backward()
    assert told == [0, 1]


def test_nothing_is_left_where_one_raises(llm):
    def refuse(layer, out):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        read(llm, refuse)
    assert not any(layer._forward_hooks for layer in llm.layers())
    read(llm)


def test_a_gradient_goes_through_what_is_told(llm):
    told = {}
    read(llm, told.__setitem__)
    told[1].sum().backward()
    assert llm.model.get_input_embeddings().weight.grad.any()


def test_compiled_layers_are_refused_by_name(llm):
    for layer in llm.layers():
        layer.compile()
    with pytest.raises(ModelError, match="run.compile"):
        read(llm, lambda layer, out: None)
