"""LLaMA-Adapter V2 multimodal as released: a run of ours made by the importer, from pictures to sampled tokens; and the
tables of its data preparation, learning rate and sampling."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models as word_models
from torch import Tensor, nn
from vectors import _llama
from vectors._base import Case, Got, Vector

from mmtune import config as configs
from mmtune import model as models
from mmtune import paths, prompt
from mmtune.checkpoint import store
from mmtune.checkpoint.foreign import llama_adapter_v2 as importer
from mmtune.checkpoint.foreign.base import Opened, Source
from mmtune.data.formats.alpaca import Alpaca
from mmtune.data.formats.alpaca import Config as AlpacaConfig
from mmtune.data.formats.base import Record
from mmtune.errors import DataError, Reason
from mmtune.generate import Sampling, answer_batch, stream
from mmtune.llm.base import Tokenizer
from mmtune.model import MultimodalModel
from mmtune.objectives.base import label_count
from mmtune.objectives.cross_entropy import Config as CrossEntropyConfig
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.processor import Processor
from mmtune.recipe import Recipe
from mmtune.training.optim import GroupOptimizer, lr_multiplier
from mmtune.types import IGNORE, Batch, Example, Sample, Slot, Turn

BACKBONE = re.compile(r"llama\.(tok_embeddings|output|layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123]))\.weight")
NORM = re.compile(r"llama\.(layers\.\d+\.\w+_)?norm\.weight")
STAGES = {"pretrain": "llama_adapter_v2_7b_stage1", "finetune": "llama_adapter_v2_7b_stage2"}
END = 2


def v2(vector: Vector) -> Iterator[Got]:
    with tempfile.TemporaryDirectory() as name:
        model, recipe = imported(vector, Path(name))
        yield from sight(vector, model)
        yield from generation(vector, model)
        yield from exported(vector, model, recipe)
        for phase, shipped in STAGES.items():
            yield from stage(vector, recipe, phase, shipped)
        yield from text(vector, model)


# ----------------------------------------------------------------------------------------------------------- building


def imported(vector: Vector, folder: Path) -> tuple[MultimodalModel, Recipe]:
    """The vector's weights through the importer into a recipe, the model of that recipe, and its loaders."""
    c, weights = vector.facts["config"], vector.weights
    clip = {n.removeprefix("clip."): t for n, t in weights.items() if n.startswith("clip.visual.")}
    base = {n: t for n, t in weights.items() if BACKBONE.fullmatch(n) or NORM.fullmatch(n)}
    left_out = {n for n in weights if n.startswith("clip.") or BACKBONE.fullmatch(n)}
    if not c["w_bias"]:
        left_out |= {n for n in weights if NORM.fullmatch(n)}
    write_clip(c["clip"], clip, folder / "clip")
    kind = importer.LlamaAdapterV2(importer.Config(heads=c["v_num_heads"]))
    got = kind.read(
        {
            "llm": Source.memory("llm", {n.removeprefix("llama."): t for n, t in base.items()}, {"params.json": c}),
            "adapter": Source.memory("adapter", {n: t for n, t in weights.items() if n not in left_out}),
            "clip": Source("clip", folder / "clip"),
        }
    )
    write_llm(got.parts["llm"].files["config.json"], got.part("llm"), folder / "parts/llm")
    recipe = configs.validate(Recipe, paths.from_here(got.recipe, folder))
    model = models.build(recipe.model, weights=True)
    trained = {n: t for n, t in got.tensors().items() if ":" not in n}
    files = store.trained_tensors(model, store.groups_of(model, recipe))
    wanted = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    if wanted.keys() != trained.keys():
        raise AssertionError(f"only one side has {sorted(wanted.keys() ^ trained.keys())}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(trained[name])
    return model.requires_grad_(False), recipe


def write_clip(c: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """A tower in open_clip's layout."""
    folder.mkdir()
    tower = {"image_size": c["image_resolution"], "patch_size": c["patch_size"], "layers": c["layers"]}
    tower |= {"width": c["width"], "head_width": c["width"] // c["heads"]}
    hf_config = {"model_cfg": {"embed_dim": c["output_dim"], "quick_gelu": True, "vision_cfg": tower}}
    (folder / "open_clip_config.json").write_text(json.dumps(hf_config))
    save_file(tensors, folder / "open_clip_model.safetensors")


def write_llm(hf_config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """A language model in transformers' layout, with a tokenizer that nobody asks."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    words = word_models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")
    WordTokenizer(words).save(str(folder / "tokenizer.json"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


# ------------------------------------------------------------------------------------------------------------ numbers


def sight(vector: Vector, model: MultimodalModel) -> Iterator[Got]:
    """Every stage of the visual path."""
    given = _llama.batch(vector.inputs["tokens"], **pictures(vector.inputs["images"]))
    connector = model.branches["sight"].connector
    stages = {f"visual_block_{i}": block for i, block in enumerate(connector.blocks)}
    stages |= {"clip_proj_norm": connector.proj_norm}
    seen: dict[str, Tensor] = {}
    hooks = [watch(module, name, seen) for name, module in stages.items()]
    features = model.encode(given)
    embeds = model.connect(features)
    for hook in hooks:
        hook.remove()
    seen["clip_proj_norm"] = seen["clip_proj_norm"].flatten(1, 2)
    yield Got("clip_tokens", features["sight"].tokens[:, 0])
    yield Got("visual_query", embeds["sight"].tokens)
    yield from (Got(name, tensor) for name, tensor in seen.items())


def text(vector: Vector, model: MultimodalModel) -> Iterator[Got]:
    """Hidden states, logits, losses and cached steps, with matrices in double precision.

    The published numbers were made in float32, and their own rounding takes up to nine tenths of the tolerance where
    hidden states are large; a second rounding beside it would not fit. The model comes out of here in double precision.
    """
    inputs = vector.inputs
    media = pictures(inputs["images"])
    given = _llama.batch(inputs["tokens"], inputs["labels"], **media)
    embeds = model.connect(model.encode(given))
    model.llm.double()
    model.fusion.double()

    def run(batch: Batch, cache: Any) -> Tensor:
        return model.fuse(batch, embeds, cache)

    for got in _llama.whole(model.llm, run, given, vector.outputs):
        if got.name != "loss":
            yield got
    yield Got("loss", mean_loss(model, given))
    yield Got("loss_no_labels", mean_loss(model, _llama.batch(inputs["tokens"], inputs["labels"] * 0, **media)))
    prefill = vector.facts["config"]["prefill_len"]
    yield Got("step_logits", _llama.steps(model.llm, run, inputs["tokens"], prefill, **media))


def pictures(images: Tensor) -> dict[str, Any]:
    """Fields of a batch with one picture for each row."""
    number = len(images)
    return {
        "media": {"sight": images[:, None]},
        "frame_mask": {"sight": torch.ones(number, 1, dtype=torch.bool)},
        "slots": {"sight": torch.tensor([[row, 1, 0, 0] for row in range(number)])},
    }


def watch(module: nn.Module, name: str, seen: dict[str, Tensor]) -> Any:
    return module.register_forward_hook(lambda module, args, out: seen.__setitem__(name, out))


def mean_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    """Mean over labelled tokens, [1]; zero where there are none."""
    (total,) = CrossEntropy(CrossEntropyConfig()).loss(model, batch).values()
    return (total / max(1, label_count(batch))).reshape(1)


def generation(vector: Vector, model: MultimodalModel) -> Iterator[Got]:
    """Greedy answers of the batch and of the first sample alone."""
    c, inputs = vector.facts["config"], vector.inputs
    number = sum(name.startswith("gen_prompt_") for name in inputs)
    prompts = [inputs[f"gen_prompt_{i}"] for i in range(number)]
    examples = [
        Example(
            str(i),
            tokens,
            torch.full_like(tokens, IGNORE),
            (Slot("sight", 0, 0, 0),),
            {"sight": [inputs["images"][i][None]]},
        )
        for i, tokens in enumerate(prompts)
    ]
    most = c["max_gen_len"]
    longest = min(c["max_seq_len"], most + max(map(len, prompts)))
    for i, answer in enumerate(answer_batch(model, examples, {END}, max_tokens=most)):
        yield Got(f"gen_tokens_{i}", torch.tensor(answer[: longest - len(prompts[i])], dtype=torch.int64))
    alone = min(most, c["max_seq_len"] - len(prompts[0]))
    yield Got("gen_tokens_single", torch.tensor(list(stream(model, examples[0], {END}, alone)), dtype=torch.int64))


# --------------------------------------------------------------------------------------------------- names and groups


def exported(vector: Vector, model: MultimodalModel, recipe: Recipe) -> Iterator[Got]:
    """The file written from the model again, tensor by tensor; and the names and settings of each published kind."""
    kind = importer.LlamaAdapterV2(importer.Config())
    (file,) = kind.write(Opened(model, recipe)).tensors.values()
    same = all(torch.equal(tensor, vector.weights[name]) for name, tensor in file["model"].items())
    yield Got("export equals import", same, True)
    for name, wanted in vector.facts.get("adapter_checkpoint_keys", {}).items():
        c = wanted["config"]
        tree = recipe.model_dump(mode="json")
        r = c["lora_rank"] if c["w_lora"] else None
        tree["model"]["tuners"] = importer.tuned(bias=c["w_bias"], norms=True, r=r)
        tree["model"]["fusion"]["extra_gate"] = c["w_lora"]
        tree["groups"]["tuned"]["match"] = [f"@{one['name']}" for one in tree["model"]["tuners"]]
        changed = configs.validate(Recipe, tree)
        built = models.build(changed.model, weights=False, device="meta")
        (file,) = kind.write(Opened(built, changed)).tensors.values()
        yield Got(f"adapter_checkpoint_keys/{name}", sorted(file["model"]), sorted(wanted["keys"]))
        yield Got(f"adapter_checkpoint_keys/{name}/config", file["config"], c)


def stage(vector: Vector, recipe: Recipe, phase: str, shipped: str) -> Iterator[Got]:
    """What trains and what decays when the shipped recipe of a phase is laid over the vector's sizes."""
    c = vector.facts["config"]
    given, tree = configs.load(Recipe, shipped).model_dump(mode="json"), recipe.model_dump(mode="json")
    tree["streams"], tree["groups"] = given["streams"], given["groups"]
    lora = importer.tuned(bias=False, norms=False, r=c["lora_rank"] if c["w_lora"] else None)
    tree["model"]["tuners"] = [*given["model"]["tuners"], *lora]
    tree["model"]["freeze"] = [*given["model"]["freeze"], *(["@hf_peft"] if lora else [])]
    tree["model"]["fusion"] |= {"extra_gate": c["w_new_gate"], "spare_gates": given["model"]["fusion"]["spare_gates"]}
    changed = configs.validate(Recipe, tree)
    built = models.build(changed.model, weights=False, device="meta")
    bias = bool(given["model"]["tuners"])
    names = importer.table(c["n_heads"], c["n_heads"], bias, bool(lora), bias, c["w_new_gate"])
    trained: list[str] = []
    decay: dict[str, list[str]] = {"decay": [], "no_decay": []}
    for group, named in store.groups_of(built, changed).items():
        settings = changed.groups[group]
        optimizer = GroupOptimizer(group, named, settings.lr, settings.weight_decay, betas=settings.betas)
        theirs = {id(parameter): names.theirs(name) or name for name, parameter in named}
        trained += theirs.values()
        for half in optimizer.optimizer.param_groups:
            decay["decay" if half["weight_decay"] else "no_decay"] += [theirs[id(p)] for p in half["params"]]
    wanted = [name for name, phases in vector.facts["trainable_parameters"].items() if phases[phase]]
    yield Got(f"trainable_parameters/{phase}", sorted(trained), sorted(wanted))
    for half, listed in vector.facts["weight_decay_groups"][phase].items():
        yield Got(f"weight_decay_groups/{phase}/{half}", sorted(decay[half]), sorted(listed))


# ------------------------------------------------------------------------------------------------------------- tables


class Bytes(Tokenizer):
    """One id for each UTF-8 byte, as the table's file describes."""

    pad, bos, eos, vocabulary = 0, 1, END, 256
    special_ids = frozenset((1, END))
    marks = {"<s>": 1, "</s>": END}

    def encode(self, text: str, after: Any = "start") -> list[int]:
        return [3 + byte % 190 for byte in text.encode()]

    def encode_special(self, text: str, after: Any = "start") -> list[int]:
        pieces = re.split("(</?s>)", text)
        return [i for piece in pieces for i in ([self.marks[piece]] if piece in self.marks else self.encode(piece))]

    def decode(self, ids: Any) -> str:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "bytes"


def tables(vector: Vector) -> Iterator[Got]:
    facts = vector.facts
    for number, row in enumerate(facts["examples"]):
        tokens, labels = example(row, facts)
        want = row["tokens"], row["labels"]
        for name, ours, theirs in zip(("tokens", "labels"), (tokens, labels), want, strict=True):
            yield Got(f"{row['kind']}/{number}/{name}", ours, torch.tensor(theirs))
        real = torch.arange(len(tokens)) < int((tokens != 0).sum())
        yield Got(f"{row['kind']}/{number}/mask", real.long(), torch.tensor(row["mask"]))
    lr_schedule = configs.load(Recipe, STAGES["finetune"]).schedule.lr_schedule
    for number, row in enumerate(facts["learning_rate"]):
        min_lr_ratio = row["min_lr"] / row["lr"]
        ours = [
            row["lr"] * lr_multiplier(e, row["epochs"], row["warmup_epochs"], lr_schedule, min_lr_ratio)
            for e in row["epochs_at"]
        ]
        yield Got(f"learning_rate/{number}", torch.tensor(ours), torch.tensor(row["lr_at"]))
    for number, row in enumerate(facts["top_p"]):
        choice = Sampling(row["temperature"], row["top_p"])
        ours = choice.chances(torch.tensor(row["logits"]))
        yield Got(f"top_p/{number}", ours, torch.tensor(row["distribution_sampled_from"]))


def example(row: dict[str, Any], facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens and labels of a record in the published form: padded with 0, labels not shifted, 0 where unscored."""
    sample, size, template = sample_of(row, facts), row["max_words"], prompt.load("alpaca")
    cutting = Processor({}, Bytes(), template, size, too_long="cut", uses_placeholders=False)
    try:
        made = cutting.example(sample)
        labels = made.labels
    except DataError as error:
        if error.reason != Reason.empty_target:
            raise
        # Cut before its answer begins: refused here, trained on without any label upstream.
        made = Processor({}, Bytes(), template, uses_placeholders=False).example(sample)
        labels = torch.full((size,), IGNORE)
    tokens, labels = made.tokens[:size], labels[:size]
    unshifted = torch.zeros(size, dtype=torch.int64)
    unshifted[1 : len(labels)] = torch.where(labels == IGNORE, 0, labels)[:-1]
    return torch.cat([tokens, tokens.new_zeros(size - len(tokens))]), unshifted


def sample_of(row: dict[str, Any], facts: dict[str, Any]) -> Sample:
    """A record of the table as our formats read it."""
    record = row["record"]
    if "conversations" in record:
        asked, answer = (turn["value"] for turn in record["conversations"][:2])
    elif "caption" in record:
        asked, answer = facts["caption_instruction"], record["caption"]
    else:
        raw = json.dumps(record).encode()
        return Alpaca(AlpacaConfig(as_released=True)).sample(Record("row", {"json": raw}))
    return Sample("row", (Turn("user", (asked,)), Turn("assistant", (answer,))))


CASES: dict[str, Case] = {
    "LLaMA-Adapter V2 multimodal (7B layout)": v2,
    "LLaMA-Adapter V2 data preparation, schedule and sampling tables": tables,
}
