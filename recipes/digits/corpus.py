"""Write a manifest of spoken digits that training never heard, for a dump.

python recipes/digits/corpus.py --fsdd DIR --head HEADS/500 --out DIR --utterances 200
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import soundfile

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.features import SAMPLE_RATE
from recipes.demo.pieces import Pieces
from recipes.digits.data import Digits
from recipes.digits.train import draw_groups, text_of


def write(fsdd: Path, pieces: Pieces, out: Path, *, utterances: int, seconds: float, seed: int = 1) -> Path:
    """Write `out/digits.jsonl` and its recordings, each of about `seconds` or a little more."""
    (out / "digits").mkdir(parents=True, exist_ok=True)
    rng, digits = random.Random(f"corpus {seed}"), Digits(fsdd, "test")
    lines = []
    for number in range(utterances):
        groups = draw_groups(rng, pieces)
        while len((utterance := digits.draw(rng, groups)).audio) < seconds * SAMPLE_RATE:
            groups += draw_groups(rng, pieces)
        path = out / "digits" / f"digits-{number:04d}.flac"
        soundfile.write(path, utterance.audio, SAMPLE_RATE, subtype="PCM_16")
        duration = round(len(utterance.audio) / SAMPLE_RATE, 6)
        lines.append(
            {
                "id": path.stem,
                "audio": f"digits/{path.name}",
                "duration": duration,
                "text": text_of(utterance, pieces),
            }
        )
    manifest = out / "digits.jsonl"
    manifest.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")
    return manifest


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True, help="folder that holds recordings/")
    parser.add_argument("--head", required=True, help="what train.py wrote, e.g. HEADS/500")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    pieces = Pieces.read(Path(f"{asked.head}.tokens.txt"))
    print(write(asked.fsdd, pieces, asked.out, utterances=asked.utterances, seconds=asked.seconds))


if __name__ == "__main__":
    main()
