"""An engine without a model: answers are scripted, times are none, so that a conversation can be tested alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmtune.errors import MediaError, Reason, UsageError
from mmtune.serve.engine import MediaUse
from mmtune.types import MediaRef, Quote, Sample


@dataclass
class FakePrompt:
    tokens: int
    media: tuple[MediaUse, ...]
    sample: Sample
    left_out: int = 0


@dataclass
class FakeEngine:
    """Says the bytes of `answer`, or of the prompt itself, one token each, `pause` seconds apart."""

    answer: str = "a red circle"
    echo: bool = False
    pause: float = 0.0
    run: Path = Path("fake")
    samples: list[Sample] = field(default_factory=list)
    drawn: list[tuple[int, float, int]] = field(default_factory=list)

    def look(self, ref: MediaRef) -> MediaUse:
        if ref.read() == b"broken":
            raise MediaError(Reason.unreadable_image, f"{ref.origin} is broken")
        return MediaUse(ref, ref.digest, "sight", 1, 4, 0.5)

    def digest(self, ref: MediaRef) -> str:
        return ref.digest

    def prompt(self, sample: Sample) -> FakePrompt:
        self.samples.append(sample)
        media = tuple(self.look(ref) for ref in sample.media)
        return FakePrompt(len(self.rendered(sample)), media, sample)

    def stream(self, prompt: FakePrompt, max_tokens: int, temperature: float, seed: int) -> Iterator[int]:
        self.drawn.append((max_tokens, temperature, seed))
        said = self.rendered(prompt.sample) if self.echo else self.answer
        for byte in said.encode()[:max_tokens]:
            time.sleep(self.pause)
            yield byte

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def rendered(self, sample: Sample) -> str:
        def word(part: object) -> str:
            match part:
                case MediaRef():
                    return f"<{part.kind}>"
                case Quote():
                    return f"[{part.source}: {part.text}]"
            return str(part)

        lines = [f"{turn.role}: {''.join(map(word, turn.parts))}" for turn in sample.turns]
        return "\n".join([*lines, "assistant:"])


@dataclass
class FakeRunInfo:
    """A plan whose engine comes after `wait` seconds."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    wait: float = 0.0
    fault: Exception | None = None
    run: Path = Path("fake")
    name: str = "fake"
    notice: str = "a fake model for tests"
    max_tokens: int = 64
    temperature: float = 0.0
    kinds: tuple[str, ...] = ("image",)
    experts: tuple[dict, ...] = ()
    limits: None = None
    packaged: bool = False

    def check(self, kind: str, origin: str) -> None:
        if kind not in self.kinds:
            raise UsageError(seen=f"{origin} is {kind}", expected=", ".join(self.kinds))

    def load(self, decoders: bool = False) -> FakeEngine:
        time.sleep(self.wait)
        if self.fault:
            raise self.fault
        return self.engine
