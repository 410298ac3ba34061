"""A tiny LLaVA 1.5 as transformers writes it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoint.foreign.made import Made
from tests.llm.tiny import llama_bpe

SIZE = 24
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIZE, "patch_size": 8, "projection_dim": 20}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
PIXELS = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}, "do_center_crop": True}
PIXELS |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3}


def folder(path: Path, kind: str = "llava", layers: int | list[int] = -2, **changes):
    """The folder, and the model that was saved in it; `layers` are the tower's that the projector reads."""
    import transformers as t

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = llama_bpe()
    tokenizer.add_special_tokens(["<image>", "<pad>"])
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    text = t.LlamaConfig(**TEXT, vocab_size=tokenizer.get_vocab_size() + 6, **changes)
    common = {"vision_config": t.CLIPVisionConfig(**VISION, initializer_range=0.3), "text_config": text}
    common["image_token_index"] = tokenizer.token_to_id("<image>")
    common["tie_word_embeddings"] = changes.get("tie_word_embeddings", False)
    common["vision_feature_layer"] = layers
    if kind == "llava":
        hf_config = t.LlavaConfig(**common, image_seq_length=(SIZE // 8) ** 2)
        model = t.LlavaForConditionalGeneration(hf_config)
        pixels = {**PIXELS, "image_processor_type": "CLIPImageProcessor"}
    else:
        hf_config = t.LlavaNextConfig(**common, image_grid_pinpoints=PINPOINTS)
        model = t.LlavaNextForConditionalGeneration(hf_config)
        pixels = {**PIXELS, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS}
    model.eval().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    return path, model


def make(path: Path) -> Made:
    path, _ = folder(path / "llava")
    return Made({"folder": path}, path / "model.safetensors", config=path / "config.json", export=["names=saved"])
