"""What is said of a scene: captions, questions with their answers, and conversations made of them.

Every question carries a type. The temporal types are about change: no single frame of a clip holds their answer (for
every frame there is another scene that shows the very same frame and has another answer). Answers are short and in
lower case; lists follow reading order, so that each question has exactly one right answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mmtune.data.world.scene import (
    COLOURS,
    DIRECTIONS,
    PLACES,
    SHAPES,
    SIGNS,
    SIZES,
    SOUNDS,
    TEXTURES,
    Scene,
    Solid,
)

NUMBERS = ("no", "one", "two", "three", "four")
TEMPORAL = ("event", "direction", "order", "before", "does", "which", "speed")
"""Types that need more than one frame."""
HEARD = ("sound", "sound count", "pitch")
"""Types that need the sound."""
OPPOSITE = {
    "move": "move", "bounce": "move", "grow": "shrink", "shrink": "grow", "vanish": "appear", "appear": "vanish",
    "spin": "grow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    type: str
    question: str
    answer: str

    @property
    def temporal(self) -> bool:
        return self.type in TEMPORAL


def name(solid: Solid) -> str:
    """red circle"""
    return f"{solid.colour} {solid.shape}"


def verb(kind: str | None, direction: str | None = None) -> str:
    """moves left, grows, stays still, ..."""
    words = {
        None: "stays still", "move": "moves", "bounce": "bounces", "grow": "grows", "shrink": "shrinks",
        "vanish": "vanishes", "appear": "appears", "spin": "spins",
    }  # fmt: skip
    return f"{words[kind]} {direction}" if direction else words[kind]


def does(solid: Solid) -> str:
    return verb(solid.event.kind, solid.event.direction) if solid.event else verb(None)


def pace(solid: Solid) -> str:
    return {"slow": " slowly", "fast": " quickly"}.get((solid.event and solid.event.speed) or "", "")


def look(solid: Solid) -> str:
    """small striped red circle"""
    texture = "" if solid.texture == "plain" else f"{solid.texture} "
    return f"{solid.size} {texture}{name(solid)}"


def describe(scene: Scene) -> str:
    """One sentence per thing, in reading order: the whole meaning of a scene in words."""
    first = scene.events[0] if len(scene.events) == 2 else None
    out = []
    for solid in scene.solids:
        when = "" if first is None or not solid.event else " first" if solid is first else " last"
        doing = f" {does(solid)}{pace(solid)}{when}" if solid.event else ""
        out.append(f"a {look(solid)} at the {PLACES[solid.place]}{doing}.")
    if scene.sign:
        out.append(f"a sign at the {PLACES[scene.sign.place]} says {scene.sign.text}.")
    return " ".join(out) if out else "nothing can be seen."


CAPTION_PROMPTS = (
    "Describe the clip.", "What can you see?", "What happens here?", "Tell me what you see.", "Give me a description.",
)  # fmt: skip


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Several phrasings of the description; the first one is the plain one."""
    text = describe(scene)
    return [text, f"here is what i see: {text}", f"there are {NUMBERS[len(scene.solids)]} objects. {text}"]


def listed(words: Iterable[str]) -> str:
    """red, blue and white"""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ref(solid: Solid, rng: random.Random) -> str:
    return rng.choice((f"the {name(solid)}", f"the {solid.colour} object", f"the {solid.shape}"))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _colour(scene: Scene, rng: random.Random) -> Question:
    solid = rng.choice(scene.solids)
    text = rng.choice(
        (
            "What color is the {}?",
            "Which color does the {} have?",
            "The {}: what color is it?",
            "What colour is the {}?",
        )
    )
    return Question("colour", text.format(solid.shape), solid.colour)


def _shape(scene: Scene, rng: random.Random) -> Question:
    solid = rng.choice(scene.solids)
    text = rng.choice(("What shape is the {} object?", "What is the {} thing?", "Which shape does the {} object have?"))
    return Question("shape", text.format(solid.colour), solid.shape)


def _size(scene: Scene, rng: random.Random) -> Question | None:
    still = [s for s in scene.solids if s.size == s.end_size]
    if not still:
        return None
    text = rng.choice(("How big is {}?", "What size is {}?", "What is the size of {}?"))
    solid = rng.choice(still)
    return Question("size", text.format(_ref(solid, rng)), solid.size)


def _texture(scene: Scene, rng: random.Random) -> Question | None:
    if scene.level != "full":
        return None
    solid = rng.choice(scene.solids)
    text = rng.choice(("What pattern does {} have?", "Is {} plain, striped or dotted?"))
    return Question("texture", text.format(_ref(solid, rng)), solid.texture)


def _count(scene: Scene, rng: random.Random) -> Question:
    text = rng.choice(("How many objects are there?", "How many things are there in all?", "Count the objects."))
    return Question("count", text, NUMBERS[len(scene.solids)])


def _position(scene: Scene, rng: random.Random) -> Question:
    solid = rng.choice(scene.solids)
    ref = _ref(solid, rng)
    if solid.end_place != solid.place:
        if rng.random() < 0.5:
            text = rng.choice(("Where does {} start?", "Where is {} at the start?"))
            return Question("position", text.format(ref), PLACES[solid.place])
        return Question(
            "position",
            rng.choice(("Where does {} end up?", "Where is {} at the end?")).format(ref),
            PLACES[solid.end_place],
        )
    text = rng.choice(("Where is {}?", "In which place is {}?", "Where can you see {}?"))
    return Question("position", text.format(ref), PLACES[solid.place])


def _exists(scene: Scene, rng: random.Random) -> Question:
    solid, truth = rng.choice(scene.solids), rng.random() < 0.5
    colour, shape = solid.colour, solid.shape
    if not truth and rng.random() < 0.5:
        colour = rng.choice([c for c in COLOURS if c != colour])
    elif not truth:
        shape = rng.choice([s for s in SHAPES if s != shape])
    text = rng.choice(("Is there a {} {}?", "Can you see a {} {}?", "Do you see a {} {}?"))
    return Question("exists", text.format(colour, shape), _yes(truth))


def _compare(scene: Scene, rng: random.Random) -> Question | None:
    still = [s for s in scene.solids if s.size == s.end_size]
    rng.shuffle(still)
    pairs = [(a, b) for i, a in enumerate(still) for b in still[i + 1 :] if a.size != b.size]
    if pairs and rng.random() < 0.6:
        a, b = rng.sample(rng.choice(pairs), 2)
        bigger = SIZES.index(a.size) > SIZES.index(b.size)
        if rng.random() < 0.5:
            return Question("compare", f"Is {_ref(a, rng)} bigger than {_ref(b, rng)}?", _yes(bigger))
        return Question("compare", f"Which is bigger, the {name(a)} or the {name(b)}?", name(a if bigger else b))
    fixed = [s for s in scene.solids if s.place == s.end_place]
    rng.shuffle(fixed)
    across = [(a, b) for i, a in enumerate(fixed) for b in fixed[i + 1 :] if a.place % 3 != b.place % 3]
    along = [(a, b) for i, a in enumerate(fixed) for b in fixed[i + 1 :] if a.place // 3 != b.place // 3]
    if across and (not along or rng.random() < 0.5):
        a, b = rng.sample(rng.choice(across), 2)
        return Question("compare", f"Is {_ref(a, rng)} to the left of {_ref(b, rng)}?", _yes(a.place % 3 < b.place % 3))
    if along:
        a, b = rng.sample(rng.choice(along), 2)
        return Question("compare", f"Is {_ref(a, rng)} above {_ref(b, rng)}?", _yes(a.place // 3 < b.place // 3))
    return None


def _list(scene: Scene, rng: random.Random) -> Question:
    what = rng.choice(("colors", "shapes", "objects"))
    text = rng.choice((f"Which {what} can you see?", f"List the {what}."))
    pick: dict[str, Callable[[Solid], str]] = {
        "colors": lambda s: s.colour,
        "shapes": lambda s: s.shape,
        "objects": name,
    }
    return Question("list", text, listed(pick[what](s) for s in scene.solids))


def _text(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.sign:
        return None
    text = rng.choice(("What does the sign say?", "What is written on the sign?", "Read the sign."))
    return Question("text", text, scene.sign.text)


def _event(scene: Scene, rng: random.Random) -> Question:
    solid = rng.choice(scene.events if scene.events and rng.random() < 0.8 else scene.solids)
    text = rng.choice(("What does {} do?", "What happens to {}?", "How does {} change?"))
    return Question("event", text.format(_ref(solid, rng)), does(solid))


def _direction(scene: Scene, rng: random.Random) -> Question | None:
    moving = [s for s in scene.events if s.event.kind == "move"]  # type: ignore[union-attr]
    if not moving:
        return None
    solid = rng.choice(moving)
    text = rng.choice(("Which way does {} move?", "In which direction does {} go?", "Where is {} heading?"))
    return Question("direction", text.format(_ref(solid, rng)), solid.event.direction or "")  # type: ignore[union-attr]


def _order(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.events) != 2:
        return None
    last = rng.random() < 0.5
    right, word = name(scene.events[1 if last else 0]), "last" if last else "first"
    if scene.level == "full" and rng.random() < 0.4:
        text = rng.choice(("Which object changes {}?", "What changes {}?", "Which one is the {} to change?"))
        return Question("order", text.format(word), right)
    a, b = rng.sample(scene.events, 2)
    text = rng.choice(("Which changes {}, the {} or the {}?", "What is {} to change, the {} or the {}?"))
    return Question("order", text.format(word, name(a), name(b)), right)


def _before(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.events) != 2:
        return None
    a, b = rng.sample(scene.events, 2)
    truth = a is scene.events[0]
    if rng.random() < 0.5:
        return Question("before", f"Does {_ref(a, rng)} change before {_ref(b, rng)}?", _yes(truth))
    return Question("before", f"Does {_ref(a, rng)} change after {_ref(b, rng)}?", _yes(not truth))


def _does(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.events:
        return None
    solid, truth = rng.choice(scene.events), rng.random() < 0.5
    event = solid.event
    kind, direction = event.kind, event.direction  # type: ignore[union-attr]
    if not truth and kind == "move" and rng.random() < 0.7:
        ways = [d for d in DIRECTIONS if scene.level == "full" or "-" not in d]
        dx, dy = DIRECTIONS[direction or ""]
        back = next(d for d in ways if DIRECTIONS[d] == (-dx, -dy))
        direction = back if rng.random() < 0.7 else rng.choice([d for d in ways if d != direction])
    elif not truth:
        other = ["grow", "shrink", "vanish", "appear"] + ["spin"] * (scene.level == "full")
        kind = (
            OPPOSITE[kind]
            if OPPOSITE[kind] != "move" and rng.random() < 0.7
            else rng.choice([k for k in other if k != kind])
        )
        direction = None
    text = rng.choice(("Is it true that {} {}?", "Would you say that {} {}?", "True or not: {} {}?"))
    return Question("does", text.format(_ref(solid, rng), verb(kind, direction)), _yes(truth))


def _which(scene: Scene, rng: random.Random) -> Question | None:
    kinds = [s.event.kind for s in scene.events]  # type: ignore[union-attr]
    single = [s for s in scene.events if kinds.count(s.event.kind) == 1]  # type: ignore[union-attr]
    if not single or len(scene.solids) < 2 or scene.level != "full":
        return None
    solid = rng.choice(single)
    text = rng.choice(("Which object {}?", "What {}?", "Which one {}?"))
    return Question("which", text.format(verb(solid.event.kind)), name(solid))  # type: ignore[union-attr]


def _speed(scene: Scene, rng: random.Random) -> Question | None:
    paced = [s for s in scene.events if s.event.speed]  # type: ignore[union-attr]
    if not paced:
        return None
    text = rng.choice(("How fast does {} change?", "Does {} change slowly or quickly?"))
    return Question("speed", text.format(_ref(paced[0], rng)), pace(paced[0]).strip())


def _sound(scene: Scene, rng: random.Random) -> Question | None:
    if scene.level != "full":
        return None
    return Question(
        "sound",
        rng.choice(("What do you hear?", "What sound is there?", "Which sound can you hear?")),
        scene.sound.kind,
    )


def _sound_count(scene: Scene, rng: random.Random) -> Question | None:
    if scene.level != "full":
        return None
    text = rng.choice(("How often do you hear it?", "How many sounds are there?", "Count the sounds."))
    return Question("sound count", text, NUMBERS[scene.sound.count])


def _pitch(scene: Scene, rng: random.Random) -> Question | None:
    if scene.level != "full":
        return None
    return Question(
        "pitch", rng.choice(("Is the sound high or low?", "What pitch does the sound have?")), scene.sound.pitch
    )


STATIC = {
    "colour": _colour, "shape": _shape, "size": _size, "texture": _texture, "count": _count, "position": _position,
    "exists": _exists, "compare": _compare, "list": _list, "text": _text,
}  # fmt: skip
CHANGING = {
    "event": _event, "direction": _direction, "order": _order, "before": _before, "does": _does, "which": _which,
    "speed": _speed,
}  # fmt: skip
HEARING = {"sound": _sound, "sound count": _sound_count, "pitch": _pitch}


def questions(
    scene: Scene, rng: random.Random, count: int | None = None, still: bool = False, heard: bool = False
) -> list[Question]:
    """One question of each type that fits the scene, in random order; at most `count`.

    still: the scene is shown as one picture, so nothing is asked about change.  heard: also ask about the sound.
    """
    makers = list(STATIC.values()) if scene.solids else [STATIC["text"]] if scene.sign else []
    makers += [] if still or not scene.solids else list(CHANGING.values())
    makers += list(HEARING.values()) if heard else []
    out = [q for make in makers if (q := make(scene, rng))]
    rng.shuffle(out)
    return out[:count]


def vocabulary() -> list[str]:
    """Every word of the world that names something."""
    words = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *PLACES, *DIRECTIONS, *SIGNS, *SOUNDS, *NUMBERS]
    return sorted(set(words))
