"""Describes a picture by a model of transformers in a folder; the only file of the room that imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.errors import CheckpointError

if TYPE_CHECKING:
    from numpy import ndarray


class Describer:
    """A pipeline "image-text-to-text". Only safetensors are read, and no code of the folder runs.

    Args:
        folder: model and processor as transformers saves them.
        device: auto, cpu, cuda, ...

    Raises:
        CheckpointError: transformers makes no such pipeline of the folder.
    """

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import pipeline

        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json", "the folder of a model, as transformers saves it")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._pipe: Any = pipeline(
                "image-text-to-text",
                model=str(folder),
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # it raises whatever its parts raise
            raise CheckpointError(
                f"{folder}: transformers cannot describe pictures with it ({' '.join(str(error).split())[:200]})",
                "a model for image-text-to-text with its processor",
            ) from error
        self._chats = bool(getattr(self._pipe.processor, "chat_template", None))

    def describe(self, picture: ndarray, request: str, otherwise: str, max_tokens: int) -> str:
        """What the model says of a picture, uint8 [height,width,3].

        Args:
            request: the question; a model without a chat template continues it, and it may be empty.
            otherwise: what a model with a chat template is asked where the request is empty.
        """
        from PIL import Image

        image = Image.fromarray(picture)
        settings = {"max_new_tokens": max_tokens, "do_sample": False}
        if self._chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": request or otherwise}]
            said = self._pipe(
                text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=settings
            )
        else:
            said = self._pipe(images=image, text=request, return_full_text=False, generate_kwargs=settings)
        return str(said[0]["generated_text"]).strip()
