"""Any causal language model of transformers, from a folder or from the hub.

The model class is used as it is, through `inputs_embeds`: it is not subclassed and nothing of it is replaced but the
attention function, by the interface that transformers has for it. The head runs on the hidden states it is given, so
who needs a few positions pays for a few. Weights are read from safetensors only, and no code of a repository is run.

Not supported, and refused by name: models that change logits after the head, and attention with soft caps or sinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtune import dtypes, jsons, paths, random_state
from mmtune.errors import CheckpointError, ModelError
from mmtune.llm import _attention, _folder_check, _known, _tokenizer, base
from mmtune.llm._attention import AttentionTerm, Call, Prefix
from mmtune.llm._tap import tapped
from mmtune.llm._unfetched import Unfetched
from mmtune.llm.base import LLM, LLMConfig, Tap

_STRUCTURE = ("*.json", "tokenizer.model", "*.txt")
_FILES = (*_STRUCTURE, "*.safetensors")


class Config(LLMConfig):
    name: str = "hf"
    folder: str | None = None
    """Folder with config.json, tokenizer files and *.safetensors; `mmtune:pocket/llm` is one inside the package."""
    repo: str | None = None
    """Name on the Hugging Face hub, instead of a folder."""
    revision: str | None = None
    """Branch, tag or commit of the repo; none is its main branch."""
    like: str | None = None
    """A published model of the same structure, by its name on the hub: `mmtune show` builds from it while the folder is
    not there yet."""
    attention: Literal["sdpa", "math"] = "sdpa"
    """sdpa: PyTorch's fused attention, whichever kernel fits. math: the formula in float32, slow, for comparing."""
    seed: int = 0
    """Seed of random weights, where the folder has a config.json but no weights."""

    @model_validator(mode="after")
    def _one_source(self) -> Config:
        if (self.folder is None) == (self.repo is None):
            raise ValueError("exactly one of folder and repo is needed")
        if self.revision is not None and self.repo is None:
            raise ValueError("revision belongs to repo; a folder has none")
        return self


class Cache(base.Cache):
    """Keys and values of what was read so far, [B,h,P,d] in each layer, with the segments of the P tokens."""

    def __init__(self, kv: Any) -> None:
        super().__init__()
        self.kv = kv
        self.length = 0
        """P"""
        self.segments: Tensor | None = None
        """int [B,P], or none while every row is one segment without padding."""
        self.prefix: Prefix | None = None
        """What stands before every segment, once it was worked out."""

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.kv.batch_select_indices(rows)
        if self.segments is not None:
            self.segments = self.segments[rows]


class HF(LLM):
    """A causal LM of transformers. Building makes the structure only, from config.json; `load_weights` fills it."""

    Config = Config
    abilities = frozenset({"attention_terms", "prefix", "tap"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._hf_config = _known_config(config)
        """config.json of a published model whose files are not here; None where the folder is."""
        self._open(_folder(config, _STRUCTURE) if self._hf_config is None else None)

    def _open(self, folder: Path | None) -> None:
        """Tokenizer and structure from a folder, or those that are known without one."""
        self.folder = folder
        self.model = self._structure()
        hf_config = self.model.config.get_text_config()
        self.tokenizer = Unfetched(self._origin, hf_config.vocab_size) if folder is None else _tokenizer.load(folder)
        self.width, self.depth, self.heads = (
            hf_config.hidden_size,
            hf_config.num_hidden_layers,
            hf_config.num_attention_heads,
        )
        self.kv_heads = getattr(hf_config, "num_key_value_heads", None) or self.heads
        self.head_width = getattr(hf_config, "head_dim", None) or self.width // self.heads
        self.inner_width = int(getattr(hf_config, "intermediate_size", None) or 4 * self.width)
        _refuse(hf_config)
        if self.tokenizer.vocabulary > hf_config.vocab_size:
            raise ModelError(
                seen=f"{self.tokenizer.vocabulary} ids of the tokenizer, {hf_config.vocab_size} of the model",
                expected="an embedding for every id",
                hint=f"check that tokenizer and config of {self.folder} belong together",
            )

    @property
    def _origin(self) -> str:
        return str(self.config.folder or self.config.repo)

    def _structure(self) -> nn.Module:
        with torch.device("cpu"):
            # What a model class imports first of all, torchaudio among it: constants of a library that is imported
            # while a structure is built on the meta device would stay there, and no sound could be heard after that.
            import_module("transformers.modeling_layers")
            from transformers import AutoConfig, AutoModelForCausalLM

        tree = _folder_check.check(self.folder) if self.folder is not None else dict(self._hf_config or {})
        try:
            if self.folder is None:
                hf_config = AutoConfig.for_model(**self._hf_config)
            else:
                hf_config = AutoConfig.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)
            with random_state.seeded(self.config.seed):
                return AutoModelForCausalLM.from_config(
                    hf_config, attn_implementation=_attention.register(), dtype=getattr(torch, self.config.dtype)
                ).eval()
        except Exception as error:  # the library raises whatever a config that makes no sense leads to
            raise CheckpointError(
                seen=f"{self._origin}: {jsons.told(error, tree)}",
                expected="config.json of a model that transformers knows, with sizes that go together",
                hint="compare config.json with the one that was published",
            ) from error

    def load_weights(self) -> None:
        """Read the safetensors of the folder, strictly; without any, make the seeded random weights.

        Raises:
            CheckpointError: only pickled weights, or names or shapes that do not match, all listed.
        """
        from transformers import AutoModelForCausalLM

        if self.config.repo is not None or self.folder is None:
            self._fetch()
        if not any(self.folder.glob("*.safetensors")):
            pickled = sorted(path.name for path in [*self.folder.glob("*.bin"), *self.folder.glob("*.pt*")])
            if pickled:
                raise CheckpointError(
                    seen=f"{self.folder} has pickled weights: {', '.join(pickled)}",
                    expected="*.safetensors",
                    hint=f"convert them: mmtune import llm {self.folder} --out FOLDER",
                )
            if self.config.repo is not None:
                raise CheckpointError(
                    seen=f"{self.config.repo} has no *.safetensors",
                    expected="weights that can be read without running code; nothing is left random",
                    hint="fetch the repository, and convert it: mmtune import llm FOLDER --out OTHER",
                )
            if any(parameter.is_meta for parameter in self.model.parameters()):
                with torch.device("cpu"):
                    self.model = self._structure()
            return
        try:
            with _quiet():
                model, told = AutoModelForCausalLM.from_pretrained(
                    str(self.folder),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=getattr(torch, self.config.dtype),
                    attn_implementation=_attention.register(),
                    output_loading_info=True,
                )
        except Exception as error:  # transformers and safetensors raise several kinds; all mean the same here
            raise CheckpointError(seen=f"{self.folder}: {error}", expected="weights that fit config.json") from error
        wrong = [f"missing {name}" for name in sorted(told["missing_keys"])]
        wrong += [f"unexpected {name}" for name in sorted(told["unexpected_keys"]) if not name.endswith("inv_freq")]
        wrong += [f"of another shape {item}" for item in sorted(map(str, told.get("mismatched_keys") or ()))]
        if wrong:
            raise CheckpointError(
                seen=f"{self.folder}: " + "; ".join(wrong),
                expected="every weight of the model and no other",
                hint="check that config.json and the weights belong together",
            )
        dtypes.require_finite(dict(model.named_parameters()), str(self.folder))
        self.model = model.eval()

    def _fetch(self) -> None:
        """All files of the repository, and what is in them instead of what was known before."""
        before = None if self.folder is not None else (self.width, self.depth, self.heads)
        folder = _folder(self.config, _FILES)
        if before is None:
            self.folder = folder
            return
        with torch.device("meta"):
            self._open(folder)
        if (self.width, self.depth, self.heads) != before:
            raise CheckpointError(
                seen=f"{self._origin}: width, depth and heads {self.width}, {self.depth}, {self.heads}",
                expected=f"those that are known of it: {', '.join(map(str, before))}",
                hint="give its folder with `folder:`, without `like`",
            )

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def attention_modules(self) -> list[nn.Module]:
        found = {
            module.layer_idx: module
            for module in self.model.modules()
            if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")
        }
        if sorted(found) != list(range(self.depth)):
            raise ModelError(
                seen=f"{type(self.model).__name__} with attention in layers {sorted(found)}",
                expected=f"one attention module in each of {self.depth} layers",
                hint="this architecture is not supported yet",
            )
        return [found[layer] for layer in range(self.depth)]

    def layers(self) -> list[nn.Module]:
        attention_modules = set(self.attention_modules())
        return [
            module for module in self.model.modules() if any(child in attention_modules for child in module.children())
        ]

    def decoder(self) -> nn.Module:
        return self.model.get_decoder()

    def checkpoint_activations(self) -> None:
        """Non-reentrant checkpoints around every decoder layer; with a cache, or without gradients, they do nothing."""
        for layer in self.layers():
            # not transformers' own switch: that one sleeps in eval mode, which is where frozen layers stay
            layer.forward = partial(_anew, layer.forward)

    def new_cache(self) -> Cache:
        from transformers import DynamicCache

        # Without the config every layer keeps all tokens, also a sliding-window one, whose window the mask sees to.
        return Cache(DynamicCache())

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        cache: Cache | None = None,
        attention_terms: Mapping[int, Sequence[AttentionTerm]] | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        call = self._call(x, segments, cache, attention_terms or {})
        if self.prefix is not None:
            call.prefix = self.prefix.keys_and_values(self) if cache is None or cache.prefix is None else cache.prefix
            positions = positions + self.prefix.length
            if cache is not None:
                cache.prefix = call.prefix
        with nullcontext() if tap is None else tapped(self.layers(), tap):
            hidden = self.model.get_decoder()(
                inputs_embeds=x,
                position_ids=positions,
                past_key_values=None if cache is None else cache.kv,
                use_cache=cache is not None,
                mmtune_call=call,
            ).last_hidden_state
        if cache is not None:
            cache.segments = None if call.segments is None else torch.cat([_or_ones(call.seen, x), call.segments], 1)
            cache.length += x.shape[1]
        return hidden

    def keys_and_values(self, x: Tensor, positions: Tensor) -> Prefix:
        from transformers import DynamicCache

        kept = DynamicCache()
        x = x.to(self.model.get_input_embeddings().weight.dtype)
        call = Call(x.shape[1], reference=self.config.attention == "math")
        self.model.get_decoder()(
            inputs_embeds=x, position_ids=positions, past_key_values=kept, use_cache=True, mmtune_call=call
        )
        return {layer: (one.keys, one.values) for layer, one in enumerate(kept.layers)}

    def _call(
        self,
        x: Tensor,
        segments: Tensor | None,
        cache: Cache | None,
        attention_terms: Mapping[int, Sequence[AttentionTerm]],
    ) -> Call:
        past, seen = (0, None) if cache is None else (cache.length, cache.segments)
        if segments is not None and seen is None and _attention.plain(segments):
            segments = None
        if segments is not None or seen is not None:
            segments = x.new_ones(x.shape[:2], dtype=torch.int32) if segments is None else segments
            seen = segments.new_ones(x.shape[0], past) if seen is None else seen
        joined = {layer: tuple(terms) for layer, terms in attention_terms.items()}
        for layer, module in self.attention_terms.items():
            joined[int(layer)] = (*joined.get(int(layer), ()), module)
        return Call(x.shape[1], past, segments, seen, joined, reference=self.config.attention == "math")

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)


def _anew(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer whose inner values are not kept."""
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of transformers; our own errors report what is wrong."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _or_ones(seen: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 0, dtype=torch.int32) if seen is None else seen


def _known_config(config: Config) -> dict[str, Any] | None:
    """The structure of a published model whose files are not here; None where they are, or nothing is known of it."""
    if config.folder is not None:
        there = (Path(paths.resolve(config.folder)).expanduser() / "config.json").is_file()
        return None if there or config.like is None else _known.hf_config_of(config.like)
    hf_config = _known.hf_config_of(config.repo) or _known.hf_config_of(config.like or "")
    if hf_config is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.repo, "config.json", revision=config.revision)
    return None if isinstance(found, str) else hf_config


def _folder(config: Config, files: Sequence[str]) -> Path:
    """Where config, tokenizer and weights lie; a repo is fetched first, or found among what was fetched before."""
    if config.folder is not None:
        folder = Path(paths.resolve(config.folder)).expanduser()
        if not (folder / "config.json").is_file():
            raise CheckpointError(seen=f"{folder} without config.json", expected="a model folder of transformers")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.repo, revision=config.revision, allow_patterns=list(files)))
    except Exception as error:  # network, permission and cache errors of three libraries
        raise CheckpointError(
            seen=f"{config.repo}: {type(error).__name__}: {error}",
            expected="a repo that can be reached, or was fetched before",
            hint="fetch it where there is a network, and name its folder with `folder:`",
        ) from error


def _refuse(hf_config: Any) -> None:
    """Refuse models that change logits after the head: leaving that out would be wrong in silence."""
    for name, neutral in _AFTER_HEAD.items():
        if getattr(hf_config, name, None) not in (None, neutral):
            raise ModelError(
                seen=f"a {hf_config.model_type} model with {name} = {getattr(hf_config, name)}",
                expected="logits that are a linear map of the hidden states",
                hint="this architecture is not supported yet",
            )


_AFTER_HEAD = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}
