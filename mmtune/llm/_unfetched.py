"""The place of a tokenizer whose files are not here: it knows how many ids there are and refuses to make any."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from mmtune.errors import CheckpointError
from mmtune.llm.base import Before, Tokenizer


class Unfetched(Tokenizer):
    """For a structure that is only looked at.

    Args:
        origin: folder or repository that it would come from.
        vocabulary: ids of the model.
    """

    pad = 0
    bos = None
    eos = None

    def __init__(self, origin: str, vocabulary: int) -> None:
        self.origin = origin
        self.vocabulary = vocabulary

    def _refuse(self) -> typing.NoReturn:
        raise CheckpointError(
            f"the tokenizer of {self.origin} was not fetched", "a model with its weights", "load its weights first"
        )

    def encode(self, text: str, after: Before = "start") -> list[int]:
        self._refuse()

    def encode_special(self, text: str, after: Before = "start") -> list[int]:
        self._refuse()

    def decode(self, ids: Sequence[int]) -> str:
        self._refuse()

    def fingerprint(self) -> str:
        self._refuse()
