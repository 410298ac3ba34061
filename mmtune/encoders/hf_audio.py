"""Sound towers of transformers: AST (BSD), the encoder of Whisper (MIT and Apache-2.0), the sound side of CLAP.

`weights` is a folder or hub repository with `config.json`, `preprocessor_config.json` and safetensors; the whole
model will do, its classifier, decoder or text side is left unread. `model` names the folder for structure and
preprocessing alone; null takes `weights`. Code inside a repository is never run.

A sound is cut into segments of fixed length, and each segment goes through the feature extractor that the tower was
trained with. Channels are averaged.

Keys: `tower.*`, the library's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    ClapAudioModel,
    ClapFeatureExtractor,
    PreTrainedConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from mmtune import jsons
from mmtune.encoders._layers import LayersConfig, block_outputs, side_by_side
from mmtune.encoders._settings import plain_config
from mmtune.encoders._tower import TowerEncoder
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.errors import CheckpointError, ConfigError, MediaError, Reason
from mmtune.media import Sampling
from mmtune.media._resample import resample
from mmtune.types import Kind, Media

MOST = 2_000_000
"""Largest number of a feature extractor's settings; Whisper counts 480,000 samples."""
LEAST = 0.025
"""Seconds: the window of a filter bank, and the shortest sound."""
SLACK = 0.05
"""Share of a segment that may be left over at the end of a sound without becoming a segment of its own."""


@dataclass(frozen=True)
class _Family:
    """What the towers of one kind have in common."""

    model: type[PreTrainedModel]
    listen: type[Any]
    """The feature extractor."""
    inputs: str
    """Its result's name."""
    prefixes: tuple[str, ...]
    """What may stand before the tower's names in a file of the whole model."""
    norm: str | None
    """Name of the norm behind the blocks; none where the tower has stages of several widths in the place of blocks."""


AST = "audio-spectrogram-transformer"
FAMILIES = {
    AST: _Family(ASTModel, ASTFeatureExtractor, "input_values", (), "layernorm"),
    "whisper": _Family(
        WhisperEncoder, WhisperFeatureExtractor, "input_features", ("model.encoder.", "encoder."), "layer_norm"
    ),
    "clap_audio_model": _Family(ClapAudioModel, ClapFeatureExtractor, "input_features", ("audio_model.",), None),
}


class Config(LayersConfig):
    name: str = "hf_audio"
    model: str | None = None
    """Folder or hub repository of `config.json` and `preprocessor_config.json`; null takes `weights`."""
    revision: str | None = None
    """Revision of a hub repository; null is the newest."""
    frames: int = Field(default=1, ge=1, le=10_000)
    """Most segments of a sound. A shorter sound has as many as it fills, at least one."""
    seconds: float | None = Field(default=None, gt=0)
    """Length of a segment; null is what the tower hears at once. Less than that leaves the rest of its window empty."""
    longer: Literal["start", "spread"] = "start"
    """What is heard of a sound longer than all segments: its beginning, or segments spread evenly from its beginning
    to its end."""
    tokens: Literal["patches", "all", "pooled"] = "patches"
    """`patches` are the tokens of the last layer, normed, in a grid of pitch and time (AST, CLAP) or of time alone
    (Whisper); `all` puts AST's two class tokens in front of them; `pooled` is the tower's own single vector, for
    Whisper, which has none, the mean over time."""
    chunk: int = Field(default=8, ge=1, le=2**20)
    """Segments that go through the tower at once; bounds memory."""


class HfAudio(TowerEncoder):
    """Sound tower; see the module for what it loads.

    Raises ConfigError for a model of another kind, for preprocessing that does not fit it, and for segments longer than
    it can hear.
    """

    Config = Config
    config: Config
    kinds: ClassVar[tuple[Kind, ...]] = ("audio",)
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        text = config.model or config.weights
        if text is None:
            raise ConfigError("encoder `hf_audio` with neither `model` nor `weights`", "a folder or hub repository")
        folder = locate(text, config.revision, ("config.json", "preprocessor_config.json", "processor_config.json"))
        self._settings = _audio_config(folder)
        self._family = FAMILIES[self._settings.model_type]
        heard = _preprocessing(folder)
        with jsons.understood(f"{folder}: preprocessing of sounds"):
            if max(_numbers(heard), default=0) > MOST:
                raise ValueError(f"a number above {MOST:,}")
            self.listen = self._family.listen.from_dict(heard)
            self.rate = int(self.listen.sampling_rate)
            window = _window(self._settings, self.listen)
        if config.seconds is not None and not LEAST < config.seconds <= window:
            raise ConfigError(
                f"encoder `hf_audio` with `seconds: {config.seconds:g}`",
                f"at most {window:g}, which {text} hears at once, and more than {LEAST:g}",
            )
        self.seconds = config.seconds or window
        structure = {
            key: value for key, value in self._settings.to_diff_dict().items() if key != "transformers_version"
        }
        self.structure = {"model_type": self._settings.model_type, **structure, "preprocessing": heard}
        self.tower = self.seeded(self._build)
        self.measure(self._build)

    def _build(self) -> nn.Module:
        return self._family.model(self._settings).float()

    @property
    def input_shape(self) -> tuple[int, ...]:
        silence = np.zeros(int(self.seconds * self.rate), np.float32)
        return tuple(self._features([silence]).shape[1:])

    def _features(self, segments: list[np.ndarray]) -> Tensor:
        """Segments of sound, float32 [samples] each -> [F,...] as the tower takes them."""
        with torch.device("cpu"):  # also while the structure is built on the meta device
            found = self.listen(segments, sampling_rate=self.rate, return_tensors="np")[self._family.inputs]
            return torch.from_numpy(np.asarray(found, np.float32))

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Prepared segments [R,...] -> tokens [R,N,E]; the grid for `patches`, (1,1) for `pooled`, none for `all`."""
        wanted, prefix = self.config.tokens, 0
        if self.config.layers is None:
            out = tower(x)
            tokens = out.last_hidden_state
        else:
            tokens = self._layers(tower, x)
        if self._settings.model_type == AST:
            prefix = 2
            high = (self._settings.num_mel_bins - self._settings.patch_size) // self._settings.frequency_stride + 1
            grid = (high, (tokens.shape[1] - prefix) // high)
        elif self._settings.model_type == "whisper":
            grid = (1, tokens.shape[1])
        else:
            grid = (tokens.shape[2], tokens.shape[3])  # [R,E,pitch,time]
            tokens = tokens.flatten(2).transpose(1, 2)
        if wanted == "pooled":
            pooled = getattr(out, "pooler_output", None)
            return (tokens.mean(1) if pooled is None else pooled)[:, None], (1, 1)
        return (tokens, None if prefix else grid) if wanted == "all" else (tokens[:, prefix:], grid)

    def _layers(self, tower: nn.Module, x: Tensor) -> Tensor:
        """Prepared segments [R,...] -> what comes out of some blocks, each normed as the last one is, [R,N,layers*E]"""
        if self._family.norm is None:
            raise ConfigError(
                f"encoder `hf_audio` with layers {list(self.config.layers)} of a {self._settings.model_type}",
                "a tower of blocks of one width: AST, or the encoder of Whisper",
                "leave out `layers`",
            )
        indexes = self.config.indexes(len(tower.layers), f"the {type(tower).__name__}")
        norm = tower.get_submodule(self._family.norm)
        return side_by_side([norm(tokens) for tokens in block_outputs(lambda: tower(x), tower.layers, indexes)])

    def sampling(self, kind: Kind) -> Sampling:
        """The sound at the tower's rate, no more of it than is heard."""
        config = self.config
        return Sampling(rate=self.rate, seconds=config.frames * self.seconds if config.longer == "start" else None)

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """float32 [channels,samples] -> float32 [F,...], F as the sound's length asks for. Nothing is random.

        Raises MediaError for media that are not sound, and for sounds shorter than 25 ms.
        """
        assert media.rate is not None
        wave = resample(media.data, media.rate, self.rate).mean(0).numpy()
        if len(wave) < LEAST * self.rate:
            raise MediaError(
                Reason.unreadable_audio,
                f"{media.origin}: {len(wave) / self.rate * 1000:.1f} ms of sound",
                f"at least {LEAST * 1000:g} ms",
            )
        size = int(self.seconds * self.rate)
        return self._features([wave[begin : begin + size] for begin in self._starts(len(wave), size)])

    def _starts(self, samples: int, size: int) -> list[int]:
        """First sample of each segment of `size` samples."""
        most, slack = self.config.frames, max(SLACK * size, LEAST * self.rate)
        count = max(1, -int(-(samples - slack) // size))
        if count > most and self.config.longer == "spread" and most > 1:
            return [i * (samples - size) // (most - 1) for i in range(most)]
        return [i * size for i in range(min(count, most))]

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`; the rest of the model is left out. Raises CheckpointError."""
        if self.config.weights is None:
            return
        path = locate(self.config.weights, self.config.revision)
        tensors = read_tensors(path)
        if self._settings.model_type == AST:
            fill(self.tower, self._renamed(path), str(path))
            return
        prefix = next((p for p in self._family.prefixes if any(name.startswith(p) for name in tensors)), "")
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        fill(self.tower, own, str(path))

    def _renamed(self, path: Path) -> dict[str, Tensor]:
        """AST's tensors under the names of the installed library, which differ from those of its files and which only
        the library's own loader can translate; it fills gaps with random numbers, so what it did is looked at."""
        if path.suffix == ".safetensors":
            path = path.parent
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model, info = ASTModel.from_pretrained(
                path,
                config=self._settings,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}", "an AST in safetensors", "fetch it again") from error
        finally:
            if bars:
                logging.enable_progress_bar()
        own = model.state_dict()
        for name in info["missing_keys"]:
            own.pop(name, None)
        for name, theirs, _ in info["mismatched_keys"]:
            own[name] = torch.empty(theirs, device="meta")
        for name in info["unexpected_keys"]:
            if not name.startswith("classifier."):
                own[name] = torch.empty(0)
        return own


def _audio_config(folder: Path) -> PreTrainedConfig:
    tree = jsons.settings(folder if folder.suffix == ".json" else folder / "config.json")
    kind = tree.get("model_type", "")
    if kind == "clap":
        kind, tree = "clap_audio_model", tree.get("audio_config", {})
    if kind not in FAMILIES:
        raise ConfigError(
            f"{folder} holds a model of type {kind or 'unknown'!r}", f"one of {', '.join(FAMILIES)}, clap"
        )
    settings = plain_config(CONFIG_MAPPING[kind], {**tree, "model_type": kind}, str(folder))
    if getattr(settings, "enable_fusion", False):
        raise ConfigError(
            f"{folder} is a CLAP that mixes a whole sound into each segment (enable_fusion)",
            "one without, such as laion/clap-htsat-unfused",
        )
    return settings


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Settings of the feature extractor. Raises CheckpointError where the folder has none: there is no safe guess."""
    folder = folder.parent if folder.is_file() else folder
    if not (folder / "preprocessor_config.json").is_file() and (folder / "processor_config.json").is_file():
        return dict(jsons.read(folder / "processor_config.json").get("feature_extractor", {}))
    return jsons.read(folder / "preprocessor_config.json")


def _numbers(tree: Any) -> Iterator[float]:
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in values:
        yield from [abs(value)] if isinstance(value, int | float) else _numbers(value)


def _window(settings: PreTrainedConfig, listen: Any) -> float:
    """Seconds that the tower hears at once. Raises ConfigError when the feature extractor was made for another one."""
    if settings.model_type == AST:
        ours = (settings.max_length, settings.num_mel_bins)
        theirs = (listen.max_length, listen.num_mel_bins)
        seconds = listen.max_length * 0.01
    elif settings.model_type == "whisper":
        ours = (2 * settings.max_source_positions, settings.num_mel_bins)
        theirs = (listen.nb_max_frames, listen.feature_size)
        seconds = float(listen.chunk_length)
    else:
        ours, theirs = (settings.num_mel_bins,), (listen.feature_size,)
        seconds = float(listen.max_length_s)
    if ours != theirs:
        raise ConfigError(f"preprocessing for {theirs} frames and filters", f"{ours}, as the tower has them")
    return seconds
