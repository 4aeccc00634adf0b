"""Subword pieces of the demo teacher: learn a table from the grammar, split text by it, join it again.

    python recipes/demo/pieces.py --size 150 --out manifests/demo.tokens.txt

The table is a k2-style text file, `piece id` a line, `<blk> 0` first, a word start marked ▁. Pieces stand
in the order they were learnt, so the table alone says which pair of pieces joins first (byte-pair encoding,
Sennrich et al. 2016, on characters).
"""

from __future__ import annotations

import argparse
import random
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.grammar import SLOTS, TEMPLATES, draw, spell

BLANK = "<blk>"
START = "▁"


class Pieces:
    """A table of pieces: text to ids and back. Id 0 is the blank and never comes out of `encode`."""

    def __init__(self, pieces: list[str]) -> None:
        if pieces[:1] != [BLANK] or len(set(pieces)) != len(pieces):
            raise ValueError(f"a piece table starts with {BLANK} and names nothing twice")
        self.pieces = pieces
        self._ids = {piece: number for number, piece in enumerate(pieces)}

    @classmethod
    def read(cls, path: Path) -> Pieces:
        """Read `piece id` lines, ids counting up from 0."""
        rows = [line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        if [number for _, number in rows] != [str(n) for n in range(len(rows))]:
            raise ValueError(f"{path}: ids do not count up from 0")
        return cls([piece for piece, _ in rows])

    def write(self, path: Path) -> None:
        """Write `piece id` lines in UTF-8."""
        path.write_text("".join(f"{p} {n}\n" for n, p in enumerate(self.pieces)), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Split text into ids: characters first, then join the pair that makes the lowest id, repeatedly.

        Text is taken in Unicode's composed form (NFC) and its white space as word ends. Raises ValueError
        naming the first character that no piece holds.
        """
        ids: list[int] = []
        for word in unicodedata.normalize("NFC", text).split():
            parts = [START, *word]
            for character in word:
                if character not in self._ids or character == START:
                    raise ValueError(f"no piece for {character!r} (U+{ord(character):04X}) in {text!r}")
            while len(parts) > 1:
                joins = [(self._ids.get(a + b, len(self)), at) for at, (a, b) in enumerate(pairwise(parts))]
                best, at = min(joins)
                if best == len(self):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids.extend(self._ids[part] for part in parts)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Join ids into text, words parted by one space; blanks say nothing."""
        return "".join(self.pieces[n] for n in ids if n).replace(START, " ").strip()


def learn(words: Counter[str], characters: list[str], size: int) -> Pieces:
    """Learn `size` pieces, blank, ▁ and all characters among them, joining the most frequent pair each time.

    words: how often each word is said. Of equally frequent pairs the first in Unicode order is joined.
    """
    pieces = [BLANK, START, *characters]
    spelt = {word: [START, *word] for word in words}
    while len(pieces) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelt.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        (a, b), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if a + b not in pieces:
            pieces.append(a + b)
        for parts in spelt.values():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (a, b):
                    parts[at : at + 2] = [a + b]
                at += 1
    return Pieces(pieces)


def main() -> None:
    """Read the command line, learn from training sentences of the grammar and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(f"pieces {asked.seed}")
    words = Counter(word for _ in range(5000) for word in draw(rng, "train").split())
    everything = " ".join([*TEMPLATES, *(text for texts in SLOTS.values() for text in texts), spell(99)])
    letters = set("abcdefghijklmnopqrstuvwxyz") | {c for c in everything if c.isalpha() or c in "’'"}
    pieces = learn(words, sorted(letters | {"'"}), asked.size)
    pieces.write(asked.out)
    lengths = [len(pieces.encode(draw(rng, "train"))) for _ in range(500)]
    print(f"{asked.out}: {len(pieces)} pieces, {sum(lengths) / len(lengths):.1f} a sentence")


if __name__ == "__main__":
    main()
