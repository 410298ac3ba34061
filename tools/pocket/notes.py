"""True notes of a scene in the forms that the pocket language model reads while it learns, and its text-only chatter.

A note is a list of bags; a bag is a list of (word, weight) and takes one position, where the words' embeddings are
summed: a media token may hold several facts at once, so the model meets such positions before it ever sees media.
"""

from __future__ import annotations

import random

from mmtune.data.world.language import NUMBERS, OPPOSITE, Question, describe, does, listed, name
from mmtune.data.world.scene import COLOURS, DIRECTIONS, PLACES, SHAPES, SIZES, Scene, Solid

Bag = list[tuple[str, float]]
MOMENTS = tuple(f"t{i}" for i in range(1, 9))


def _overlap(a: float, b: float, low: float) -> float:
    """Share of the interval a..b inside low..low+1."""
    return max(0.0, min(b, low + 1) - max(a, low)) / (b - a)


def _words(solid: Solid, time: float, weight: float) -> Bag:
    scale = solid.scale(time) * 2
    low = min(1, int(scale))
    sizes = [(SIZES[low], 1 - (scale - low)), (SIZES[low + 1], scale - low)]
    bag = [(solid.shape, weight), (solid.colour, weight)] + [(s, w * weight) for s, w in sizes if w > 0.02]
    if solid.texture != "plain":
        bag.append((solid.texture, weight))
    if solid.event and solid.event.kind == "spin" and 0.0 < solid.event.progress(time) < 1.0:
        bag.append(("spins", weight))  # the picture shows it turned; the word stands for that
    return bag


def moments(scene: Scene, frames: int = 8, group: int = 1) -> list[Bag]:
    """What is in each of the nine places at each moment, as a pooling connector can hand it over.

    frames / group moments of nine bags each, in order of time and place; group frames share one moment.
    """
    out = []
    for start in range(0, frames, group):
        times = [(i + 0.5) / frames for i in range(start, start + group)]
        for place, label in enumerate(PLACES):
            bag: Bag = []
            empty = 1.0
            for time in times:
                for solid in scene.solids:
                    if not solid.seen(time):
                        continue
                    x, y = solid.centre(time)
                    half = 0.2 + 0.2 * solid.scale(time)
                    part = _overlap(x - half, x + half, place % 3) * _overlap(y - half, y + half, place // 3) / group
                    if part > 0.04:
                        bag += _words(solid, time, part)
                        empty -= part
            if scene.sign and scene.sign.place == place:
                bag += [("sign", 1.0), (scene.sign.text, 1.0)]
                empty = 0.0
            if empty > 0.1:
                bag.append(("nothing", empty))
            bag.append((label, 1.0))
            bag += [(MOMENTS[start + i], 1.0 / group) for i in range(group)]
            out.append(bag)
    return out


CHANGES = ("move", "bounce", "grow", "shrink", "vanish", "appear", "spin")
UNMARKED = (-100, -100)


def marks(scene: Scene, frames: int = 8) -> list[tuple[int, int]]:
    """For each bag of `moments(scene)`: what has happened so far to the solid that is seen there, and in which turn.

    (0, 0) nothing yet; else (1 + kind of change, direction included; 1 or 2: the first or second change of the clip);
    -100 where there is no solid or its change is under way. A solid that has vanished is marked where it was.
    """
    out = []
    for frame in range(frames):
        time = (frame + 0.5) / frames
        row = [UNMARKED] * len(PLACES)
        for solid in scene.solids:
            event = solid.event
            progress = event.progress(time) if event else 0.0
            instant = event is not None and event.kind in ("vanish", "appear")
            if not solid.seen(time) and not (instant and event.kind == "vanish"):
                continue
            x, y = solid.centre(time)
            place = int(min(2, max(0, y))) * 3 + int(min(2, max(0, x)))
            if event is None or (progress < 0.5 if instant else progress < 0.1):
                row[place] = (0, 0)
            elif progress > 0.6 or instant:
                ways = list(DIRECTIONS)
                kind = ways.index(event.direction) if event.kind == "move" else len(ways) + CHANGES.index(event.kind)
                row[place] = (1 + kind, 1 + scene.events.index(solid))
        out += row
    return out


def facts(scene: Scene, rng: random.Random, heard: bool = False) -> list[Bag]:
    """One to three bags per thing, with its change said outright, in random order among fillers: as queries might."""
    out: list[Bag] = []
    pair = len(scene.events) == 2
    for solid in scene.solids:
        head = [(solid.colour, 1.0), (solid.shape, 1.0)]
        event = solid.event
        what = [("stays", 1.0), ("still", 1.0)] if not event else [(_verb(solid), 1.0)]
        if event and event.direction:
            what.append((event.direction, 1.0))
        if event and pair:
            what.append(("first" if solid is scene.events[0] else "last", 1.0))
        if event and event.speed:
            what.append((f"{event.speed}ly" if event.speed == "slow" else "quickly", 1.0))
        where = [(PLACES[solid.place], 1.0)] + (
            [("end", 0.7), (PLACES[solid.end_place], 0.7)] if solid.end_place != solid.place else []
        )
        looks = [(solid.size, 1.0)] + ([] if solid.texture == "plain" else [(solid.texture, 1.0)])
        form = rng.random()
        if form < 0.3:
            out.append(head + looks + where + what)
        elif form < 0.65:
            out += [head + looks + where, head + what]
        else:
            out += [head + looks, head + where, head + what]
    if scene.sign:
        out.append([("sign", 1.0), (scene.sign.text, 1.0), (PLACES[scene.sign.place], 1.0)])
    if heard:
        out.append(
            [("hear", 1.0), (scene.sound.kind, 1.0), (scene.sound.pitch, 1.0), (NUMBERS[scene.sound.count], 1.0)]
        )
    out += [[("nothing", 1.0)] for _ in range(rng.choice((0, 2, 6, max(0, 16 - len(out)), max(0, 32 - len(out)))))]
    rng.shuffle(out)
    return out


def halves(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions about each half of a clip of two changes, for drills: what `order` and `before` rest on.

    Their answers are many-valued, so each one teaches more than a yes or no: "half" is what a thing does in one half,
    "middle" where it is between the changes, "when" the turn in which it changes.
    """
    if len(scene.events) != 2:
        return []
    out = []
    for solid in scene.solids:
        ref = rng.choice((f"the {name(solid)}", f"the {solid.shape}", f"the {solid.colour} object"))
        turn = scene.events.index(solid) if solid.event else None
        for half, word in enumerate(("first", "last")):
            out.append(
                Question("half", f"What does {ref} do at {word}?", does(solid) if turn == half else "stays still")
            )
        if solid.event:
            out.append(Question("when", f"When does {ref} change?", ("first", "last")[turn]))
        if solid.seen(0.48):
            x, y = solid.centre(0.48)
            place = int(min(2, max(0, y))) * 3 + int(min(2, max(0, x)))
            out.append(Question("middle", f"Where is {ref} in the middle?", PLACES[place]))
    return out


def sounds(scene: Scene) -> list[Bag]:
    """The sound alone, as a sound branch can hand it over."""
    return [[("hear", 1.0), (scene.sound.kind, 1.0), (scene.sound.pitch, 1.0), (NUMBERS[scene.sound.count], 1.0)]]


def _verb(solid: Solid) -> str:
    kind = solid.event.kind if solid.event else ""
    return {
        "move": "moves",
        "bounce": "bounces",
        "grow": "grows",
        "shrink": "shrinks",
        "vanish": "vanishes",
        "appear": "appears",
    }.get(kind, "spins")


CHATTER = (
    (("Hi", "Hello", "Hello there", "Good morning", "Hey"), "hello! show me a clip or a picture and ask me about it."),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        "i am the pocket model of mmtune, a very small chat model.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?"),
        "i can answer questions about the shapes in a clip: colors, places, moves and more.",
    ),
    (("Thank you", "Thanks", "Thanks a lot"), "you are welcome."),
    (("Bye", "Goodbye", "See you"), "goodbye."),
    (("How are you?", "How do you do?"), "i am fine, thank you."),
    (("Who made you?", "Where do you come from?"), "i was made with mmtune, on a small computer."),
    (
        ("What do you know?", "What have you learned?"),
        "i know a small world of colored shapes that move, and nothing else.",
    ),
    (("Tell me a joke", "Do you know a joke?"), "a circle has no corners, so it never gets stuck in one."),
    (("Are you big?", "How large are you?"), "i am very small: about one million weights."),
)


def chatter(rng: random.Random) -> tuple[str, str]:
    """One small-talk turn or one instruction that needs no media: (question, answer)."""
    if rng.random() < 0.35:
        asked, answer = rng.choice(CHATTER)
        return rng.choice(asked), answer
    return rng.choice(INSTRUCTIONS)(rng)


def _opposite(rng: random.Random) -> tuple[str, str]:
    pairs = (("left", "right"), ("up", "down"), ("small", "large"), ("slowly", "quickly"), ("first", "last"),
             ("grows", "shrinks"),
             ("vanishes", "appears"), ("high", "low"), ("yes", "no"), ("before", "after"))  # fmt: skip
    pair = rng.sample(rng.choice(pairs), 2)
    return f"What is the opposite of {pair[0]}?", pair[1]


def _repeat(rng: random.Random) -> tuple[str, str]:
    words = " ".join(rng.sample([*COLOURS, *SHAPES, *SIZES, *PLACES], rng.randint(1, 4)))
    return rng.choice(("Repeat: {}", "Say: {}", "Say after me: {}")).format(words), words


def _plus(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(0, 4)
    b = rng.randint(0, 4 - a)
    return f"What is {NUMBERS[a]} plus {NUMBERS[b]}?".replace(" no ", " zero ").replace(" no?", " zero?"), NUMBERS[
        a + b
    ] if a + b else "zero"


def _kind(rng: random.Random) -> tuple[str, str]:
    rooms = {"color": COLOURS, "shape": SHAPES, "size": SIZES, "direction": tuple(DIRECTIONS), "place": PLACES}
    kind, other = rng.choice(tuple(rooms)), rng.choice(tuple(rooms))
    return f"Is {rng.choice(rooms[other])} a {kind}?", "yes" if kind == other else "no"


def _sort(rng: random.Random) -> tuple[str, str]:
    words = rng.sample([*COLOURS, *SHAPES], rng.randint(2, 4))
    if rng.random() < 0.5:
        return f"Which word comes first: {listed(words)}?", words[0]
    return f"Which word comes last: {listed(words)}?", words[-1]


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = rng.sample([*COLOURS, *SHAPES], 2)
    return f"Swap these words: {words[0]} {words[1]}", f"{words[1]} {words[0]}"


INSTRUCTIONS = (_opposite, _repeat, _plus, _kind, _sort, _reverse)


def quoted(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """(source, text) of quoted notes about the scene: what a caption or OCR expert would say of it."""
    out = [("caption", describe(scene))]
    if scene.sign and rng.random() < 0.6:
        out = [("ocr", scene.sign.text)] if rng.random() < 0.5 else [*out, ("ocr", scene.sign.text)]
    return out


__all__ = ["OPPOSITE", "Bag", "chatter", "facts", "moments", "quoted", "sounds"]
