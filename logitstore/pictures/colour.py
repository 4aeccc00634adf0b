"""Colour ramps with steps that look equally large, for light and for dark pages.

A ramp goes evenly from white to a dark colour in OKLab lightness (Ottosson 2020), so that it also reads without
colour. White is taken out of each colour and becomes transparency, so that a picture shows the paper of its page.
In dark mode the page inverts the picture: zero is dark then, and the largest value is light.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_LMS_OF_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_RGB_OF_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True)
class ColourRamp:
    """A sequence of colours from white to a dark colour, in OKLCH.

    Attributes:
        dark: lightness of the last colour, from 0 to 1.
        chroma: largest chroma, reached in the middle.
        hues: hue in degrees of the first and of the last colour.
    """

    dark: float
    chroma: float
    hues: tuple[float, float]


RAMPS = {
    "probability": ColourRamp(0.33, 0.15, (185.0, 280.0)),
    "sound": ColourRamp(0.25, 0.012, (250.0, 250.0)),
    "occupancy": ColourRamp(0.36, 0.14, (88.0, 8.0)),
}


@cache
def palette(name: str, levels: int) -> NDArray[np.uint8]:
    """Return (levels, 4) red, green, blue and opacity of a ramp of :data:`RAMPS`; the first is transparent."""
    ramp, x = RAMPS[name], np.linspace(0, 1, levels)
    lightness = 1 - (1 - ramp.dark) * x
    chroma = ramp.chroma * np.sin(np.pi * (0.04 + 0.72 * x)) * (x > 0)
    hue = np.radians(ramp.hues[0] + (ramp.hues[1] - ramp.hues[0]) * x)
    opaque = _srgb(lightness, chroma, hue)
    opacity = np.maximum(1 - opaque.min(axis=1, keepdims=True), 1 / 255)
    colour = 1 - (1 - opaque) / opacity
    opacity[0] = 0
    return np.round(255 * np.hstack([np.clip(colour, 0, 1), opacity])).astype(np.uint8)


def _srgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (N, 3) red, green and blue from 0 to 1 of colours in OKLCH."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = np.clip((lab @ _LMS_OF_LAB.T) ** 3 @ _RGB_OF_LMS.T, 0, 1)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


XTERM_LEVELS = (0, 95, 135, 175, 215, 255)  # of each colour in the 6 × 6 × 6 cube of a 256-colour terminal


@cache
def terminal_palette(name: str, levels: int) -> tuple[int, ...]:
    """Return the nearest of a terminal's 256 colours for each level of a ramp, from black to light."""
    ramp, x = RAMPS[name], np.linspace(0, 1, levels)
    hue = np.radians(ramp.hues[0] + (ramp.hues[1] - ramp.hues[0]) * (1 - x))
    colours = 255 * _srgb(0.15 + 0.8 * x, ramp.chroma * np.sin(np.pi * np.clip(x, 0.1, 0.9)), hue)
    cube = np.abs(colours[:, :, None] - np.array(XTERM_LEVELS)).argmin(axis=2)
    codes = 16 + cube @ np.array([36, 6, 1])
    codes[0] = 16
    return tuple(int(code) for code in codes)
