"""PLLaVA: projector and pooling, the whole model through the importer's table, frame sampling, prompts."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from vectors._base import Case, Got, Vector

from mmtune import config as configs
from mmtune import prompt
from mmtune.checkpoint import build_run, store
from mmtune.checkpoint.foreign.base import Source
from mmtune.checkpoint.foreign.pllava import Config, Pllava
from mmtune.collate import collate
from mmtune.connectors.pool import Config as PoolConfig
from mmtune.connectors.pool import Pool
from mmtune.fusion.tokens import write
from mmtune.generate import answer_batch
from mmtune.media import _pllava
from mmtune.model import MultimodalModel, build
from mmtune.objectives.base import label_count
from mmtune.objectives.cross_entropy import Config as CrossEntropyConfig
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.recipe import Recipe
from mmtune.types import IGNORE, Batch, Embeds, Example, Features, FeatureShape, MediaRef, Sample, Slot, Turn

# -------------------------------------------------------------------------------------------------------- projector


def projector(vector: Vector) -> Iterator[Got]:
    facts = vector.facts["config"]
    width, llm = facts["vision_hidden_size"], facts["text_hidden_size"]
    for name, case in facts["cases"].items():
        grid = tuple(case["frame_shape"])
        time, high, wide = case["pooling_shape"]
        frames = case["num_frames"]
        given = vector.inputs[name]
        videos = case["batch_size"] * case["num_videos"]
        if name.endswith("_quirk"):
            continue
        pool = Pool(
            PoolConfig(time=time, height=high, width=wide, short="repeat"),
            FeatureShape(width=width, tokens=grid[0] * grid[1], grid=grid, frames=frames),
            llm,
        )
        pool.load_state_dict(vector.weights)
        # an image is one frame here, which pooling repeats to the frames of a video
        tokens = given.unflatten(0, (videos, -1))
        out = pool(Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), grid))
        assert out.mask.all()
        assert out.tokens.shape[1] == pool.tokens_out(tokens.shape[1])
        yield Got(name, out.tokens)


# ------------------------------------------------------------------------------------------------------------ model


def imported(vector: Vector, alpha: int) -> MultimodalModel:
    """The model that `mmtune import pllava` makes of the file, with a tokenizer that nobody asks."""
    facts = vector.facts["config"]
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    words.add_special_tokens(["<s>", "</s>"])  # of the prompt, which an import asks for
    tree = {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **facts["vision_config"]},
        "text_config": {"model_type": "llama", "tie_word_embeddings": False, **facts["text_config"]},
        "image_token_index": facts["image_token_index"],
        "vision_feature_layer": facts["vision_feature_layer"],
        "pooling_shape": facts["pooling_shape"],
        "frame_shape": facts["frame_shape"],
        "num_frames": facts["num_frames"],
    }
    size = facts["vision_config"]["image_size"]
    pixels = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    files = {
        "config.json": tree,
        "preprocessor_config.json": pixels,
        "tokenizer.json": json.loads(words.to_str()),
    }
    importer = Pllava(Config(lora_alpha=alpha))
    got = importer.read({"folder": Source.memory("folder", vector.weights, files)})
    with tempfile.TemporaryDirectory() as name:
        build_run.make_run(got, Path(name), ["model.llm.attention=math"], {})
        recipe = configs.load(Recipe, Path(name))
        model = build(recipe.model)
        store.load_weights(Path(name), model, store.groups_of(model, recipe))
    return model.requires_grad_(False)


def examples(model: MultimodalModel, ids: Tensor, mask: Tensor, labels: Tensor | None, image: int, items: list[Tensor]):
    """Padded rows of published ids -> one example for each row, items [F,...] taken in reading order."""
    places = model.branches["sight"].connector.tokens_out(items[0].shape[0])
    left = iter(items)
    for row in range(len(ids)):
        keep = mask[row].bool()
        said = torch.full_like(ids[row], IGNORE) if labels is None else labels[row]
        tokens: list[int] = []
        own: list[int] = []
        slots, media = [], []
        for token, label in zip(ids[row][keep].tolist(), said[keep].tolist(), strict=True):
            many = places if token == image else 1
            if token == image:
                slots.append(Slot("sight", len(tokens), places, len(media)))
                media.append(next(left))
            tokens += [0 if token == image else token] * many
            own += [IGNORE if token == image else label] * many
        shifted = [*own[1:], IGNORE]
        held = {"sight": media} if media else {}
        yield Example(str(row), torch.tensor(tokens), torch.tensor(shifted), tuple(slots), held)


def spread(rows: Tensor, lengths: list[int], width: int, left: bool) -> Tensor:
    """Rows [B,T,...] that begin at 0, moved to the side of the padding, zeros elsewhere."""
    out = rows.new_zeros(len(lengths), width, *rows.shape[2:])
    for row, length in enumerate(lengths):
        out[row, width - length if left else 0 :][:length] = rows[row, :length]
    return out


def model(vector: Vector) -> Iterator[Got]:
    facts = vector.facts["config"]
    inputs, image = vector.inputs, facts["image_token_index"]
    alphas = {f"model_alpha{alpha}": alpha for alpha in facts["lora_alphas"]}
    whole = imported(vector, facts["lora_alpha_train"])
    pixels = inputs["model/pixel_values"].unflatten(0, (-1, facts["num_frames"]))
    sight = whole.branches["sight"]
    frames = torch.ones(pixels.shape[:2], dtype=torch.bool)
    features = sight.encoder(pixels, frames)
    yield Got("model/selected_vision_features", features.tokens.flatten(0, 1))
    yield Got("model/projected", sight.connector(features).tokens)
    for case in sorted({name.partition("/")[0] for name in inputs} - {"model", "gen"}):
        yield from merged(vector, whole, case, image)
    for name, alpha in alphas.items():
        yield from scaled(vector, imported(vector, alpha), name, image, list(pixels))


def merged(vector: Vector, model: MultimodalModel, case: str, image: int) -> Iterator[Got]:
    """Embeddings, mask, positions and labels of rows with media in them, padded as published."""
    given = {name.partition("/")[2]: t for name, t in vector.inputs.items() if name.startswith(f"{case}/")}
    wanted = {name.partition("/")[2]: t for name, t in vector.outputs.items() if name.startswith(f"{case}/")}
    ready = list(given["image_features"])
    # what is inserted is given; a connector that hands it on makes as many places
    made = list(
        examples(
            model, given["input_ids"], given["attention_mask"], given.get("labels"), image, ready_items(model, ready)
        )
    )
    batch = collate([[one] for one in made], pad=vector.facts["config"]["pad_token_id"])
    lengths, width = [len(one) for one in made], wanted["embeds"].shape[1]
    left = bool((given["input_ids"][:, -1] != vector.facts["config"]["pad_token_id"]).all())
    x = model.llm.embed(batch.tokens)
    if "sight" in batch.slots:
        rows = torch.stack(ready)
        x = write(x, "sight", Embeds(rows, torch.ones(rows.shape[:2], dtype=torch.bool)), batch.slots["sight"])
    real = spread(torch.ones(x.shape[:2], dtype=torch.int64), lengths, width, left)
    # a padded id keeps the embedding of the pad token; places that other rows' media made necessary are zero
    padded = (given["attention_mask"] == 0).sum(dim=1).tolist()
    known = spread(torch.ones_like(real), [a + b for a, b in zip(lengths, padded, strict=True)], width, left)
    pad = model.llm.embed(torch.tensor(vector.facts["config"]["pad_token_id"]))
    blank = known[..., None] * pad
    yield Got(f"{case}/embeds", torch.where(real[..., None].bool(), spread(x, lengths, width, left), blank))
    yield Got(f"{case}/merged_attention_mask", real)
    positions = spread(batch.positions, lengths, width, left)
    # where nothing is, the published code writes 1
    yield Got(f"{case}/position_ids", torch.where(real.bool(), positions, 1))
    if "merged_labels" in wanted:
        own = torch.full_like(batch.labels, IGNORE)
        own[:, 1:] = batch.labels[:, :-1]
        first = torch.stack([label_of_first(given, row) for row in range(len(made))])
        own[:, 0] = first
        out = spread(own, lengths, width, left)
        yield Got(f"{case}/merged_labels", torch.where(real.bool(), out, IGNORE))


def label_of_first(given: dict[str, Tensor], row: int) -> Tensor:
    """The label of a row's first token, which no model can be asked for and ours therefore do not keep."""
    place = int(given["attention_mask"][row].argmax())
    return given["labels"][row, place]


def ready_items(model: MultimodalModel, features: list[Tensor]) -> list[Tensor]:
    """Stand-ins of as many frames as a video has, for places that are counted only."""
    frames = model.branches["sight"].encoder.max_frames
    return [torch.zeros(frames, 1) for _ in features]


def scaled(vector: Vector, model: MultimodalModel, name: str, image: int, items: list[Tensor]) -> Iterator[Got]:
    """The whole model at one scale of its LoRA."""
    outputs = vector.outputs
    for case in ("right", "left"):
        ids, mask = vector.inputs[f"{case}/input_ids"], vector.inputs[f"{case}/attention_mask"]
        labels = vector.inputs.get(f"{case}/labels")
        made = list(examples(model, ids, mask, labels, image, items))
        batch: Batch = collate([[one] for one in made])
        want = outputs.get(f"{name}/{case}/logits")
        if want is not None:
            logits = model.llm.head(model(batch))
            yield Got(
                f"{name}/{case}/logits", spread(logits, [len(one) for one in made], want.shape[1], case == "left")
            )
        if f"{name}/{case}/loss" in outputs:
            (total,) = CrossEntropy(CrossEntropyConfig()).loss(model, batch).values()
            yield Got(f"{name}/{case}/loss", (total / label_count(batch)).reshape(outputs[f"{name}/{case}/loss"].shape))
        if f"{name}/{case}/gen_tokens" in outputs:
            yield Got(f"{name}/{case}/gen_tokens", answers(vector, model, made))
    ids, mask = vector.inputs["gen/input_ids"], vector.inputs["gen/attention_mask"]
    yield Got(f"{name}/gen_tokens", answers(vector, model, list(examples(model, ids, mask, None, image, items))))


def answers(vector: Vector, model: MultimodalModel, made: list[Example]) -> Tensor:
    most = vector.facts["config"]["max_new_tokens"]
    said = answer_batch(model, made, frozenset(), max_tokens=most)
    return torch.tensor(said)


# ----------------------------------------------------------------------------------------------------------- tables

PROMPTS = {
    "plain": "pllava",
    "eval_vcgbench": "pllava_vcg",
    "eval_mvbench": "pllava_mvbench",
    "eval_videoqabench": "pllava_videoqa",
    "eval_recaption": "pllava_recaption",
    "eval_vcg_llavanext": "pllava_34b",
    "eval_mvbench_llavanext": "pllava_34b",
    "eval_videoqa_llavanext": "pllava_34b_videoqa",
    "eval_recaption_llavanext": "pllava_34b_recaption",
}
"""Name of a published template to ours."""


DRAWS = 20_000


def tables(vector: Vector) -> Iterator[Got]:
    facts = vector.facts
    for i, row in enumerate(facts["evaluation_sampler"]):
        bound = tuple(row["bound_seconds"]) if row["bound_seconds"] else None
        got = _pllava.benchmark(row["last_index"], row["num_segments"], row["first_index"], row["fps"], bound)
        yield Got(f"evaluation_sampler[{i}]", got, row["indices"])
    for i, row in enumerate(facts["chat_sampler"]):
        yield Got(f"chat_sampler[{i}]", _pllava.chat(row["n_frames_total"], row["num_segments"]), row["indices"])
    for i, row in enumerate(facts["training_sampler"]):
        count, frames = row["n_frames_total"], row["num_frames"]
        if row["indices"] is None:
            continue
        if row["sample"] == "middle":
            got = _pllava.training(count, frames, offset=row["fix_start"])
        else:
            rate = float(row["sample"].removeprefix("fps"))
            got = _pllava.per_second(count, row["fps"], rate, row["max_num_frames"])
        yield Got(f"training_sampler[{i}]", got, row["indices"])
    for i, row in enumerate(facts["training_random"]):
        drawn = [_pllava.training(row["n_frames_total"], row["num_frames"], seed) for seed in range(DRAWS)]
        slots = [Counter(slot) for slot in zip(*drawn, strict=True)]
        # theirs are 3000 draws: what is rare there may not have come, what never comes here may not have come there
        fits = [
            {value for value, times in slot.items() if times > DRAWS / 300} <= set(theirs) <= set(slot)
            for slot, theirs in zip(slots, row["observed_values_per_slot"], strict=True)
        ]
        yield Got(f"training_random[{i}]", fits, [True] * len(slots))
    alpha = facts["lora_alpha"]
    for when, chosen in (("train", alpha["trained_with"]), ("eval", alpha["evaluation_scripts"])):
        yield Got(f"lora_alpha.{when}", Config(lora_alpha=chosen).lora_alpha / alpha["rank"], alpha[f"scaling_{when}"])
    for name, rendered in facts["rendered_prompts"].items():
        template = prompt.load(PROMPTS[name])
        yield Got(f"prompt {name}", said(template, ONE), rendered["one_question"])
        published = facts["prompt_templates"][name]
        if published["pre_query"] or published["post_query"]:
            template = without(template, published)
        yield Got(f"prompt {name}, two turns", said(template, TWO), rendered["two_turns_no_pre_post"])


VIDEO = MediaRef("video", b"", "video")
ONE = Sample("one", (Turn("user", (VIDEO, "What colour is the car?")),))
TWO = Sample("two", (*ONE.turns, Turn("assistant", ("Red.",)), Turn("user", ("And the bus?",))))


def without(template: prompt.Template, published: dict[str, Any]) -> prompt.Template:
    """A template less what it writes around a question, as the table has it for two turns."""
    before, after = template.media["video"]
    opened = template.assistant.before.removesuffix(published["answer_prefix"] or "")
    changes = {
        "media": {**template.media, "video": (before, after.removesuffix((published["pre_query"] or "") + " "))},
        "user": template.user.model_copy(update={"after": published["separators"][0]}),
        "assistant": template.assistant.model_copy(update={"before": opened}),
    }
    return template.model_copy(update=changes)


def said(template: prompt.Template, sample: Sample) -> str:
    """The prompt as text, with the published mark at the place of the video and no begin mark."""
    spans = template.spans(sample, answer=True)
    text = "".join("<image>" if span.type == "media" else span.text for span in spans)
    return re.sub(r"^\{bos\}", "", text)


CASES: dict[str, Case] = {
    "PLLaVA multimodal projector with adaptive average pooling": projector,
    "PLLaVA whole model: vision tower, projector, merge at the media token, LoRA language model": model,
    "PLLaVA frame sampling and prompt templates": tables,
}
