"""Curves, steps and bars as paths of SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .html import Content, Html, tag

HEIGHT = 100  # units of a curve's viewBox; the page stretches them


def short(value: float) -> str:
    """Return a coordinate with up to two decimals and no needless characters."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def stretched(width: float, height: float, *contents: Content, **attributes: object) -> Html:
    """Return an SVG that fills its element, whatever its shape; lines keep their width."""
    return tag(
        "svg",
        *contents,
        viewBox=f"0 0 {short(width)} {short(height)}",
        preserveAspectRatio="none",
        aria_hidden="true",
        **attributes,
    )


def steps(values: NDArray[Any]) -> str:
    """Return the path of (T,) numbers from 0 to 1, constant within each frame; 1 is at the top."""
    heights = HEIGHT * (1 - np.clip(np.nan_to_num(values), 0, 1))
    parts, at = [], None
    for t, height in enumerate(heights):
        y = short(float(height))
        if at is None:
            parts.append(f"M0 {y}")
        elif y != at:
            parts.append(f"H{t}V{y}")
        at = y
    return "".join([*parts, f"H{len(heights)}"])


def filled(values: NDArray[Any]) -> Html:
    """Return an area below (T,) numbers from 0 to 1, with its line, as SVG."""
    line = steps(values)
    return stretched(
        len(values),
        HEIGHT,
        tag("path", d=f"{line}V{HEIGHT}H0Z", class_="area"),
        tag("path", d=line, class_="line"),
    )


def staircase(points: Iterable[Sequence[float]]) -> str:
    """Return the path through (x, y) points."""
    return "".join(f"{'L' if number else 'M'}{short(x)} {short(y)}" for number, (x, y) in enumerate(points))
