"""What fuzzing found stays found; a few hundred seeded mutations run each time. ``make fuzz`` runs longer."""

import random
from pathlib import Path

import pytest

from tests.fuzz.target import golden, read, seeds

FOUND = sorted((Path(__file__).parent / "found").glob("*"))


def test_golden_stores_pass_unchanged():
    assert len(seeds()) == len(golden()[0]) > 8
    assert [read(s) for s in seeds()] == [None] * len(seeds())


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.name)
def test_what_was_found(path):
    read(path.read_bytes())


NUMBERS = [b"-1", b"0", b"1e999", b"99999999999999999999", b"null", b"[]", b"{}", b'""', b"1.5", b"true"]


def mutated(dice, data):
    """A seed with a few bytes, numbers, or pieces of itself in other places."""
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        if len(data) < 3:
            break
        at = dice.randrange(1, len(data))
        way = dice.randrange(5)
        if way == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif way == 1:
            data[at : at + dice.choice((1, 4, 8))] = dice.choice(NUMBERS)
        elif way == 2:
            data[at : at + 8] = dice.choice((0, -1, 1 << 62, 255)).to_bytes(8, "little", signed=True)
        elif way == 3:
            del data[at : at + dice.choice((1, 8, 100))]
        else:
            end = at + dice.randrange(1, 64)
            data[at:at] = data[at:end]
    return bytes(data)


def test_seeded_mutations():
    dice, refused = random.Random(0), 0
    for n in range(600):
        data = mutated(dice, dice.choice(seeds()))
        try:
            refused += read(data) is not None
        except Exception as e:
            pytest.fail(f"mutation {n}: {type(e).__name__}: {e}; {data[:200]!r}")
    assert refused > 100
