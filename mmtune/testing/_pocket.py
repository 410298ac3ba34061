"""The language model that ships with mmtune, for checks that need one: a million weights."""

from __future__ import annotations

from mmtune import config, model
from mmtune.llm.base import LLM
from mmtune.model import MultimodalModel
from mmtune.recipe import ModelSection, Recipe


def section() -> ModelSection:
    """The model of the recipe `pocket`, its language model alone."""
    return config.load(Recipe, "pocket").model.model_copy(update={"branches": {}})


def llm() -> LLM:
    """Frozen, in evaluation mode."""
    return text_model().llm


def text_model() -> MultimodalModel:
    """The language model with a fusion that nothing goes through."""
    return model.build(section())
