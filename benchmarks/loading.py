"""Padding of epoch plans beside lhotse's DynamicBucketingSampler, and times to plan and to resume.

    python benchmarks/loading.py [--short]

Durations are drawn from a log-normal distribution like that of read speech, 0.5 to 35 s. Both samplers have the same
durations, the same most seconds of a batch with its padding, and the same number of buckets. *Padding* is the share of
the padded seconds that is padding; *batches* says how well batches are filled. Times are CPU times of this process, the
least of several. *Resume* is ``load_state_dict`` alone; *first batch* is all from there to the first batch, the plan of
the epoch included. ``--short``: 20 000 utterances. Exits with 1 where a plan pads more than lhotse by 0.2 points, or
needs 1 % more batches.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.scale import cpu
from logitstore import Durations, EpochPlan, PlanBatchSampler

LIMIT = 600.0  # seconds of a batch with its padding
COMPARED, SIZES, SHORT = 100_000, (1_000_000, 10_000_000), 20_000
MICRO = 24
MORE_PADDING, MORE_BATCHES = 0.2, 1.01  # than lhotse's: points, and a factor


def seconds_of(count: int) -> np.ndarray:
    """Return durations of utterances in seconds."""
    return np.clip(np.random.default_rng(0).lognormal(2.2, 0.6, count), 0.5, 35).round(3)


def padding(batches: Sequence[Sequence[float]]) -> float:
    """Return the share of padding in percent."""
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 100 * (1 - sum(map(sum, batches)) / padded)


def of_lhotse(seconds: np.ndarray, buckets: int) -> list[list[float]]:
    """Return the durations of every batch of lhotse's sampler, one epoch."""
    import lhotse
    from lhotse.dataset import DynamicBucketingSampler, TimeConstraint

    source = lhotse.audio.AudioSource("file", [0], "a.wav")

    def cut(number: int, duration: float) -> lhotse.MonoCut:
        recording = lhotse.Recording(f"r{number}", [source], 16000, round(duration * 16000), duration)
        return lhotse.MonoCut(f"u{number}", 0.0, duration, 0, recording=recording)

    cuts = lhotse.CutSet.from_cuts(cut(n, float(s)) for n, s in enumerate(seconds))
    sampler = DynamicBucketingSampler(
        cuts,
        constraint=TimeConstraint(max_duration=LIMIT),
        num_buckets=buckets,
        shuffle=True,
        drop_last=False,
        num_cuts_for_bins_estimate=len(seconds),
        buffer_size=20_000,
        rank=0,
        world_size=1,
    )
    return [[c.duration for c in batch] for batch in sampler]


def compare(count: int) -> bool:
    """Print padding and batches of both samplers; return whether a plan is no worse."""
    seconds, good = seconds_of(count), True
    ids = [f"u{n}" for n in range(count)]
    least = seconds.sum() / LIMIT
    print(
        f"{count} utterances, {seconds.sum() / 3600:.0f} hours, batches of {LIMIT:g} s ({least:.0f} at least)"
    )
    print(f"{'buckets':>8} {'':8} {'padding %':>10} {'batches':>8} {'CPU s':>8}")
    for buckets in (10, 30):
        time_theirs, theirs = cpu(lambda buckets=buckets: of_lhotse(seconds, buckets), 1)
        time_ours, plan = cpu(
            lambda buckets=buckets: EpochPlan(ids, seconds, seed=0, seconds_per_batch=LIMIT, buckets=buckets)
        )
        ours = [seconds[batch].tolist() for batch in plan.batches()]
        for name, spent, batches in (("lhotse", time_theirs, theirs), ("plan", time_ours, ours)):
            print(f"{buckets:8} {name:8} {padding(batches):10.2f} {len(batches):8} {spent:8.2f}")
        good &= padding(ours) <= padding(theirs) + MORE_PADDING and len(ours) <= MORE_BATCHES * len(theirs)
    return good


def times(count: int) -> None:
    """Print the times of a plan of so many utterances."""
    seconds = seconds_of(count)
    ids = [f"u{n}" for n in range(count)]
    read, durations = cpu(lambda: Durations(ids, seconds), 1)
    settings = {"seed": 0, "seconds_per_batch": LIMIT, "micro": MICRO, "rank": 0, "world": 1}
    sampler = PlanBatchSampler(durations, **settings)
    state = {**sampler.state_dict(step=0), "epoch": 1, "step": sampler.plan.steps // 2}
    planned, _ = cpu(lambda: EpochPlan(durations, seed=0, seconds_per_batch=LIMIT, micro=MICRO))
    resumed, _ = cpu(lambda: sampler.load_state_dict(state))

    def first_batch() -> list[int]:
        fresh = PlanBatchSampler(durations, **settings)
        fresh.load_state_dict(state)
        return next(iter(fresh))

    first, _ = cpu(first_batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count:13} {read:13.2f} {planned:13.2f} {1e6 * resumed:13.0f} {first:13.2f} {peak:13.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="few utterances")
    short = parser.parse_args().short
    try:
        good = compare(SHORT if short else COMPARED)
    except ModuleNotFoundError as error:
        print(f"not compared with lhotse: {error} (pip install 'logitstore[lhotse]')", file=sys.stderr)
        good = True
    heads = ("utterances", "durations s", "plan s", "resume µs", "first batch s", "peak GB")
    print("\n" + " ".join(f"{head:>13}" for head in heads))
    for count in (SHORT,) if short else SIZES:
        times(count)
    return not good


if __name__ == "__main__":
    sys.exit(main())
