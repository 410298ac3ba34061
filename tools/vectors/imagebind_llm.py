"""ImageBind-LLM: from ImageBind's vectors to a prompt of each layer, through an adapted LLaMA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vectors import _llama
from vectors._base import Case, Got, Vector

from mmtune import config, registry
from mmtune.checkpoint.foreign import _llama as names
from mmtune.checkpoint.foreign import imagebind_llm as importer
from mmtune.checkpoint.keymap import KeyMap
from mmtune.connectors.imagebind_bridge import Retrieval, RetrievalConfig
from mmtune.recipe import ModelSection
from mmtune.types import Embeds, Features, FeatureShape


def whole(vector: Vector) -> Iterator[Got]:
    """The encoder is replaced by given vectors in this file, as one frame with one token."""
    c, weights, inputs = vector.facts["config"], vector.weights, vector.inputs
    base = {n: t for n, t in weights.items() if importer.is_base(n)}
    adapter = {n: t for n, t in weights.items() if n not in base}
    heads = c["n_heads"], c.get("n_kv_heads") or c["n_heads"]
    tree = importer.sections(adapter, c["dim"])
    section = config.validate(
        ModelSection,
        {
            "llm": {"name": "hf", "folder": "."},
            "fusion": tree["fusion"],
            "tuners": tree["tuners"],
            "branches": {importer.BRANCH: {"encoder": {"name": "imagebind_vision"}, "connector": tree["connector"]}},
        },
    )
    llm = _llama.language_model(c)
    for tuner in section.tuners:
        registry.find("tuners", tuner.name)(tuner).apply(llm)
    fusion = registry.find("fusion", section.fusion.name)(section.fusion, llm.width, llm.depth, llm.heads)
    settings = section.branches[importer.BRANCH].connector
    connector = registry.find("connectors", settings.name)(settings, FeatureShape(c["bind_dim"], 1), llm.width)
    _fill(llm, fusion, connector, heads, base, adapter, tree)
    connector.eval()

    def embed(vectors: torch.Tensor) -> Embeds:
        frames = torch.ones(len(vectors), 1, dtype=torch.bool)
        return connector(Features(vectors[:, None, None], frames))

    def forward(given, cache):
        return fusion(llm, given, {importer.BRANCH: shown}, cache)

    shown = embed(inputs["image_features"])
    yield Got("visual_image", shown.tokens)
    both = connector.mix([inputs["image_features"], inputs["audio_features"]], [1.0, 0.5])
    yield Got("visual_mixed", connector.bridge(both)[:, None])
    yield Got("visual_cached", _cached(vector, connector))
    tokens = inputs["tokens"]
    rows = torch.arange(len(tokens))
    slots = {importer.BRANCH: torch.stack([rows, torch.ones_like(rows), rows * 0, rows * 0], dim=1)}
    media = {importer.BRANCH: inputs["image_features"][:, None, None]}
    more = {"slots": slots, "media": media, "frame_mask": {importer.BRANCH: torch.ones(len(rows), 1, dtype=torch.bool)}}
    yield from _llama.whole(llm, forward, _llama.batch(tokens, inputs["labels"], **more), vector.outputs)
    yield Got("step_logits", _llama.steps(llm, forward, tokens, c["prefill_len"], **more))


def _fill(llm, fusion, connector, heads, base, adapter, tree) -> None:
    """All tensors into the three modules, which together are a model without its encoder."""
    whole = torch.nn.ModuleDict({"llm": llm, "fusion": fusion, "connector": connector})
    backbone = [
        rule for rule in names.backbone(*heads, theirs="llama.", ours="llm.model.") if "norm" not in rule.theirs
    ]
    given = {**KeyMap(backbone).into(base), **importer.table(*heads, tree).into(adapter)}
    bare = {name.removeprefix(f"branches.{importer.BRANCH}."): tensor for name, tensor in given.items()}
    own = dict(whole.named_parameters())
    # a matrix that low-rank pairs were put around has another name in memory than in the file of the base
    moved = {n: n.replace(".weight", ".base_layer.weight") for n in bare if n not in own}
    _llama.fill(whole, {moved.get(name, name): tensor for name, tensor in bare.items()})


def _cached(vector: Vector, connector) -> torch.Tensor:
    """[B,1,B,D]: the published code multiplies the weights of sample i with the vectors found for sample b.

    For one sample, which is how it is used, that is sample b with its own; the diagonal here is what we compute.
    """
    c = vector.facts["config"]
    settings = RetrievalConfig(file="-", nearest=c["cache_size"], temperature=c["cache_t"], share=c["cache_weight"])
    cache = Retrieval(settings, vector.inputs["cache_vectors"])
    own = connector.mix([vector.inputs["image_features"]], [1.0])
    weights, found = cache.find(own)
    b = len(own)
    crossed = cache.blend(
        own[None].expand(b, -1, -1), weights[None].expand(b, -1, -1), found[:, None].expand(-1, b, -1, -1)
    )
    return connector.bridge(crossed)[:, None]


CASES: dict[str, Case] = {"ImageBind-LLM bridge and adapted LLaMA": whole}
