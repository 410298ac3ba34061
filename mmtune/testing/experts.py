"""Checks of experts: a description that is quick to read. What one finds is its author's to test."""

from __future__ import annotations

from mmtune.experts.base import AFTERWARDS, Expert, ExpertConfig
from mmtune.types import KINDS


def make(cls: type[Expert], settings: ExpertConfig) -> Expert:
    """An expert that was not started."""
    return cls(settings)


def kinds_are_known(expert: Expert) -> None:
    """It looks at kinds of media that there are."""
    assert expert.kinds and set(expert.kinds) <= set(KINDS), f"kinds {expert.kinds}"


def version_is_the_same_each_time(expert: Expert) -> None:
    """Results are kept under it; another expert of the same config has the same."""
    version = expert.version
    assert isinstance(version, str) and version, f"version {version!r}"
    assert type(expert)(expert.config).version == version, "another version the second time"


def whether_it_heeds_the_question_is_said(expert: Expert) -> None:
    """`asks` is a truth value, known before it looks."""
    assert isinstance(expert.asks, bool), f"asks is {expert.asks!r}"


def fields_that_count_afterwards_exist(expert: Expert) -> None:
    """Every config has the fields that the program reads itself."""
    assert set(type(expert.config).model_fields) >= AFTERWARDS, "fields of ExpertConfig are gone"


CHECKS = (
    kinds_are_known,
    version_is_the_same_each_time,
    whether_it_heeds_the_question_is_said,
    fields_that_count_afterwards_exist,
)
