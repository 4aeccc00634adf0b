"""Figures of targets, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import registry
from ..encodings.rows import has_classes
from ..errors import UsageError
from ..pictures.posteriors import classes_in_play

if TYPE_CHECKING:
    from .target import Target

IN_PLAY = 30  # classes of a posteriorgram


def plot_target(
    target: Target,
    streams: Sequence[str] | None = None,
    *,
    tokens: Sequence[str] | None = None,
    temperature: float = 1.0,
) -> Any:
    """Return a figure with one panel for each stream; :meth:`Target.plot`."""
    with registry.needs("plot"):
        from matplotlib.figure import Figure

    drawable = [n for n, rows in target.streams.items() if has_classes(rows)]
    names = drawable if streams is None else list(streams)
    if not names or not set(names) <= set(drawable):
        raise UsageError(
            f"streams={names!r}",
            where=target.id,
            do=f"Give streams of classes that the target has: {', '.join(drawable) or 'there is none'}.",
        )
    figure = Figure(figsize=(10, 3.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        if target.grid(name) is None:
            _frames(panel, target, name, tokens, temperature)
        else:
            _lattice(panel, target, name, tokens, temperature)
        panel.set_title(f"{name}, τ = {temperature:g}", loc="left", fontsize="medium")
    figure.suptitle(target.id.replace("$", r"\$"), fontsize="medium")
    return figure


def _seconds(target: Target, frames: int) -> tuple[float, str]:
    """Return the end of the time axis and its label."""
    if target.clock is None or frames != target.T:
        return float(frames), "frame" if frames == target.T else "label"
    return frames * float(target.clock.shift), "seconds"


def _frames(panel: Any, target: Target, name: str, tokens: Sequence[str] | None, temperature: float) -> None:
    """Draw a posteriorgram of the classes in play, and the blank as a line over it."""
    probability = np.exp(target.log_probs(name, temperature))
    shown = classes_in_play(probability, target.blank, IN_PLAY) or [target.blank]
    end, unit = _seconds(target, len(probability))
    extent = (0.0, end, len(shown) - 0.5, -0.5)
    image = panel.imshow(probability[:, shown].T, aspect="auto", extent=extent, cmap="GnBu", vmin=0, vmax=1)
    panel.set_yticks(range(len(shown)), [_label(c, tokens) for c in shown], fontsize="small")
    panel.set_xlabel(unit)
    panel.figure.colorbar(image, ax=panel, label="probability", pad=0.08)
    right = panel.twinx()
    times = (np.arange(len(probability)) + 0.5) * end / len(probability)
    right.plot(times, probability[:, target.blank], color="#a44c00", linewidth=1)
    right.set_ylim(0, 1.02)
    right.set_ylabel("blank", color="#a44c00")


def _lattice(panel: Any, target: Target, name: str, tokens: Sequence[str] | None, temperature: float) -> None:
    """Draw the occupancy of each node where it is stored, else the probability of the blank."""
    grid, nodes = target.grid(name), target.nodes.get(name)
    assert grid is not None
    if nodes is not None and nodes.occupancy is not None:
        values, what = nodes.occupancy, "occupancy"
    else:
        dense = target[name].at(temperature).dense()
        values, what = np.exp(dense[:, target.blank]), "probability of the blank"
    shown = np.where(grid < 0, np.nan, values[np.maximum(grid, 0)])
    end, unit = _seconds(target, len(shown))
    extent = (0.0, end, shown.shape[1] - 0.5, -0.5)
    image = panel.imshow(shown.T, aspect="auto", extent=extent, cmap="YlOrBr", vmin=0, vmax=1)
    labels = ["start", *(_label(int(c), tokens) for c in target.driven.get(name, target.labels))]
    panel.set_yticks(range(len(labels)), labels, fontsize="small")
    panel.set_xlabel(unit)
    panel.figure.colorbar(image, ax=panel, label=what)


def _label(index: int, tokens: Sequence[str] | None) -> str:
    return str(index) if tokens is None else tokens[index].replace("$", r"\$")
