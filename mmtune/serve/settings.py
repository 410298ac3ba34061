"""How answers are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from mmtune.errors import UsageError


@dataclass
class Settings:
    """How answers are drawn."""

    max_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; higher is more varied."""
    seed: int = 0
    """Makes a drawn answer repeatable; has no effect at temperature 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            self.change(name, value)

    def change(self, name: str, value: float) -> None:
        """Set one by its name.

        Raises:
            UsageError: the value is out of range; the setting stays as it is.
        """
        lowest = 1 if name == "max_tokens" else 0
        if not isinstance(value, (int, float)) or not lowest <= value < 2**63:  # refuses NaN too
            raise UsageError(seen=f"{name} {value}", expected=f"at least {lowest}")
        setattr(self, name, value)

    def read(self, name: str, text: str) -> None:
        """Set one by its name and value as a person writes them. Raises UsageError."""
        values = vars(self)
        if name not in values:
            raise UsageError(seen=f"no setting {name!r}", expected="one of " + ", ".join(values))
        try:
            value = type(values[name])(text.strip())
        except ValueError:
            kind = "a whole number" if isinstance(values[name], int) else "a number"
            raise UsageError(seen=f"{name} {text.strip() or '(nothing)'}", expected=kind) from None
        self.change(name, value)
