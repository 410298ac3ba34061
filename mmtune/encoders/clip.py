"""Any image tower of open_clip: ViT, ResNet, and the timm towers (SigLIP, EVA-CLIP, ConvNeXt) that it wraps.

`weights` is a folder with `open_clip_config.json` and `open_clip_model.safetensors` (what open_clip pushes to a hub), a
.safetensors file, or a hub repository; the text tower in it is left unread. `model` is the architecture: a name that
open_clip knows, a folder or a .json file in its layout; null reads it from the folder of `weights`.

Keys: `visual.*`, open_clip's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmtune import jsons
from mmtune.encoders._image import ImageConfig, ImageEncoder, Pixels
from mmtune.encoders._layers import LayersConfig, in_order, one_grid, side_by_side
from mmtune.encoders._thin import thin
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.errors import CheckpointError, ConfigError
from mmtune.layers.positions import resize_grid
from mmtune.paths import resolve

with thin("open_clip", "torchvision", "torchvision.ops"):
    from open_clip.transformer import QuickGELU, VisionTransformer

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
RESIZE = {"shortest": "crop", "longest": "fit", "squash": "stretch"}
PLAIN = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
"""What a config says of a ViT without special parts that leaves nothing to open_clip's defaults."""


class Config(LayersConfig, ImageConfig):
    name: str = "clip"
    model: str | None = None
    """Architecture: a name that open_clip knows (`ViT-L-14-336-quickgelu`), or a folder or .json file in its layout.
    Null reads it from `weights`. The weights of OpenAI need the `-quickgelu` names."""
    revision: str | None = None
    """Revision of a hub repository; null is the newest."""
    layer: int = -2
    """Block whose output is taken: -1 the last, -2 the one before it (LLaVA, PLLaVA). Not used by `tokens: pooled`."""
    tokens: Literal["patches", "all", "pooled"] = "patches"
    """`patches` drops the class token and keeps the grid, `all` keeps the class token in front, `pooled` is the tower's
    own single vector, projected, as it is compared with text."""
    norm: bool = False
    """Apply the tower's final layer norm to the tokens (LLaMA-Adapter does, LLaVA does not)."""
    project: bool = False
    """Multiply the tokens by the tower's output matrix; plain ViT towers only, and usually after `norm`."""


class Clip(ImageEncoder):
    """Image tower; see the module for what it loads. Pixel statistics come from the folder's preprocessing config, else
    from the architecture's published weights where these agree, else they are CLIP's.

    Raises ConfigError for an unknown architecture or options that the tower cannot give.
    """

    Config = Config
    config: Config
    tower_name = "visual"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with jsons.understood(f"{config.model or config.weights}: {CONFIG}"):
            self.structure, preprocess = _read_structure(config)
            self.pixels = _pixels(self.structure, preprocess).overridden(config)
            self.visual = self.seeded(self._build)
        self.measure(self._build)

    def _build(self) -> nn.Module:
        vision = dict(self.structure["vision_cfg"])
        vision["image_size"] = self.pixels.size if self.pixels.size[0] != self.pixels.size[1] else self.pixels.size[0]
        quick = bool(self.structure.get("quick_gelu", False))
        if vision.keys() == PLAIN and isinstance(vision["layers"], int):
            # What open_clip's builder makes of it too, but the builder comes with every other kind of tower.
            heads = vision["width"] // vision.pop("head_width")
            act = QuickGELU if quick else nn.GELU
            return VisionTransformer(**vision, heads=heads, act_layer=act, output_dim=self.structure["embed_dim"])
        from open_clip.model import _build_vision_tower

        vision |= {"timm_model_pretrained": False, "output_tokens": False}
        name = str(vision.get("timm_model_name", ""))
        if ":" in name or "/" in name:  # what would be fetched, or read from elsewhere
            raise ConfigError(
                f"the architecture names the tower {name!r}",
                "the plain name of an architecture of timm, which is built here from the numbers beside it",
                "use open_clip's own config of this model",
            )
        if self.config.size is not None and "timm_model_name" in vision:
            raise ConfigError("`size` with a timm tower", "the size that it was trained with", "leave `size` out")
        return _build_vision_tower(self.structure["embed_dim"], vision, quick)

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Frames [R,3,height,width] -> tokens [R,N,E]; the grid for `patches`, (1,1) for `pooled`, none for `all`."""
        config = self.config
        if config.tokens == "pooled":
            return tower(x)[:, None], (1, 1)
        plain = isinstance(tower, VisionTransformer)
        if config.project and not plain:
            raise ConfigError("`project: true` with a tower that is no plain ViT", "`project: false`")
        indexes = config.indexes(_depth(tower), f"the tower `{config.model or config.weights}`", config.layer)
        out = tower.forward_intermediates(
            x,
            indices=indexes,
            stop_early=True,
            normalize_intermediates=config.norm,
            intermediates_only=True,
            output_fmt="NLC" if plain else "NCHW",
            output_extra_tokens=config.tokens == "all",
        )
        found = out["image_intermediates"]
        grid = tuple(tower.grid_size) if plain else one_grid(found)
        if not plain:
            found = [tokens.flatten(2).transpose(1, 2) for tokens in found]
        if config.tokens == "all":
            prefix = out.get("image_intermediates_prefix")
            if not prefix:
                raise ConfigError("`tokens: all` with a tower without class token", "`tokens: patches`")
            found, grid = [torch.cat(both, dim=1) for both in zip(prefix, found, strict=True)], None
        if config.project:
            found = [tokens @ tower.proj for tokens in found]
        return side_by_side(in_order(found, indexes)), grid

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`; tensors of the text tower are left out. Raises CheckpointError."""
        if self.config.weights is None:
            return
        path = locate(self.config.weights, self.config.revision, (CONFIG, "open_clip_*model.safetensors"))
        tensors = read_tensors(path, FILES)
        visual = {name.removeprefix("visual."): t for name, t in tensors.items() if name.startswith("visual.")}
        if not visual:
            raise CheckpointError(
                f"{path}: no tensor is called visual.*, the first is {min(tensors, default='absent')}",
                "open_clip's own layout",
                "convert with open_clip, or use the encoder `hf_vision` for a transformers folder",
            )
        table = visual.get("positional_embedding")
        if table is not None and isinstance(self.visual, VisionTransformer) and self.config.size is not None:
            side = round((table.shape[0] - 1) ** 0.5)
            visual["positional_embedding"] = resize_grid(table, (side, side), tuple(self.visual.grid_size), prefix=1)
        fill(self.visual, visual, str(path))


def _depth(tower: nn.Module) -> int:
    """Blocks of a ViT, stages of a convolutional tower."""
    if isinstance(tower, VisionTransformer):
        return len(tower.transformer.resblocks)
    if hasattr(tower, "trunk"):  # a tower of timm
        blocks = getattr(tower.trunk, "blocks", None)
        return len(blocks if blocks is not None else tower.trunk.feature_info)
    return 5  # open_clip's ResNet: the stem and four stages


def _read_structure(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's model config and preprocessing config, which may be empty."""
    text = config.model or config.weights
    if text is None:
        raise ConfigError("encoder `clip` with neither `model` nor `weights`", "an architecture", "model: ViT-B-32")
    known, preprocess = _listed(text), {}
    if known is None:
        if config.model is not None and "/" not in text and not Path(str(resolve(text))).exists():
            raise ConfigError(
                f"encoder `clip` has no architecture {text!r}",
                "a name from `open_clip.list_models()`, a folder, or a .json file",
                "ViT-B-32, ViT-L-14-336-quickgelu, ViT-SO400M-14-SigLIP-384, ...",
            )
        path = locate(text, config.revision, (CONFIG,))
        if path.suffix == ".safetensors":
            path = path.parent
        known = jsons.settings(path if path.suffix == ".json" else path / CONFIG)
        preprocess = known.get("preprocess_cfg", {})
        known = known.get("model_cfg", known)
    else:
        preprocess = _published(text)
    if config.weights is not None and config.weights != text:
        folder = Path(str(resolve(config.weights))).expanduser()
        if (folder / CONFIG).is_file():
            preprocess = jsons.read(folder / CONFIG).get("preprocess_cfg", {})
    missing = {"embed_dim", "vision_cfg"} - known.keys()
    if missing:
        raise ConfigError(f"{text}: the architecture lacks {', '.join(sorted(missing))}", "open_clip's model config")
    return {key: known[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in known}, preprocess


def _listed(text: str) -> dict[str, Any] | None:
    """The config of an architecture that open_clip has by this name, which wins over a folder of that name."""
    if not text.replace("-", "").replace("_", "").isalnum():  # a path, `mmtune:...` or `owner/name`: no need to look
        return None
    import open_clip

    return open_clip.get_model_config(text) if text in open_clip.list_models() else None


def _published(model: str) -> dict[str, Any]:
    """Statistics of the published weights of an architecture where all of them agree (SigLIP's do, CLIP's need not)."""
    import open_clip

    configs = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    first = configs[0] if configs else {}
    keys = [key for key in ("mean", "std", "interpolation", "resize_mode") if key in first]
    return {key: first[key] for key in keys if all(c.get(key) == first[key] for c in configs)}


def _pixels(structure: dict[str, Any], preprocess: dict[str, Any]) -> Pixels:
    size = structure["vision_cfg"].get("image_size") or preprocess.get("size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    changes = {key: tuple(preprocess[key]) for key in ("mean", "std") if preprocess.get(key)}
    if "interpolation" in preprocess:
        changes["interpolation"] = "bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic"
    resize = RESIZE[preprocess.get("resize_mode", "shortest")]
    if resize == "fit":
        changes["fill"] = (int(preprocess.get("fill_color", 0)),) * 3
    return Pixels(size=size, short=min(size), resize=resize, **changes)
