"""What happens in one clip of the pocket world: solids, at most two events, a sign, a sound.

A scene is a plain value drawn from a seed; pictures, sounds, point clouds and words are all functions of it.
Times are fractions of the clip (0 at its start, 1 at its end), lengths are fractions of one of the nine places.

Which split a scene belongs to is a function of what it shows (see `Scene.split`), so a scene of the test split, with
whatever jitter, noise or background, can never be drawn for training, nor can a scene that begins with the same
picture.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = (
    "top-left", "top-center", "top-right",
    "middle-left", "center", "middle-right",
    "bottom-left", "bottom-center", "bottom-right",
)  # fmt: skip
DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up-left": (-1, -1), "up-right": (1, -1), "down-left": (-1, 1), "down-right": (1, 1),
}  # fmt: skip
STRAIGHT = tuple(DIRECTIONS)[:4]
SIGNS = (
    "stop", "go", "exit", "open", "shop", "cafe", "taxi", "bus", "park", "zoo", "bank", "milk", "fish", "book",
    "lake", "home", "sun", "moon", "tea", "hot", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "12", "15",
    "20", "24", "30", "42", "50", "64", "77", "99",
)  # fmt: skip
SOUNDS = ("beep", "buzz", "click", "bell", "hiss", "chirp")
PITCHES = ("low", "high")
LEVELS = ("easy", "full")
SPLITS = ("train", "val", "test")

TURNABLE = ("square", "triangle", "star", "cross")
"""Shapes whose turning can be seen."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one solid between the times `start` and `stop`."""

    kind: str
    """move, bounce (out and back), grow, shrink, vanish, appear or spin."""
    start: float
    stop: float
    direction: str | None = None
    """Of a move or bounce: a key of `DIRECTIONS`."""
    speed: str | None = None
    """slow or fast, where the speed is part of what can be asked; else None."""

    def progress(self, time: float) -> float:
        """How much of the event is over at `time`, in 0..1."""
        return min(1.0, max(0.0, (time - self.start) / (self.stop - self.start)))


@dataclass(frozen=True, slots=True)
class Solid:
    """One drawn thing. No two solids of a scene share a shape, a colour or a place."""

    shape: str
    colour: str
    size: str
    """Its size at the start."""
    place: int
    """Index into `PLACES` at the start."""
    texture: str = "plain"
    event: Event | None = None
    dx: float = 0.0
    dy: float = 0.0
    """Jitter of the centre, in places."""
    angle: float = 0.0
    """Radians, small: nothing in the world stands exactly upright."""

    @property
    def end_size(self) -> str:
        kind = self.event.kind if self.event else None
        return {"grow": "large", "shrink": "small"}.get(kind or "", self.size)

    @property
    def end_place(self) -> int:
        return (
            self.place if not self.event or self.event.kind != "move" else step(self.place, self.event.direction or "")
        )

    def centre(self, time: float) -> tuple[float, float]:
        """(x, y) in places, 0..3, at `time`."""
        x, y = self.place % 3 + 0.5 + self.dx, self.place // 3 + 0.5 + self.dy
        if self.event and self.event.direction:
            p = self.event.progress(time)
            if self.event.kind == "bounce":
                p = 1 - abs(2 * p - 1)
            mx, my = DIRECTIONS[self.event.direction]
            x, y = x + mx * p, y + my * p
        return x, y

    def scale(self, time: float) -> float:
        """Where between small (0) and large (1) its size is at `time`."""
        first, last = SIZES.index(self.size) / 2, SIZES.index(self.end_size) / 2
        return first + (last - first) * (self.event.progress(time) if self.event else 0.0)

    def seen(self, time: float) -> bool:
        """Whether it is there at `time`; appearing and vanishing happen at the middle of their event."""
        if self.event and self.event.kind in ("vanish", "appear"):
            return (self.event.progress(time) < 0.5) == (self.event.kind == "vanish")
        return True

    def turn(self, time: float) -> float:
        """Angle in radians at `time`; a spinning solid turns by one and a half times a right angle."""
        spin = 2.356 * self.event.progress(time) if self.event and self.event.kind == "spin" else 0.0
        return self.angle + spin


@dataclass(frozen=True, slots=True)
class Sound:
    kind: str
    pitch: str
    count: int


@dataclass(frozen=True, slots=True)
class Sign:
    """A plate with a printed word or number."""

    text: str
    place: int


@dataclass(frozen=True, slots=True)
class Scene:
    level: str
    solids: tuple[Solid, ...]
    """In reading order of their first places."""
    sound: Sound
    sign: Sign | None
    background: tuple[float, float, float]
    """RGB in 0..1."""
    noise: float
    """Standard deviation of the pixel noise, in 0..1."""
    seed: int
    """Of the noise and whatever else is not part of the meaning."""

    @property
    def events(self) -> tuple[Solid, ...]:
        """The solids that change, first one first."""
        return tuple(sorted((s for s in self.solids if s.event), key=lambda s: s.event.start))  # type: ignore[union-attr]

    @property
    def meaning(self) -> str:
        """What the scene shows without jitter, noise or exact times: equal meanings have equal answers."""
        order = [s.shape for s in self.events]
        solids = [
            (s.shape, s.colour, s.size, s.place, s.texture)
            + ((s.event.kind, s.event.direction, s.event.speed) if s.event else ())
            for s in self.solids
        ]
        return repr((solids, order, self.sign))

    @property
    def still(self) -> str:
        """What its first picture shows: equal for scenes that begin alike and for their snapshots; "" if nothing."""
        seen = [(s.shape, s.colour, s.size, s.place, s.texture) for s in self.solids if s.seen(0.0)]
        return repr((seen, self.sign)) if seen or self.sign else ""

    @property
    def split(self) -> str | None:
        """train, val or test, or None for a scene that is never used.

        Decided by two hashes which must agree, one of the meaning (80 : 10 : 10) and one of the first picture
        (60 : 20 : 20). So neither a clip nor the picture it begins with is shared between splits; only the empty
        picture, which tells nothing, begins clips of all three. Of all scenes 48 % are train, 2 % val and 2 % test.
        """
        split = _share(self.meaning, 0.8, 0.9)
        return split if split == self.still_split else None

    @property
    def still_split(self) -> str:
        """train, val or test: where the first picture belongs, whatever happens after it."""
        return _share(f"still {self.still or self.meaning}", 0.6, 0.8)

    def snapshot(self, time: float = 0.0) -> Scene:
        """The scene as one still picture taken before anything has happened: what is there, without events."""
        still = tuple(replace(s, event=None) for s in self.solids if s.seen(time))
        return replace(self, solids=still)


def _share(text: str, train: float, val: float) -> str:
    """The split in which a hash of `text` lies: below `train`, below `val`, or above."""
    share = hashlib.sha256(text.encode()).digest()[0] / 256
    return "train" if share < train else "val" if share < val else "test"


def step(place: int, direction: str) -> int:
    """The place one step in `direction` from `place`, or -1 outside the nine places."""
    dx, dy = DIRECTIONS[direction]
    x, y = place % 3 + dx, place // 3 + dy
    return y * 3 + x if 0 <= x < 3 and 0 <= y < 3 else -1


def draw_scene(rng: random.Random, level: str, split: str | None = None, most: int | None = None) -> Scene:
    """Draw scenes until one falls into `split` (None takes the first, whichever it is).

    most: at most so many solids (a curriculum for those who learn from scenes).
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {LEVELS}")
    while True:
        scene = _draw(rng, level, most)
        if split is None or scene.split == split:
            return scene


def _draw(rng: random.Random, level: str, most: int | None) -> Scene:
    full = level == "full"
    count = rng.choices((1, 2, 3, 4), (2, 4, 4, 3 if full else 0))[0]
    count = min(count, most or count)
    places = rng.sample(range(9), count + 1)
    solids = [
        Solid(
            shape=shape,
            colour=colour,
            size=rng.choice(SIZES if full else ("small", "large")),
            place=place,
            texture=rng.choice(TEXTURES) if full else "plain",
            dx=rng.uniform(-0.09, 0.09),
            dy=rng.uniform(-0.09, 0.09),
            angle=rng.uniform(-0.12, 0.12),
        )
        for shape, colour, place in zip(rng.sample(SHAPES, count), rng.sample(COLOURS, count), places, strict=False)
    ]
    sign = Sign(rng.choice(SIGNS), places[count]) if full and rng.random() < 0.4 else None
    for index, window, speed in _windows(rng, count, full):
        solids[index] = _with_event(rng, solids, index, window, speed, full, sign.place if sign else -1)
    grey = rng.uniform(0.04, 0.28)
    tint = 0.05 if full else 0.02
    return Scene(
        level=level,
        solids=tuple(sorted(solids, key=lambda s: s.place)),
        sound=Sound(rng.choice(SOUNDS), rng.choice(PITCHES), rng.randint(1, 4)),
        sign=sign,
        background=tuple(max(0.0, grey + rng.uniform(-tint, tint)) for _ in range(3)),  # type: ignore[arg-type]
        noise=rng.uniform(0.0, 0.04),
        seed=rng.getrandbits(63),
    )


def _windows(rng: random.Random, count: int, full: bool) -> list[tuple[int, tuple[float, float], str | None]]:
    """Who changes, when, and how fast. Two events never overlap: one ends before the other begins."""
    number = min(count, rng.choices((0, 1, 2), (1, 4, 5))[0])
    movers = rng.sample(range(count), number)
    if number == 2:
        first, second = rng.uniform(0.0, 0.1), rng.uniform(0.5, 0.62)
        return [
            (movers[0], (first, first + rng.uniform(0.3, 0.38)), None),
            (movers[1], (second, second + rng.uniform(0.3, 0.38)), None),
        ]
    if number == 1:
        speed = rng.choice(("slow", "fast")) if full and rng.random() < 0.6 else None
        length = {"slow": rng.uniform(0.75, 0.9), "fast": rng.uniform(0.2, 0.28)}.get(
            speed or "", rng.uniform(0.3, 0.6)
        )
        start = rng.uniform(0.02, 0.98 - length)
        return [(movers[0], (start, start + length), speed)]
    return []


def _with_event(
    rng: random.Random,
    solids: list[Solid],
    index: int,
    window: tuple[float, float],
    speed: str | None,
    full: bool,
    sign: int,
) -> Solid:
    solid = solids[index]
    taken = {s.place for s in solids} | {s.end_place for s in solids} | {sign}
    ways = [d for d in (DIRECTIONS if full else STRAIGHT) if step(solid.place, d) not in taken | {-1}]
    kinds = ["move"] * 6 * bool(ways) + ["grow", "shrink", "vanish", "appear"]
    if full:
        kinds += ["bounce"] * bool(ways) + ["spin"] * (solid.shape in TURNABLE)
    kind = rng.choice(kinds)
    if speed and kind in ("vanish", "appear"):
        speed = None  # an instant has no speed
    event = Event(kind, *window, direction=rng.choice(ways) if kind in ("move", "bounce") else None, speed=speed)
    size = {"grow": "small", "shrink": "large"}.get(kind, solid.size)
    return replace(solid, event=event, size=size)
