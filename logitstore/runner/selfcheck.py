"""What is checked on the first batch, before hours are spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import NonFinite, NotLogits, TeacherError
from .checks import Skips
from .driver import Driver, Spoken
from .stored_heads import require_factors, require_lattice_factors

ALREADY_NORMALISED = 1e-3  # nats: |log Σ exp| of a row of log-probabilities
SAME_DISTRIBUTION = 1e-3
PADDING_LEAK = 1e-2
UNIFORM = 1e-3  # nats between the best and the worst class
CONSTANT = 1e-5  # in probability, over all frames of a batch
ENOUGH_FRAMES = 10


@dataclass(frozen=True)
class SelfCheck:
    """What the first batch showed: one sentence each."""

    findings: tuple[str, ...]


def self_check(driver: Driver, spoken: Sequence[Spoken], skips: Skips | None = None) -> SelfCheck:
    """Prove on what a first batch gave that what is tapped is what the model means.

    * no branch is broken: NaN throughout, uniform, or constant whatever it hears (``skips`` may let it pass);
      nor is a layer, but that its numbers may be anything;
    * rows are logits, not log-probabilities already, and not all the same;
    * log_softmax of them is what the model itself says, where it says anything (``log_probs``);
    * an utterance alone gives what it gives in a padded batch.

    Raises ``NotLogits``, ``NonFinite`` or ``TeacherError`` naming the utterance and the difference.
    """
    spoken = driver.openings(spoken)
    found: list[str] = []
    if driver.was_training:
        found.append("the model came in training mode and was put to eval")
    for stream in driver.streams:
        if not driver.kinds[stream].axes:
            continue
        _require_alive(driver, spoken, stream, skips or Skips())
        head = driver.described.get(stream)
        normalised = head is not None and head.normalised
        if normalised:
            found.append(f"the {stream} branch has no logits tensor (HAT): its log-probabilities are stored")
        for item in spoken if driver.kinds[stream].classes and not normalised else ():
            rows = _rows(driver, item, stream)
            if not len(rows) or not bool(rows.isfinite().all()):
                continue  # the encoder names these, utterance by utterance
            require_logits(rows, stream, item.loaded.utt.id)
    for stream in driver.heads:
        if stream == "rnnt":
            found.append(require_lattice_factors(driver, spoken))
        else:
            found.append(require_factors(driver, spoken, stream))
    if said := _same_as_model(driver, spoken):
        found.append(said)
    if len(spoken) > 1 and any(kind.axes for kind in driver.kinds.values()):
        found.append(_alone_as_together(driver, spoken))
    return SelfCheck(tuple(found))


def _rows(driver: Driver, item: Spoken, stream: str) -> torch.Tensor:
    """(N, V) or (T, D) float32 rows of one utterance: all of them, or the lattice's first slice."""
    if stream == "rnnt":
        piece = next(driver.lattice(item), None)
        return torch.zeros(0, 1) if piece is None else piece.reshape(-1, piece.shape[-1]).float()
    if stream in item.rows:
        return item.rows[stream].float()
    return driver.decoded(item, stream)[0].float()


def require_logits(rows: torch.Tensor, stream: str, where: str) -> None:
    """Raise ``NotLogits`` for (N, V) rows that are log-probabilities already, or the same everywhere."""
    off = float(rows.logsumexp(-1).abs().max())
    if off < ALREADY_NORMALISED:
        raise NotLogits(
            f"the {stream} tap gives log-probabilities, not logits: |log Σ exp| ≤ {off:.1e} on every row",
            where=where,
            why="The log-normaliser is lost there, and a softmax may already be baked in.",
            do="Tap the Linear before the LogSoftmax (in Sequential(Dropout, Linear, LogSoftmax) it is .1).",
        )


def _require_alive(driver: Driver, spoken: Sequence[Spoken], stream: str, skips: Skips) -> None:
    """Refuse a branch that says nothing about what it hears, in the word for how it does so.

    A lattice is looked at along its frames before the first label, and a decoder at its first token: there
    only the audio can change it.
    """
    classes = driver.kinds[stream].classes
    frames, finite, spread, change = 0, False, 0.0, 0.0
    first: torch.Tensor | None = None
    for item in spoken:
        for rows in _by_frame(driver, item, stream):
            good = rows[rows.isfinite().all(-1)]
            frames += len(rows)
            if len(good):
                finite = True
                low, high = good.aminmax(dim=-1)
                spread = max(spread, float((high - low).max()))
                said = good.softmax(-1) if classes else good
                first = said[0] if first is None else first
                change = max(change, float((said - first).abs().max()))
    if not frames:
        return
    if not finite:
        error: TeacherError = NonFinite(
            f"the {stream} branch gives NaN or infinity on every one of {frames} frames",
            why="A student would learn nothing but NaN from it.",
            do="Check the weights, and whether the model needs full precision (NaN from float16 overflow).",
        )
        skips.refuse("NaN", error)
    elif classes and spread < UNIFORM:
        error = NotLogits(
            f"the {stream} branch is uniform: the same logit for every class, within {spread:.1e}",
            why="This model knows nothing: weights that were never loaded look like this.",
            do="Check that the checkpoint's names are the model's (load_state_dict(strict=True)).",
        )
        skips.refuse("uniform", error)
    elif change < CONSTANT and frames >= ENOUGH_FRAMES:
        error = TeacherError(
            f"the {stream} branch is constant: all {frames} frames give the same probabilities, "
            f"within {change:.1e}",
            why="It does not hear the audio: a student would learn one row by heart.",
            do="Check the features and the weights; --skip-gate REASON if it is right.",
        )
        skips.refuse("constant", error)


def _by_frame(driver: Driver, item: Spoken, stream: str) -> Iterator[torch.Tensor]:
    """(N, V) float32 rows, one a frame; a lattice's before its first label, a decoder's first alone."""
    if stream in item.rows:
        yield item.rows[stream].float()
        return
    unlabelled = replace(item, labels={})
    if stream != "rnnt":
        yield driver.decoded(unlabelled, stream)[0][:1].float()
        return
    for piece in driver.lattice(unlabelled):
        yield piece.reshape(-1, piece.shape[-1]).float()


def _same_as_model(driver: Driver, spoken: Sequence[Spoken]) -> str:
    says = getattr(driver.teacher, "log_probs", None)
    if says is None or "ctc" not in driver.streams:
        return ""
    with torch.inference_mode():
        own = says(spoken[0].output).get("ctc")
    if own is None:
        return ""
    worst = 0.0
    for item in spoken:
        gap = (item.rows["ctc"].float().log_softmax(-1) - own[item.b, : item.T].float()).exp().sub(1)
        gap = gap * own[item.b, : item.T].float().exp()  # difference in probability
        worst = max(worst, float(gap.abs().max()) if gap.numel() else 0.0)
        if worst > SAME_DISTRIBUTION:
            raise TeacherError(
                f"softmax of the tapped logits differs from what the model itself says by {worst:.3g}",
                where=item.loaded.utt.id,
                why="The tapped module is not the one the model decides with (or dropout is live).",
                do="Tap the Linear that feeds the model's own log-softmax.",
            )
    return f"softmax of the tapped logits is the model's own, within {worst:.1e} in probability"


def _alone_as_together(driver: Driver, spoken: Sequence[Spoken]) -> str:
    """The shortest utterance has the most padding: it shows a leak first."""
    item = min(spoken, key=lambda s: s.T)
    alone = driver.run([item.loaded])[0]
    where = item.loaded.utt.id
    if alone.T != item.T:
        raise TeacherError(f"{item.T} frames in a batch, {alone.T} alone", where=where)
    worst = 0.0
    for stream, kind in driver.kinds.items():
        if not kind.axes:
            continue
        a, b = _rows(driver, alone, stream), _rows(driver, item, stream)
        if kind.classes:
            a, b = a.softmax(-1), b.softmax(-1)
        elif bool(a.isfinite().all() & b.isfinite().all()):  # as shares of the largest number there is
            a, b = (x / b.abs().max().clamp(min=1e-30) for x in (a, b))
        else:
            continue  # the encoder names it
        worst = max(worst, float((a - b).abs().max()) if a.numel() else 0.0)
    if worst > PADDING_LEAK:
        what = "probabilities" if any(k.classes for k in driver.kinds.values()) else "numbers"
        raise TeacherError(
            f"alone and in a padded batch its {what} differ by {worst:.3g}",
            where=where,
            why="Padding leaks into valid frames (or dropout is live): targets would depend on the batch.",
            do="Mask the padding in forward(), or dump with --batch-seconds 0 (one utterance at a time).",
        )
    return f"an utterance alone and in a padded batch agree within {worst:.1e} in probability"
