"""The structure of some published language models, so that a recipe can be shown before anything is fetched.

Sizes are those of each repository's config.json, with the number of ids of its tokenizer. Loading weights fetches the
repository and reads its own files; a model whose sizes are not these is refused there.
"""

from __future__ import annotations

from typing import Any

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False, "vocab_size": 32000}
_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
_30B = {"hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60, "num_attention_heads": 52}
_65B = {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64}
_70B = {**_65B, "intermediate_size": 28672, "num_key_value_heads": 8}
_FIRST = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_SECOND = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_LLAVA = {**_SECOND, "vocab_size": 32064}
_YI_34B = {"hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56}
_YI_34B |= {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 5e6, "vocab_size": 64064}

_SIZES: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": _7B | _FIRST,
    "huggyllama/llama-13b": _13B | _FIRST,
    "huggyllama/llama-30b": _30B | _FIRST,
    "huggyllama/llama-65b": _65B | _FIRST | {"rms_norm_eps": 1e-5},
    "lmsys/vicuna-7b-v1.3": _7B | _FIRST,
    "lmsys/vicuna-7b-v1.5": _7B | _SECOND,
    "lmsys/vicuna-13b-v1.5": _13B | _SECOND,
    "meta-llama/Llama-2-7b-hf": _7B | _SECOND,
    "meta-llama/Llama-2-7b-chat-hf": _7B | _SECOND,
    "meta-llama/Llama-2-13b-hf": _13B | _SECOND,
    "meta-llama/Llama-2-13b-chat-hf": _13B | _SECOND,
    "meta-llama/Llama-2-70b-hf": _70B | _SECOND,
    "meta-llama/Llama-2-70b-chat-hf": _70B | _SECOND,
    "llava-hf/llava-1.5-7b-hf": _7B | _LLAVA,
    "llava-hf/llava-1.5-13b-hf": _13B | _LLAVA,
    "llava-hf/llava-v1.6-vicuna-7b-hf": _7B | _LLAVA,
    "llava-hf/llava-v1.6-vicuna-13b-hf": _13B | _LLAVA,
    "llava-hf/llava-v1.6-34b-hf": _YI_34B,
}
"""Of a LLaVA repository, its language model."""


def hf_config_of(repo: str) -> dict[str, Any] | None:
    """config.json of a repository, as far as the structure goes; none for one that is not known."""
    sizes = _SIZES.get(repo)
    return None if sizes is None else {**_LLAMA, **sizes}


def names() -> list[str]:
    return sorted(_SIZES)
