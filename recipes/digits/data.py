"""Connected digits from the Free Spoken Digit Dataset: recordings of one speaker, one after the other.

The data set (3000 recordings, 6 speakers, CC BY-SA 4.0, github.com/Jakobovski/free-spoken-digit-dataset) is
not part of this project; give the folder that holds its `recordings/`. Its own split is kept: takes 0 to 4
of every digit and speaker are for testing.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.features import SAMPLE_RATE, resample

TEST_TAKES = 5


@dataclass(frozen=True)
class DigitUtterance:
    """Utterance of digit groups, such as "4 29 071", and its audio (samples,) float32 at 16 kHz."""

    text: str
    audio: np.ndarray


class Digits:
    """The recordings of one split, by speaker and digit, at 16 kHz."""

    def __init__(self, fsdd: Path, split: str) -> None:
        found: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted((fsdd / "recordings").glob("*.wav")):
            digit, speaker, take = path.stem.split("_")
            if (int(take) < TEST_TAKES) == (split == "test"):
                audio, rate = soundfile.read(path, dtype="float32")
                found[speaker][digit].append(resample(audio, rate, SAMPLE_RATE))
        if not found:
            raise SystemExit(f"{fsdd}/recordings holds no DIGIT_SPEAKER_TAKE.wav")
        self._recordings = found
        self._speakers = sorted(found)

    def draw(self, rng: random.Random, groups: list[str]) -> DigitUtterance:
        """Draw groups of digits of one speaker: short silences within a group, longer ones around it."""
        speaker = self._recordings[rng.choice(self._speakers)]
        parts = [self._silence(rng, 0.15, 0.3)]
        for group in groups:
            for digit in group:
                parts += [rng.choice(speaker[digit]), self._silence(rng, 0.01, 0.03)]
            parts.append(self._silence(rng, 0.15, 0.3))
        return DigitUtterance(" ".join(groups), np.concatenate(parts))

    @staticmethod
    def _silence(rng: random.Random, least: float, most: float) -> np.ndarray:
        length = round(SAMPLE_RATE * rng.uniform(least, most))
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(length)
        return (noise * 10 ** rng.uniform(-4.5, -3.0)).astype(np.float32)
