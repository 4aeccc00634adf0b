"""The phrase grammar of the demo corpus: what the voices say, and which sentences are kept for which use."""

from __future__ import annotations

import hashlib
import random

TEMPLATES = (
    "turn {switch} the {device} in the {room}",
    "don’t turn {switch} the {device} before {time}",
    "set the {device} in the {room} to {colour}",
    "i’d like the {room} to be {colour} at {time}",
    "set the {room} heating to {number} degrees",
    "set a timer for {number} minutes",
    "call {person} at {time}",
    "don’t call {person} before {time}",
    "tell {person} i’m at {place}",
    "dial {digits}",
    "my number is {digits}",
    "wake me at {time}",
    "remind me to {task} at {time}",
    "don’t forget to {task} before {time}",
    "meet {person} at {place}",
    "book a table for {number} at {place}",
    "how far is {place} from {place}",
    "take me to {place} before {time}",
    "what’s the weather in {city} at {time}",
    "play {music} in the {room}",
    "is {person} in {city} or {city}",
    "buy {number} {colour} {goods}",
)

SLOTS = {
    slot: tuple(choices.split(", "))
    for slot, choices in {
        "switch": "on, off",
        "device": "light, lamp, heater, fan, radio, oven, kettle, printer",
        "room": "kitchen, bedroom, living room, hallway, garage, garden, bathroom, office",
        "colour": "red, green, blue, yellow, purple, orange, white, pink, warm white, dark blue",
        "person": "anna, zoë, peter, maria, renée, björn, doctor smith, my sister, mum, thomas",
        "place": "the café, the station, the library, the château, the airport, the market, the office, "
        "the bakery, the harbour, the theatre, the museum",
        "city": "london, paris, berlin, madrid, oslo, dublin, boston, vienna",
        "task": "feed the cat, water the roses, buy bread, pay the rent, take the pills, close the window, "
        "lock the door, call the bank, make a crème brûlée",
        "music": "jazz, some piano music, the news, my favourite song, a naïve little waltz, folk music",
        "goods": "apples, candles, tulips, jalapeños, socks, balloons, pens",
        "hour": "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve",
        "minute": "five, ten, twenty, twenty five",
        "digit": "zero, one, two, three, four, five, six, seven, eight, nine",
        "teen": "ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen",
        "ten": "zero, ten, twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety",
    }.items()
}

TIMES = (
    "{h} o’clock",
    "half past {h}",
    "quarter past {h}",
    "quarter to {h}",
    "{m} past {h}",
    "{m} to {h}",
)

#: One sentence in so many is kept from training for the demo, and as many again for choosing settings.
HELD_OUT_ONE_IN = 16


def spell(number: int) -> str:
    """Say a whole number from 2 to 99 in words, without a hyphen."""
    if number < 10:
        return SLOTS["digit"][number]
    if number < 20:
        return SLOTS["teen"][number - 10]
    tens, unit = divmod(number, 10)
    return SLOTS["ten"][tens] + (f" {SLOTS['digit'][unit]}" if unit else "")


def _time(rng: random.Random) -> str:
    hour, minute = rng.choice(SLOTS["hour"]), rng.choice(SLOTS["minute"])
    return rng.choice(TIMES).format(h=hour, m=minute)


def _fill(slot: str, rng: random.Random) -> str:
    if slot == "number":
        return spell(rng.randint(2, 99))
    if slot == "digits":
        return " ".join(rng.choice(SLOTS["digit"]) for _ in range(rng.randint(3, 6)))
    return _time(rng) if slot == "time" else rng.choice(SLOTS[slot])


def sentence(rng: random.Random) -> str:
    """Draw one sentence of the grammar: lower case words with single spaces, no punctuation but U+2019."""
    words = []
    for part in rng.choice(TEMPLATES).replace("{", "\0{").replace("}", "}\0").split("\0"):
        words.append(_fill(part[1:-1], rng) if part.startswith("{") else part)
    return "".join(words)


def split_of(text: str) -> str:
    """Say which use a sentence belongs to: "train", "dev" or "demo", by its hash and nothing else.

    The same sentence falls on the same side in every corpus, whatever the seed, so a demo sentence is unseen
    by any teacher trained on `corpus.py train`.
    """
    bucket = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") % HELD_OUT_ONE_IN
    return {0: "demo", 1: "dev"}.get(bucket, "train")


def draw(rng: random.Random, split: str) -> str:
    """Draw sentences until one belongs to `split`."""
    while True:
        text = sentence(rng)
        if split_of(text) == split:
            return text
