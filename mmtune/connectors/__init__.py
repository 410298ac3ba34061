"""Connectors: `Features` to `Embeds`. One file per connector; the file name is the name in a recipe."""
