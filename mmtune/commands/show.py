"""`mmtune show`: what a recipe builds, on the meta device, so that a model of any size is built in seconds."""

from __future__ import annotations

from mmtune import config


def run(recipe: str, overrides: list[str], groups: bool) -> None:
    """Print the parts, and who trains what.

    Raises:
        ConfigError: a recipe that cannot be used, or groups that do not fit the model.
    """
    from mmtune import model as models
    from mmtune import params
    from mmtune.recipe import Recipe

    loaded = config.load(Recipe, recipe, overrides)
    model = models.build(loaded.model, weights=False, device="meta")
    if loaded.model.freeze:
        params.freeze(model, loaded.model.freeze)
    parts = params.partition(model, loaded.groups)
    for name, branch in model.branches.items():
        shape = branch.encoder.shape
        places = branch.connector.tokens_out(shape.frames)
        print(
            f"branch {name}: {', '.join(branch.kinds)} -> {loaded.model.branches[name].encoder.name}, up to "
            f"{shape.frames} frames of {shape.tokens} tokens -> {loaded.model.branches[name].connector.name}, "
            f"up to {places} places"
        )
    llm = model.llm
    print(f"llm: width {llm.width}, depth {llm.depth}, heads {llm.heads}, vocabulary {llm.tokenizer.vocabulary}")
    print(params.table(model, parts, loaded.groups))
    if groups:
        for group, named in parts.items():
            print(f"\n{group}:")
            for name, parameter in named:
                print(f"  {name:80} {list(parameter.shape)}")
