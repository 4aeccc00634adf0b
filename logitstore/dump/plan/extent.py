"""How much a manifest asks for, and a sample of it."""

from __future__ import annotations

from dataclasses import dataclass

from ...corpus.audio import stated_seconds
from ...corpus.manifest import Manifest, Utterance
from ...errors import ManifestError
from ...runner.stored_heads import fitted


@dataclass(frozen=True)
class Extent:
    """A manifest, read once.

    Attributes:
        utterances: of the manifest.
        seconds: of audio that the manifest states.
        unstated: utterances whose length it does not state.
        sample: utterances, the same distance apart in the manifest.
        fitted: ids of those that a dump makes what it stores once from.
        others: those of them that are not in the sample.
    """

    utterances: int
    seconds: float
    unstated: int
    sample: tuple[Utterance, ...]
    fitted: frozenset[str]
    others: tuple[Utterance, ...]

    def hours(self, mean: float) -> float:
        """Of the whole manifest, utterances without a stated length lasting ``mean`` seconds each."""
        return (self.seconds + self.unstated * mean) / 3600

    def hours_from(self, mean: float) -> str:
        """Where these hours come from."""
        if not self.unstated:
            return "durations of the manifest"
        which = "no durations in" if self.unstated == self.utterances else f"{self.unstated} missing from"
        return f"{which} the manifest: {mean:.2f} s each, the sample's mean"


def extent(manifest: Manifest, sample: int) -> Extent:
    """Read a manifest and take ``sample`` utterances of it, evenly spread; raises ``ManifestError``."""
    total = manifest.utterances
    taken, fit = [], []
    seconds, unstated = 0.0, 0
    for number, utt in enumerate(manifest):
        stated = stated_seconds(utt)
        seconds, unstated = seconds + (stated or 0.0), unstated + (stated is None)
        if (number + 1) * sample // total > number * sample // total:
            taken.append(utt)
        if fitted(number, total):
            fit.append(utt)
    if not taken:
        raise ManifestError("there is no utterance to plan with", where=str(manifest.path))
    ids = {u.id for u in taken}
    others = tuple(u for u in fit if u.id not in ids)
    return Extent(total, seconds, unstated, tuple(taken), frozenset(u.id for u in fit), others)
