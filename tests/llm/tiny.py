"""Tiny random language models with a tokenizer, written to a folder on the spot."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

MARKS = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
MORE = ("<|media|>", "<|/media|>", "<|quote|>", "<|/quote|>")
TEXT = ["what is this a red circle moves to the left and a small blue square grows", "how many things are there two"]


def byte_bpe(marks=(*MARKS, *MORE), prefix=True, plain=()) -> Tokenizer:
    """Byte-level BPE; `marks` are special, `plain` are added tokens that are not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=360, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(list(plain))
    return tokenizer


def llama_bpe(legacy=True, marks=("<unk>", "<s>", "</s>"), plain=()) -> Tokenizer:
    """BPE with byte fallback and the Llama way of spaces: by a normalizer (legacy) or by Metaspace."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Words are learned apart, as sentencepiece does, and then read without cutting at blanks.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if legacy else "first")
    stripped = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(stripped)
    start = [*marks, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=400, special_tokens=start, show_progress=False)
    tokenizer.train_from_iterator([*TEXT, "A USER: hello ASSISTANT: yes"], trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in marks]
    tree["pre_tokenizer"] = None if legacy else {**tree["pre_tokenizer"], "split": False}
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_tokens(list(plain))
    return tokenizer


def folder(path: Path, kind="llama", weights=True, tokenizer=None, **changes) -> Path:
    """A model folder. Grouped-query attention (4 heads, 2 for keys) unless changed."""
    from transformers import (
        AutoModelForCausalLM,
        Gemma3TextConfig,
        GemmaConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    path.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        tokenizer = byte_bpe()
        names = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
        (path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer.save(str(path / "tokenizer.json"))
    hf_config = dict(
        vocab_size=tokenizer.get_vocab_size() + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig, "gemma": GemmaConfig}
    kinds |= {"qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
    if kind in ("gemma", "gemma3", "qwen3"):
        hf_config["head_dim"] = 8
    config = kinds[kind](**{**hf_config, **changes})
    if weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
    else:
        config.architectures = [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]]
        config.save_pretrained(path)
    return path


def llm(path: Path, kind="llama", attention="sdpa", **changes):
    """A loaded tiny model."""
    from mmtune.llm.hf import HF, Config

    model = HF(Config(folder=str(folder(path, kind, **changes)), attention=attention))
    model.load_weights()
    return model
