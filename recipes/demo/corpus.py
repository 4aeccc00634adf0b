"""Make the demo corpus with espeak-ng: hours to train the demo teacher from, and twenty utterances to keep.

    python recipes/demo/corpus.py train --out DIR --hours 5
    python recipes/demo/corpus.py demo --out manifests

Everything follows from the seed, for one version of espeak-ng. No sentence of the demo occurs in training
(`grammar.split_of`), nor does the voice of every other demo utterance (`HELD_OUT`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recipes.demo.features import SAMPLE_RATE, resample
from recipes.demo.grammar import draw

ESPEAK_RATE = 22050  # Hz, what espeak-ng writes
ACCENTS = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-us-nyc")
#: Speakers, as espeak-ng calls its voice variants. HELD_OUT never speak in training, whatever the accent.
SPEAKERS = ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f3", "f4", "steph", "adam", "linda", "david")
HELD_OUT = ("m5", "f2")

DEMO_COUNT = 20
DEMO_SECONDS = (1.0, 4.0)
DEMO_AT_ESPEAK_RATE = (6, 13)  # which demo utterances keep 22.05 kHz, so that a reader has to resample
DEMO_ALIKE = 2  # how many demo sentences may begin with the same word
DEMO_MUST_SAY = ("don’t", "café", "o’clock", "zoë")  # so that text outside ASCII is certain to be there


@dataclass(frozen=True)
class Take:
    """One utterance to be spoken: every setting espeak-ng and the noise need."""

    id: str
    text: str
    accent: str
    speaker: str
    words_per_minute: int
    pitch: int
    snr_db: float
    seed: int
    rate: int = SAMPLE_RATE


def draw_take(rng: random.Random, *, utterance: str, split: str, speakers: tuple[str, ...]) -> Take:
    """Draw one utterance of `split`; the demo is spoken a little more calmly than the training data."""
    demo = split == "demo"
    return Take(
        id=utterance,
        text=draw(rng, split),
        accent=rng.choice(ACCENTS),
        speaker=rng.choice(speakers),
        words_per_minute=rng.randint(145, 190) if demo else rng.randint(135, 205),
        pitch=rng.randint(35, 65) if demo else rng.randint(25, 75),
        snr_db=rng.uniform(18, 35) if demo else rng.uniform(8, 45),
        seed=rng.getrandbits(32),
    )


def speak(take: Take) -> np.ndarray:
    """Run espeak-ng and add noise. Returns (samples,) float32 in [-1, 1] at `take.rate` Hz."""
    command = ["espeak-ng", "-v", f"{take.accent}+{take.speaker}", "-s", str(take.words_per_minute)]
    command += ["-p", str(take.pitch), "-b", "1", "--stdin", "--stdout"]
    wav = subprocess.run(command, input=take.text.encode("utf-8"), capture_output=True, check=True).stdout
    # The 44-byte header of a wav written to a pipe cannot know the length, so the samples are read past it.
    audio = np.frombuffer(wav[44 : 44 + (len(wav) - 44) // 2 * 2], dtype="<i2").astype(np.float32) / 32768
    audio = add_noise(resample(audio, ESPEAK_RATE, take.rate), take.snr_db, np.random.default_rng(take.seed))
    return audio.astype(np.float32)


def add_noise(audio: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add coloured noise at `snr_db` below the speech, and set a peak level between 0.2 and 0.9."""
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    tilt = rng.uniform(0.0, 1.0)  # 0 is white, 1 is pink in amplitude squared
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (tilt / 2)
    noise = np.fft.irfft(spectrum, n=len(audio))
    wanted = float(np.sqrt(np.mean(audio**2))) * 10 ** (-snr_db / 20)
    mixed = audio + noise * (wanted / float(np.sqrt(np.mean(noise**2)) + 1e-9))
    return mixed * (rng.uniform(0.2, 0.9) / float(np.max(np.abs(mixed)) + 1e-9))


def write(takes: Iterator[Take], out: Path, *, name: str, seconds: float) -> float:
    """Speak takes into `out/NAME/*.flac`, listed in `out/NAME.jsonl`, until `seconds` of audio are there."""
    (out / name).mkdir(parents=True, exist_ok=True)
    total = 0.0
    with ThreadPoolExecutor(2) as pool, open(out / f"{name}.jsonl", "w", encoding="utf-8") as manifest:
        while total < seconds:
            batch = [take for take, _ in zip(takes, range(64), strict=False)]
            if not batch:
                break
            for take, audio in zip(batch, pool.map(speak, batch), strict=True):
                path = out / name / f"{take.id}.flac"
                soundfile.write(path, audio, take.rate, subtype="PCM_16")
                duration = round(len(audio) / take.rate, 6)
                row = {"id": take.id, "audio": f"{name}/{path.name}", "duration": duration, "text": take.text}
                manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
                total += duration
    return total


def training(seed: int, split: str) -> Iterator[Take]:
    """Yield takes of the "train" or "dev" sentences without end, by the training speakers."""
    rng = random.Random(f"{split} {seed}")
    number = 0
    while True:
        yield draw_take(rng, utterance=f"{split}-{number:06d}", split=split, speakers=SPEAKERS)
        number += 1


def demo(seed: int) -> Iterator[Take]:
    """Yield the demo takes: every other one by a held-out speaker, 1 to 4 s long, no sentence twice."""
    rng = random.Random(f"demo {seed}")
    said: set[str] = set()
    openings: Counter[str] = Counter()
    for number in range(DEMO_COUNT):
        speakers = SPEAKERS if number % 2 else (HELD_OUT[number // 2 % 2],)
        rate = ESPEAK_RATE if number in DEMO_AT_ESPEAK_RATE else SAMPLE_RATE
        wanted = DEMO_MUST_SAY[number] if number < len(DEMO_MUST_SAY) else ""
        while True:
            take = draw_take(rng, utterance=f"demo-{number:02d}", split="demo", speakers=speakers)
            opening = take.text.split()[0]
            if wanted not in take.text or take.text in said or openings[opening] == DEMO_ALIKE:
                continue
            take = replace(take, rate=rate)
            if DEMO_SECONDS[0] <= len(speak(take)) / rate <= DEMO_SECONDS[1]:
                break
        said.add(take.text)
        openings[opening] += 1
        yield take


def main() -> None:
    """Read the command line and write one of the two corpora."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("use", choices=("train", "demo"))
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--hours", type=float, default=5.0, help="hours of training audio (train only)")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.use == "demo":
        total = write(demo(asked.seed), asked.out, name="demo", seconds=float("inf"))
        print(f"demo: {total:.1f} s")
        return
    for split, seconds in (("dev", 300.0), ("train", asked.hours * 3600)):
        total = write(training(asked.seed, split), asked.out, name=split, seconds=seconds)
        print(f"{split}: {total / 3600:.2f} h")


if __name__ == "__main__":
    main()
