"""A whole folder of LLaVA as `transformers` itself opens it, to be compared with what we make of it.

Nothing is fetched, and no code of the folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmtune.errors import CheckpointError


class Llava:
    """LLaVA 1.5 or 1.6 of `transformers`, in float32.

    Raises CheckpointError when the library refuses the folder, or does not find every weight in it and no other.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText

        from mmtune.llm.hf import _quiet

        try:
            with _quiet():
                self.model, told = AutoModelForImageTextToText.from_pretrained(
                    str(folder),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:  # the library raises whatever a folder that makes no sense leads to
            raise _refused("the model", error) from error
        self.model.eval()
        wrong = [
            f"{key.removesuffix('_keys')} {name}" for key in ("missing_keys", "unexpected_keys") for name in told[key]
        ]
        wrong += [f"misshapen {one}" for one in told.get("mismatched_keys") or ()]
        if wrong:
            raise CheckpointError(
                "transformers opens the folder with " + ", ".join(map(str, wrong[:8])),
                "every weight in its place, and no other",
                "keep the run folder: the layout has no place for this tower or language model",
            )
        self.folder = folder
        self.tiled = type(self.model).__name__.startswith("LlavaNext")

    def pixels(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """(what the folder's own image processor makes of a picture, deviation of each channel).

        uint8 [3,height,width] -> float32 [tiles,3,size,size], float32 [3]
        """
        from transformers import AutoImageProcessor

        try:
            reader = AutoImageProcessor.from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False
            )
            made = reader(Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
        except Exception as error:
            raise _refused("the image processor", error) from error
        made = torch.as_tensor(made)
        return made.reshape(-1, *made.shape[-3:]), torch.tensor(reader.image_std)

    def logits(self, ids: Tensor, slot: tuple[int, int], pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits [T,V] for ids int64 [T] with a picture at (start, length), its pixels [tiles,3,...] and its size."""
        ids = ids.clone()
        ids[slot[0] : slot[0] + slot[1]] = self.model.config.image_token_id
        given: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        given["pixel_values"] = pixels[None] if self.tiled else pixels
        if self.tiled:
            given["image_sizes"] = torch.tensor([list(size)])
        try:
            with torch.no_grad():
                return self.model(**given).logits[0].float()
        except Exception as error:
            raise _refused("the forward pass", error) from error


def _refused(what: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"transformers refuses {what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "a folder that it can use",
        "keep the run folder: the layout has no place for this run",
    )
