"""Image towers of transformers: CLIP, SigLIP, DINOv2 and DINOv2 with registers.

`weights` is a folder or hub repository with `config.json`, safetensors and, mostly, `preprocessor_config.json`;
the whole two-tower model will do, its text side is left unread. `model` names the folder for the structure alone;
null takes `weights`. Code inside a repository is never run.

Keys: `tower.*`, those of the library's vision model without the leading `vision_model.` or `dinov2.`.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmtune import jsons
from mmtune.encoders import _known
from mmtune.encoders._image import ImageConfig, ImageEncoder, Pixels
from mmtune.encoders._layers import LayersConfig, block_outputs, side_by_side
from mmtune.encoders._settings import plain_config
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.encoders.base import weights_path
from mmtune.errors import CheckpointError, ConfigError, MmtuneError
from mmtune.paths import resolve

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
PREFIXES = ("vision_model.", "dinov2.", "dinov2_with_registers.")
NORMS = ("post_layernorm", "layernorm")
RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
UNUSED = ("embeddings.position_ids",)
PADDING = ("LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil")
"""Image processors that fill a picture up to a square where `do_pad` says so."""


class Config(LayersConfig, ImageConfig):
    name: str = "hf_vision"
    model: str | None = None
    """Folder or hub repository of `config.json`; null takes `weights`."""
    revision: str | None = None
    """Revision of a hub repository; null is the newest."""
    layer: int = -2
    """Block whose output is taken: -1 the last, -2 the one before it (LLaVA, PLLaVA). Not used by `tokens: pooled`."""
    tokens: Literal["patches", "all", "pooled"] = "patches"
    """`patches` drops class and register tokens and keeps the grid, `all` keeps them in front, `pooled` is the tower's
    own single vector."""
    norm: bool = False
    """Apply the tower's final layer norm to the tokens (usual for SigLIP and DINOv2 with `layer: -1`)."""


class HfVision(ImageEncoder):
    """Image tower; see the module for what it loads. Raises ConfigError for a model of another kind than these four."""

    Config = Config
    config: Config
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        text = config.model or config.weights
        if text is None:
            raise ConfigError("encoder `hf_vision` with neither `model` nor `weights`", "a folder or hub repository")
        settings, pixels = _trees(text, config.revision)
        self._settings = _vision_config(settings, text)
        self.structure = {"model_type": self._settings.model_type, **self._settings.to_diff_dict()}
        with jsons.understood(f"{text}: preprocessor_config.json"):
            self.pixels = _pixels(pixels, self._settings).overridden(config)
        try:
            self.tower = self.seeded(self._build)
            self.measure(self._build)
        except MmtuneError:
            raise
        except Exception as error:  # the library raises whatever sizes that do not go together lead to
            raise CheckpointError(
                f"{text}: no tower can be made of config.json: {jsons.told(error, self.structure)}",
                "sizes that go together",
                "copy the folder again",
            ) from error

    def _build(self) -> nn.Module:
        return AutoModel.from_config(self._settings)

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Frames [R,3,height,width] -> tokens [R,N,E]; the grid for `patches`, (1,1) for `pooled`, none for `all`."""
        config, size = self.config, self._settings.patch_size
        options: dict[str, Any] = {}
        if not self._settings.model_type.startswith("dinov2") and x.shape[-1] != self._settings.image_size:
            options["interpolate_pos_encoding"] = True
        if config.tokens == "pooled":
            return tower(x, **options).pooler_output[:, None], (1, 1)
        blocks: nn.ModuleList = tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer
        indexes = config.indexes(len(blocks), f"the {type(tower).__name__}", config.layer)
        found = block_outputs(lambda: tower(x, **options), blocks, indexes)
        if config.norm:
            norm = next(getattr(tower, name) for name in NORMS if hasattr(tower, name))
            found = [norm(tokens) for tokens in found]
        tokens = side_by_side(found)
        if config.tokens == "all":
            return tokens, None
        grid = (x.shape[-2] // size, x.shape[-1] // size)
        return tokens[:, tokens.shape[1] - grid[0] * grid[1] :], grid

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`; the text side is left out. Raises CheckpointError."""
        if self.config.weights is None:
            return
        path = locate(self.config.weights, self.config.revision)
        own: dict[str, Tensor] = {}
        tensors = read_tensors(path)
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
        for name, tensor in tensors.items():
            if name.startswith(prefix) and name.removeprefix(prefix) not in UNUSED:
                own[name.removeprefix(prefix)] = tensor
        fill(self.tower, own, str(path))


def _trees(text: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json (empty when there is none) of a folder or repository."""
    if not weights_path(str(resolve(text))).exists() and (known := _known.trees(text)):
        return known
    folder = locate(text, revision, ("config.json", "preprocessor_config.json"))
    file = folder / "preprocessor_config.json"
    settings = jsons.settings(folder if folder.suffix == ".json" else folder / "config.json")
    return settings, jsons.read(file) if os.path.lexists(file) else {}


def _vision_config(tree: dict[str, Any], origin: str) -> PreTrainedConfig:
    kind = tree.get("model_type", "")
    if "vision_config" in tree:
        kind = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(kind, kind)
        tree = {key: value for key, value in tree["vision_config"].items() if key != "model_type"}
    if kind not in TOWERS:
        raise ConfigError(
            f"{origin} holds a model of type {kind or 'unknown'!r}",
            f"one of {', '.join(TOWERS)}",
            "see `clip`, `timm_vit`",
        )
    return plain_config(CONFIG_MAPPING[kind], tree, origin)


def _pixels(tree: dict[str, Any], settings: PreTrainedConfig) -> Pixels:
    """Preprocessing by its settings; without any, the middle of the picture at the model's size, CLIP's statistics."""
    wanted = tree.get("size", settings.image_size)
    crop = tree.get("crop_size", wanted) if tree.get("do_center_crop", True) else wanted
    short = wanted.get("shortest_edge") if isinstance(wanted, dict) else wanted
    stretch = short is None or not tree.get("do_center_crop", True)
    if isinstance(crop, dict):
        crop = (crop["height"], crop["width"]) if "height" in crop else crop["shortest_edge"]
    size = (crop, crop) if isinstance(crop, int) else tuple(crop)
    changes = {name: tuple(tree[key]) for name, key in (("mean", "image_mean"), ("std", "image_std")) if key in tree}
    if "resample" in tree:
        changes["interpolation"] = RESAMPLE.get(tree["resample"], "bicubic")
    resize = "stretch" if stretch else "crop"
    if tree.get("do_pad") and tree.get("image_processor_type") in PADDING:
        resize = "pad"
    return Pixels(size=size, short=short or min(size), resize=resize, **changes)
