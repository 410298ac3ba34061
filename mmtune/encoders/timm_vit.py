"""Any image tower of timm: the ViTs (DeiT, DINOv2, SigLIP, EVA-02, BEiT, ...), and ConvNeXt, Swin and ResNet besides.

`weights` is a folder with `config.json` and `model.safetensors` as timm pushes them to a hub, a .safetensors file, or a
hub repository. `model` is the architecture: a name that timm knows, with or without the tag of its weights
(`vit_base_patch16_224.augreg_in21k`), whose preprocessing is then taken; null reads it from the folder of `weights`.

Keys: `tower.*`, timm's own. The classifier of the weights is left unread unless `classes` asks for one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field, field_validator
from timm.data import resolve_data_config
from timm.models import is_model
from torch import Tensor, nn

from mmtune import jsons
from mmtune.encoders._image import ImageConfig, ImageEncoder, Pixels
from mmtune.encoders._layers import LayersConfig, in_order, one_grid, side_by_side
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.layers.positions import resize_grid

CONFIG = "config.json"
FILES = ("model.safetensors", "open_clip_model.safetensors")
RESIZE = {"center": "crop", "squash": "stretch", "border": "fit"}
OWN = ("img_size", "num_classes")
"""Arguments of a tower that have a setting of their own here."""
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")
"""Arguments that would fetch or read something, or build another kind of module."""

Value = bool | int | float | str | tuple[int, ...] | None


class Config(LayersConfig, ImageConfig):
    name: str = "timm_vit"
    model: str | None = None
    """Architecture, as timm calls it (`deit_base_patch16_224`); null reads it from the folder of `weights`."""
    revision: str | None = None
    """Revision of a hub repository; null is the newest."""
    args: dict[str, Value] = {}
    """Further arguments of the architecture, such as `{patch_size: 8, depth: 2}`; what timm's own config.json has
    under `model_args`."""
    layer: int = -1
    """Block (of other towers: stage) whose output is taken: -1 the last, -2 the one before it. Not used by `tokens:
    pooled` and `logits`."""
    tokens: Literal["patches", "all", "pooled", "logits"] = "patches"
    """`patches` drops class, register and distillation tokens and keeps the grid, `all` keeps them in front, `pooled`
    is the vector before the classifier, `logits` the classifier's answer."""
    norm: bool = True
    """Apply the tower's final norm to the tokens, where it has one that fits; with `layer: -1` the tokens are those of
    timm's `forward_features`."""
    classes: int = Field(default=0, ge=0)
    """Answers of the classifier, which is a part of the tower then; 0 builds none."""

    @field_validator("args")
    @classmethod
    def _plain(cls, args: dict[str, Value]) -> dict[str, Value]:
        wrong = sorted(args.keys() & {*OWN, *REFUSED})
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be set here; `size` and `classes` are settings of their own")
        return args


class TimmVit(ImageEncoder):
    """Image tower; see the module for what it loads. Pixel statistics are those of the weights that are named.

    Raises ConfigError for an unknown architecture, arguments that it does not take, or tokens that it cannot give.
    """

    Config = Config
    config: Config
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with jsons.understood(f"{config.weights}: {CONFIG}"):
            self._architecture, self._args, self._published = _read_structure(config)
        bare = self._architecture.partition(".")[0]
        self.structure = {"architecture": bare, "args": self._args, "classes": config.classes}
        self.tower = self.seeded(lambda: self._build(None))
        with jsons.understood(f"{config.weights}: {CONFIG}: input_size"):
            trained = self._published.get("input_size", (0, 0))[1]
        size = config.size or (trained if _side(self.tower) not in (None, trained) else None) or None
        if size is not None and size != _side(self.tower):
            self.tower = self.seeded(lambda: self._build(size))
        with jsons.understood(f"{config.weights}: {CONFIG}: pretrained_cfg"):
            self.pixels = _pixels(self.tower, self._published).overridden(config)
        self.measure(lambda: self._build(size))

    def _build(self, size: int | None) -> nn.Module:
        args = {key: list(value) if isinstance(value, tuple) else value for key, value in self._args.items()}
        if size is not None:
            args["img_size"] = size
        try:
            tower = timm.create_model(self._architecture, pretrained=False, num_classes=self.config.classes, **args)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"{self._architecture} with {args or 'no arguments'}: {error}",
                "arguments that this architecture takes",
                "`size` is for towers with a position table; convolutions take any size without it" if size else "",
            ) from error
        if not hasattr(tower, "forward_intermediates") or not getattr(tower, "feature_info", None):
            raise ConfigError(
                f"{self._architecture}, whose blocks cannot be asked for", "a tower with forward_intermediates"
            )
        return tower

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Frames [R,3,height,width] -> tokens [R,N,E]; the grid for `patches`, none for `all`, else (1,1)."""
        config = self.config
        if config.tokens == "logits":
            if not config.classes:
                raise ConfigError("`tokens: logits` without `classes`", "the number of classes")
            return tower(x)[:, None], (1, 1)
        if config.tokens == "pooled":
            return tower.forward_head(tower.forward_features(x), pre_logits=True)[:, None], (1, 1)
        prefix = getattr(tower, "num_prefix_tokens", 0) or 0
        if config.tokens == "all" and not prefix:
            raise ConfigError("`tokens: all` with a tower without class token", "`tokens: patches`")
        indexes = config.indexes(len(tower.feature_info), f"the tower `{self._architecture}`", config.layer)
        how: dict[str, Any] = {"return_prefix_tokens": True} if prefix else {}
        outs = tower.forward_intermediates(
            x, indices=indexes, norm=config.norm, stop_early=True, intermediates_only=True, output_fmt="NCHW", **how
        )
        outs = in_order(outs, indexes)
        pictures = [out[0] if prefix else out for out in outs]
        grid = one_grid(pictures)
        found = [patches.flatten(2).transpose(1, 2) for patches in pictures]
        if config.tokens == "all":
            found, grid = [torch.cat([out[1], tokens], dim=1) for out, tokens in zip(outs, found, strict=True)], None
        return side_by_side(found), grid

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`, a classifier only where one is asked for. Raises CheckpointError."""
        if self.config.weights is None:
            return
        path = locate(self.config.weights, self.config.revision)
        tensors = read_tensors(path, FILES)
        if not self.config.classes:
            heads = _classifiers(self.tower, self._published)
            tensors = {name: t for name, t in tensors.items() if not name.startswith(heads)}
        table = tensors.get("pos_embed")
        own = getattr(self.tower, "pos_embed", None)
        if table is not None and own is not None and table.shape != own.shape and self.config.size is not None:
            tensors["pos_embed"] = _resized(self.tower, table, str(path))
        fill(self.tower, tensors, str(path))


def _read_structure(config: Config) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, its arguments, and what the folder says of its weights (empty where there is none)."""
    folder: dict[str, Any] = {}
    if config.model is None:
        if config.weights is None:
            raise ConfigError("encoder `timm_vit` with neither `model` nor `weights`", "an architecture")
        folder = _folder_config(locate(config.weights, config.revision, (CONFIG,)))
        if not folder:
            raise ConfigError(f"{config.weights} says no architecture", f"a folder with {CONFIG}, or `model`")
    elif config.weights is not None:
        here = Path(config.weights).expanduser()
        folder = _folder_config(here) if here.exists() else {}
    name = config.model or str(folder.get("architecture", ""))
    if not is_model(name.partition(".")[0]):
        alike = timm.list_models(f"*{name.partition('_')[0]}*")[:6] if name else []
        raise ConfigError(
            f"encoder `timm_vit` has no architecture {name!r}",
            "a name from `timm.list_models()`",
            ", ".join(alike) or "vit_base_patch16_224, deit_base_patch16_224, vit_base_patch14_reg4_dinov2, ...",
        )
    published, said = folder.get("pretrained_cfg") or {}, folder.get("model_args") or {}
    if not isinstance(published, dict) or not isinstance(said, dict):
        raise CheckpointError(f"{config.weights}: a {CONFIG} of another kind", "the layout that timm pushes to a hub")
    size = said.get("img_size", 0)
    if isinstance(size, int) and size:
        published = {**published, "input_size": (3, size, size)}
    args = {key: value for key, value in said.items() if key not in (*OWN, *REFUSED)}
    return name, {**args, **config.args}, published


def _folder_config(path: Path) -> dict[str, Any]:
    file = (path.parent if path.is_file() else path) / CONFIG
    tree = jsons.settings(file) if file.is_file() else {}
    return tree if "architecture" in tree else {}


def _side(tower: nn.Module) -> int | None:
    size = getattr(getattr(tower, "patch_embed", None), "img_size", None)
    return size[0] if size is not None and len(set(size)) == 1 else None


def _pixels(tower: nn.Module, published: dict[str, Any]) -> Pixels:
    """Preprocessing that belongs to the weights: of their folder, else of the named architecture."""
    data = resolve_data_config({}, pretrained_cfg={**tower.pretrained_cfg, **published})
    side = _side(tower)
    size = (side, side) if side else tuple(data["input_size"][1:])
    return Pixels(
        size=size,
        short=math.floor(min(size) / data["crop_pct"]),
        resize=RESIZE.get(data["crop_mode"], "crop"),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
    )


def _classifiers(tower: nn.Module, published: dict[str, Any]) -> tuple[str, ...]:
    """Beginnings of the names of the classifier's tensors."""
    said = published.get("classifier", tower.pretrained_cfg.get("classifier")) or "head"
    return tuple(f"{name}." for name in ([said] if isinstance(said, str) else said))


def _resized(tower: nn.Module, table: Tensor, origin: str) -> Tensor:
    """A position table [1,P,E] of another square grid for the tower's grid."""
    prefix = 0 if getattr(tower, "no_embed_class", False) else tower.num_prefix_tokens
    side = math.isqrt(table.shape[1] - prefix)
    try:
        return resize_grid(table[0], (side, side), tuple(tower.patch_embed.grid_size), prefix)[None]
    except ModelError as error:
        raise CheckpointError(f"{origin}: {error.seen}", error.expected, error.hint) from error
