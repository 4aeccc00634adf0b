"""Targets and batches as HTML for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..encodings.rows import has_classes
from ..pictures.html import Content, Html, foreign, table, tag
from ..pictures.png import data_url
from ..pictures.posteriors import classes_in_play

if TYPE_CHECKING:
    from .batch import TargetBatch
    from .target import Target

IN_PLAY = 24  # classes of a posteriorgram
LISTED = 8  # ids of a batch
LARGEST = 20_000_000  # numbers of a stream beyond which it is not drawn
_PICTURE = (
    "width:100%;max-width:60rem;height:{}px;image-rendering:pixelated;background:#fff;border:1px solid #ddd"
)


def target_html(target: Target) -> Html:
    """Return one utterance: lengths, texts, and a posteriorgram of each stream of frames."""
    facts: list[tuple[str, Content]] = [("T", target.T), ("U", target.U)]
    if "seconds" in target.meta:
        facts.append(("seconds", f"{target.meta['seconds']}"))
    if target.text is not None:
        facts.append(("text", foreign(target.text, 300)))
    facts += [(name, " × ".join(map(str, target.shapes[name]))) for name in target.streams]
    rows = [[tag("b", foreign(name)), value] for name, value in facts]
    return tag(
        "div",
        tag("h4", foreign(target.id, 100)),
        table([], rows),
        [_picture(target, n) for n in target.streams],
    )


def _picture(target: Target, stream: str) -> Html | None:
    """Return the posteriorgram of a stream of frames; None for other streams."""
    rows, axes = target.streams[stream], target.shapes[stream]
    if not has_classes(rows) or axes[0] != target.T or len(axes) != 2 or len(rows) * rows.width > LARGEST:
        return None
    probability = np.exp(rows.at(1.0).dense())
    shown = classes_in_play(probability, target.blank, IN_PLAY)
    if not shown:
        return tag("p", foreign(stream), ": no class but the blank reaches a probability of 0.04")
    listed = ", ".join(map(str, shown))
    name = f"Posteriorgram of {stream}: {target.T} frames, classes {listed}"
    style = _PICTURE.format(12 * len(shown))
    picture = tag("img", src=data_url(np.sqrt(probability[:, shown].T), "probability"), alt=name, style=style)
    note = f": {target.T} frames; classes {listed} from the top; square root of the probability"
    return tag("figure", tag("figcaption", foreign(stream), note), picture)


def batch_html(batch: TargetBatch) -> Html:
    """Return a batch: ids, temperature, the shape of each stream, and which frames are valid."""
    ids = [[", " if i else None, foreign(utt_id, 40)] for i, utt_id in enumerate(batch.utt_ids[:LISTED])]
    more = f", and {len(batch) - LISTED} more" if len(batch) > LISTED else None
    head = f"{len(batch)} utterances at temperature {batch.temperature:g}: "
    rows = [
        [foreign(name), type(stream).__name__, " × ".join(map(str, stream.mask.shape))]
        for name, stream in batch.streams.items()
    ]
    lengths = batch.lengths.tolist()
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    name = f"Valid frames of each utterance: {', '.join(map(str, lengths))}"
    style = _PICTURE.format(min(8 * len(lengths), 240))
    picture = tag("img", src=data_url(0.5 * mask, "probability", 16), alt=name, style=style)
    return tag("div", tag("p", head, ids, more), table(["stream", "type", "mask"], rows), picture)
