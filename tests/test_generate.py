"""Cached decoding equals reading everything again; batches equal one by one; stops, draws, cancelling."""

import pytest
import torch

from mmtune import media
from mmtune.collate import collate
from mmtune.errors import UsageError
from mmtune.fusion.base import Fusion, FusionConfig
from mmtune.generate import Sampling, answer_batch, stream
from mmtune.types import Sample, Turn
from tests import toys
from tests.llm import tiny
from tests.test_model import make, processor
from tests.toys import clip, picture


@pytest.fixture(autouse=True)
def _loading(monkeypatch):
    monkeypatch.setattr(media, "load", toys.fake_load, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tiny.folder(tmp_path_factory.mktemp("llm"))).eval()


def ask(model, *parts):
    return processor(model).example(Sample("s", (Turn("user", parts),)), answer=True)


def questions(model):
    return [
        ask(model, picture(), "what is this"),
        ask(model, "how many things are there"),
        ask(model, clip(3), "now"),
        ask(model, "a"),
        ask(model, clip(4), "and", picture((0, 9, 200)), "what moves to the left"),
    ]


def naive(model, example, n, stops=()):
    """Greedy decoding that reads everything again for each token."""
    tokens, out = example.tokens, []
    for _ in range(n):
        longer = type(example)(example.id, tokens, torch.full_like(tokens, -100), example.slots, example.media)
        with torch.no_grad():
            token = int(model.llm.head(model(collate([[longer]], multiple=1))[0, -1]).argmax())
        if token in stops:
            break
        out.append(token)
        tokens = torch.cat([tokens, torch.tensor([token])])
    return out


def test_cached_decoding_equals_reading_anew(model):
    for example in questions(model):
        assert list(stream(model, example, (), max_tokens=12)) == naive(model, example, 12)


def test_media_matter(model):
    red, blue = ask(model, picture((255, 0, 0)), "what"), ask(model, picture((0, 0, 255)), "what")
    with torch.no_grad():
        assert (model(collate([[red]], multiple=1)) - model(collate([[blue]], multiple=1))).abs().max() > 1e-4


@pytest.mark.parametrize("size", [1, 2, 32])
def test_batches_equal_one_by_one(model, size):
    examples = questions(model)
    free = [naive(model, example, 10) for example in examples]
    stops = {free[0][4], free[3][1]}  # so that rows end at different times
    expected = [list(stream(model, example, stops, max_tokens=10)) for example in examples]
    assert expected == [naive(model, example, 10, stops) for example in examples]
    assert len({len(answer) for answer in expected}) > 1
    assert answer_batch(model, examples, stops, max_tokens=10, rows=size) == expected


def test_an_answer_ends_at_a_row_of_tokens(model):
    """The row is cut off, also where its beginning came before in vain; what only began is said after all."""
    examples = questions(model)
    free = naive(model, examples[0], 10)
    row = tuple(free[3:6])
    began = (*free[6:8], -1)
    first = next(n for n in range(len(free)) if tuple(free[n : n + 3]) == row)
    assert list(stream(model, examples[0], [row, began], max_tokens=10)) == free[:first]
    assert list(stream(model, examples[0], [began], max_tokens=8)) == free[:8]
    expected = [list(stream(model, example, [row, began], max_tokens=10)) for example in examples]
    assert answer_batch(model, examples, [row, began], max_tokens=10, rows=3) == expected


class Whisper(Fusion):
    """Media take no places: their mean is added to every token, in every call."""

    uses_placeholders = False

    def __init__(self):
        super().__init__(FusionConfig(name="toy"), 32, 2, 4)

    def forward(self, llm, batch, embeds, cache=None):
        x = llm.embed(batch.tokens)
        for name, given in embeds.items():
            mean = (given.tokens * given.mask[..., None]).sum(1) / given.mask.sum(1, keepdim=True)
            for item, (row, *_) in zip(mean, batch.slots[name].tolist(), strict=True):
                x = torch.cat([x[:row], x[row : row + 1] + item, x[row + 1 :]])
        return llm.forward(x, batch.positions, batch.segments, cache)


def test_media_without_places_stay_with_their_rows(model, tmp_path):
    other = make(tiny.folder(tmp_path)).eval()
    other.fusion = Whisper()
    one = processor(other)
    one.uses_placeholders = False
    asked = ((picture(), "what is this"), ("how many",), (clip(3, (0, 255, 0)), "now"), (picture((0, 0, 255)), "a"))
    examples = [one.example(Sample("s", (Turn("user", parts),)), answer=True) for parts in asked]
    free = [naive(other, example, 8) for example in examples]
    stops = {free[0][3], free[1][1]}
    expected = [naive(other, example, 8, stops) for example in examples]
    assert [list(stream(other, example, stops, max_tokens=8)) for example in examples] == expected
    assert answer_batch(other, examples, stops, max_tokens=8) == expected


def test_embeddings_can_be_brought_along(model):
    example = questions(model)[0]
    expected = list(stream(model, example, (), max_tokens=6))
    with torch.no_grad():
        embeds = model.connect(model.encode(collate([[example]], multiple=1)))
    example.media["sight"][0].fill_(float("nan"))
    assert list(stream(model, example, (), max_tokens=6, embeds=embeds)) == expected


def test_stops_are_not_said(model):
    example = questions(model)[1]
    free = list(stream(model, example, (), max_tokens=8))
    assert list(stream(model, example, {free[3]}, max_tokens=8)) == free[: free.index(free[3])]


def test_draws_repeat_with_their_seed_and_differ_without(model):
    example = questions(model)[0]
    drawn = [tuple(stream(model, example, (), 12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    state = torch.random.get_rng_state()
    list(stream(model, example, (), 4, temperature=1.0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_closing_stops_and_leaves_no_mode_behind(model):
    answer = stream(model, questions(model)[0], (), max_tokens=50)
    next(answer)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    answer.close()
    assert list(answer) == []


def test_the_likeliest_few(model):
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    none, generator = torch.empty(1, 0, dtype=torch.int64), torch.Generator().manual_seed(0)

    def seen(**more):
        return {int(Sampling(**more).choose(logits, none, generator)) for _ in range(300)}

    assert seen() == {0}
    assert seen(temperature=1.0, top_p=0.4) == {0}
    assert seen(temperature=1.0, top_p=0.5) == {0}
    assert seen(temperature=1.0, top_p=0.7) == {0, 1}
    assert seen(temperature=1.0) == {0, 1, 2, 3}


def test_what_was_said_becomes_less_likely():
    logits, said = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[0, 0]])
    generator = torch.Generator()
    assert int(Sampling().choose(logits, said, generator)) == 0
    assert int(Sampling(repetition=2.0).choose(logits, said, generator)) == 1


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"repetition": 0}, {"max_tokens": 0}])
def test_settings_out_of_range_are_refused_at_once(model, wrong):
    with pytest.raises(UsageError):
        stream(model, questions(model)[0], (), **wrong)
