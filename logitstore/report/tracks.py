"""Tracks: pictures of one utterance that lie below each other on one time axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pictures.curve import filled, short, staircase, stretched
from ..pictures.html import Content, Html, foreign, tag
from ..pictures.png import data_url
from .rows import Lattice

ROW = 13  # pixels of a row of a posteriorgram
LATTICE_HEIGHT = 380  # pixels of a lattice at most
LANES = 3  # lines that labels of tokens are spread over
CHARACTERS = 120  # characters that are assumed to fit side by side into a track


@dataclass(frozen=True)
class TimeAxis:
    """The time axis of one utterance, from the beginning of frame 0 to the end of the last frame.

    Attributes:
        frames: number of teacher frames.
        shift: seconds of a frame; None where they are not known.
    """

    frames: int
    shift: float | None

    @property
    def seconds(self) -> float | None:
        """Length of the axis in seconds; None where it is not known."""
        return None if self.shift is None else self.frames * self.shift

    def percent(self, frame: float, frames: int = 0) -> str:
        """Return a position on the axis as a percentage for CSS, in frames of this axis or of another."""
        return f"{short(100 * frame / max(frames or self.frames, 1))}%"

    def ticks(self) -> Html:
        """Return the scale in seconds, or in frames where the seconds of a frame are not known."""
        length = self.seconds or float(self.frames)
        step = next(
            (s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if length / s <= 12), 1000
        )
        unit = "s" if self.seconds else ""
        marks = []
        for number in range(int(length / step) + 1):
            at = number * step
            if at > 0.97 * length:
                break
            label = f"{at:g}" + (f" {unit}" if not number else "")
            marks.append(tag("span", label, style=f"left:{short(100 * at / length)}%"))
        return tag("div", marks, class_="plot ticks", aria_hidden="true")


def track(
    title: Content,
    plot: Html,
    *,
    labels: Iterable[Content] = (),
    note: Content = None,
    kind: str = "",
    height: float = 0,
) -> Html:
    """Return one track: a caption, labels at the left, the plot.

    Args:
        title: caption.
        plot: an element of class ``plot``.
        labels: labels of the plot's rows, from the top.
        note: a remark behind the caption.
        kind: class of the track, for the style sheet.
        height: pixels of the plot; 0 for the style sheet's.
    """
    caption = tag("div", tag("b", title), None if note is None else tag("span", note), class_="caption")
    gutter = tag("div", [tag("span", label) for label in labels], class_="gutter", aria_hidden="true")
    style = f"--h:{short(height)}px" if height else None
    return tag("div", caption, gutter, plot, class_=f"track {kind}".strip(), style=style)


START = "▁"  # begins a piece that begins a word, in tables of SentencePiece


def piece(token: str, cut: int) -> Html:
    """Return a token with a faint sign of a word's beginning, cut to a number of characters."""
    if not token.startswith(START) or token == START:
        return foreign(token, cut)
    return tag(
        "bdi", tag("i", START, class_="w"), token[1:] if len(token) <= cut else f"{token[1 : cut - 1]}…"
    )


def heat(
    values: NDArray[Any],
    ramp: str,
    name: str,
    *over: Content,
    levels: int = 64,
) -> Html:
    """Return a plot of (rows, frames) numbers from 0 to 1.

    Args:
        values: the numbers.
        ramp: name of the colour ramp.
        name: description for screen readers.
        over: pictures that are drawn over it.
        levels: number of colours.
    """
    image = tag("img", src=data_url(values, ramp, levels), alt=name, class_="heat")
    return tag("div", image, over, class_="plot")


def posteriorgram(
    title: Content,
    probability: NDArray[np.floating],
    classes: Sequence[int],
    names: Callable[[int], str],
    spikes: Sequence[tuple[int, int]],
    *,
    note: Content = None,
    described: str = "Posteriorgram",
) -> Html:
    """Return the track of a posteriorgram: a row for each class in play, its best path marked.

    Args:
        title: caption.
        probability: (T, V) probabilities; the square root is drawn, so that weak rivals stay visible.
        classes: classes in play, from the top.
        names: function that returns the token of a class.
        spikes: (frame, class) of the tokens that the best path emits.
        note: a remark behind the caption.
        described: beginning of the description for screen readers.
    """
    if not classes:
        empty = tag("p", "No class but the blank reaches a probability of 0.04.", class_="quiet")
        return track(title, tag("div", empty, class_="plot"), note=note)
    row = {c: i for i, c in enumerate(classes)}
    marks = tag("path", d="".join(f"M{t} {row[c] + 1}h1" for t, c in spikes if c in row), class_="mark")
    tokens = ", ".join(names(c) for c in classes)
    name = f"{described}: probability of {len(classes)} classes in {len(probability)} frames: {tokens}"
    plot = heat(
        np.sqrt(probability[:, list(classes)].T),
        "probability",
        name,
        stretched(len(probability), len(classes), marks),
    )
    labels = [piece(names(c), 14) for c in classes]
    return track(title, plot, labels=labels, note=note, kind="posteriors", height=ROW * len(classes))


def curve(
    title: Content,
    values: NDArray[Any],
    top: float,
    name: str,
    *,
    kind: str = "",
    scale: tuple[str, str] = ("", "0"),
) -> Html:
    """Return the track of a curve of (T,) numbers from 0 to ``top``.

    Args:
        title: caption.
        values: the numbers.
        top: number at the upper end.
        name: description for screen readers.
        kind: class of the track, for the style sheet.
        scale: labels of the upper and of the lower end.
    """
    image = tag("div", filled(values / max(top, 1e-12)), class_="plot", role="img", aria_label=name)
    labels = [scale[0] or f"{top:.3g}", scale[1]]
    return track(title, image, labels=labels, kind=f"curve {kind}".strip())


@dataclass(frozen=True)
class PlacedToken:
    """A token on the time axis.

    Attributes:
        frame: frame at which it is emitted.
        token: its text.
        state: ``ok``, ``sub``, ``ins`` or ``del``.
        beside: token of the reference that it replaces.
    """

    frame: float
    token: str
    state: str = "ok"
    beside: str = ""


_MEANING = {"sub": "in place of", "ins": "inserted", "del": "missing"}


def tokens(title: Content, placed: Sequence[PlacedToken], frames: int, *, note: Content = None) -> Html:
    """Return the track of a decode: its tokens at their frames, errors marked.

    Args:
        title: caption.
        placed: tokens in order.
        frames: length of the axis in the same frames.
        note: a remark behind the caption.
    """
    ends, found, used = [-1e9] * LANES, [], 1
    for one in placed:
        at = 100 * (one.frame + 0.5) / max(frames, 1)
        width = (min(len(one.token), 16) + 1.5) * 100 / CHARACTERS
        lane = next((i for i in range(LANES) if ends[i] <= at - width / 2), None)
        if lane is None:
            lane = int(np.argmin(ends))
        ends[lane] = at + width / 2
        used = max(used, lane + 1)
        meaning = _MEANING.get(one.state)
        title_of = None if meaning is None else f"{one.token}: {meaning} {one.beside}".strip()
        style = f"left:{short(at)}%;--lane:{lane}"
        edge = "left" if at < width / 2 else "right-end" if at > 100 - width / 2 else ""
        found.append(
            tag(
                "span",
                piece(one.token, 16),
                class_=f"{one.state} {edge}".strip(),
                style=style,
                title=title_of,
            )
        )
    said = " ".join(one.token for one in placed) or "nothing"
    plot = tag("div", found, class_="plot", role="img", aria_label=f"Decode on the time axis: {said}")
    return track(title, plot, note=note, kind="tokens", height=19 * used + 3)


def lattice_track(title: Content, lattice: Lattice, labels: Sequence[str], *, note: Content = None) -> Html:
    """Return the track of a lattice: occupancy of each node, the best alignment, the border of what is kept.

    Args:
        title: caption.
        lattice: the lattice.
        labels: (U,) tokens of its label positions.
        note: a remark behind the caption.
    """
    frames, positions = lattice.kept.shape
    over: list[Content] = []
    if not lattice.kept.all():
        over.append(tag("path", d=_border(lattice.kept), class_="kept"))
    if lattice.begin is not None:
        path = staircase(lattice.alignment())
        over += [tag("path", d=path, class_="halo"), tag("path", d=path, class_="best")]
    name = (
        f"Lattice of {frames} frames and {positions} label positions: probability that an alignment passes each "
        f"node; {int(lattice.kept.sum())} nodes are stored"
    )
    plot = heat(np.sqrt(lattice.occupancy.T), "occupancy", name, stretched(frames, positions, over))
    row = min(ROW, LATTICE_HEIGHT / positions)
    shown: list[Content] = [tag("i", "start"), *(piece(label, 14) for label in labels)]
    if row < 9:
        shown = [tag("i", "start"), tag("i", f"{positions - 1} labels")]
    return track(title, plot, labels=shown, note=note, kind="lattice", height=row * positions)


def _border(kept: NDArray[np.bool_]) -> str:
    """Return the path around the stored nodes of each frame's range of label positions."""
    lowest, highest = kept.argmax(axis=1), kept.shape[1] - kept[:, ::-1].argmax(axis=1)
    parts = []
    for edge in (lowest, highest):
        at = -1
        for t, u in enumerate(edge):
            if not t:
                parts.append(f"M0 {u}")
            elif u != at:
                parts.append(f"H{t}V{u}")
            at = u
        parts.append(f"H{len(edge)}")
    return "".join(parts)


def stack(axis: TimeAxis, tracks: Iterable[Content], name: str, **attributes: object) -> Html:
    """Return tracks below each other, with the scale above and below them.

    Args:
        axis: their time axis.
        tracks: the tracks.
        name: description for screen readers.
        attributes: further attributes.
    """
    scale = tag("div", tag("div", class_="gutter"), axis.ticks(), class_="track scale")
    inside = tag("div", scale, tracks, scale, class_="tracks", style=f"--frames:{axis.frames}")
    return tag(
        "div",
        inside,
        class_="scroll",
        role="group",
        aria_label=name,
        tabindex="0",
        data_frames=axis.frames,
        **attributes,
    )
