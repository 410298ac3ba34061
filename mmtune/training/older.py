"""Recipes in states that were saved before a field was there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter


def with_new_fields(stored: Any, plain: Any, now: Any) -> Any:
    """What a state says of its recipe, with the fields that it could not know yet, where the run of today has them at
    their default: a default does what was done before there was the field.

    Args:
        stored: as the state has it.
        plain: the same of today's run; what is not in it is not compared and not added.
        now: the recipe of today's run, or the part of it that is meant.
    """
    if not isinstance(stored, Mapping) or not isinstance(plain, Mapping):
        return stored
    model = isinstance(now, BaseModel)
    parts = {name: getattr(now, name) for name in type(now).model_fields} if model else now
    parts = parts if isinstance(parts, Mapping) else {}
    filled = {name: with_new_fields(held, plain.get(name), parts.get(name)) for name, held in stored.items()}
    for name in (plain.keys() & parts.keys()) - stored.keys() if model else ():
        field = type(now).model_fields[name]
        if not field.is_required():
            kind = TypeAdapter(Annotated[field.annotation, "checked as the field", *field.metadata])
            if kind.validate_python(field.get_default(call_default_factory=True)) == parts[name]:
                filled[name] = plain[name]
    return filled
