"""A student's output for a report: log-probabilities of its CTC head, by utterance.

The output is a folder with one ``.npy`` file an utterance, or one ``.npz`` file. A file is named by the utterance's
id, an array of a ``.npz`` too; characters other than letters, digits, ``_``, ``.``, ``-`` and ``~`` are
percent-encoded as in URLs (:func:`file_name`). An array is (S, V) floating-point log-probabilities (nats) of the
student's S valid frames over the store's V tokens.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import logsumexp
from ..errors import LengthError, UsageError
from ..schema.spec import StreamSpec
from ..store.reader import Store
from ..targets.frames import Method
from ..targets.resample import resample_stream
from ..targets.target import Target
from .measure import is_frames
from .rows import Numbers, kl

ROUNDING = 0.02  # nats by which a row's log-sum-exp may differ from 0: float16 rounds


def file_name(utt_id: str) -> str:
    """Return the name of an utterance's file without its ending: the id, percent-encoded."""
    return quote(utt_id, safe="").replace("%7E", "~")


class StudentOutput:
    """A student's log-probabilities by utterance.

    Args:
        path: a folder of ``.npy`` files, or a ``.npz`` file.

    Raises:
        UsageError: there is neither.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._names: set[str] | None = None
        if self.path.is_dir():
            return
        if not (self.path.is_file() and zipfile.is_zipfile(self.path)):
            raise UsageError(
                "this is neither a folder of .npy files nor a .npz file",
                where=str(path),
                do="Write one (S, V) array of log-probabilities an utterance, named by its id.",
            )
        with zipfile.ZipFile(self.path) as file:
            self._names = {name.removesuffix(".npy") for name in file.namelist()}

    def __contains__(self, utt_id: str) -> bool:
        name = file_name(utt_id)
        if self._names is not None:
            return name in self._names
        return len(name) < 250 and (self.path / f"{name}.npy").is_file()

    def log_probs(self, utt_id: str, classes: int) -> NDArray[np.float32]:
        """Return the (S, V) float32 log-probabilities of an utterance, each row normalised.

        Raises:
            UsageError: another shape, numbers that are not finite, or rows that are no log-probabilities.
        """
        name = file_name(utt_id)
        try:
            if self._names is None:
                found: Any = np.load(self.path / f"{name}.npy", allow_pickle=False)
            else:
                with np.load(self.path, allow_pickle=False) as arrays:
                    found = arrays[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"the array cannot be read: {error}", where=self._place(name)) from None
        if found.ndim != 2 or found.shape[1] != classes or not len(found) or found.dtype.kind != "f":
            raise UsageError(
                f"the array is {found.dtype} {found.shape}, not floating-point (S, {classes})",
                where=self._place(name),
                do="Write the log-probabilities of the valid frames, over the tokens of the store.",
            )
        logp = np.maximum(found.astype(np.float32), -1e4)
        total = logsumexp(logp)
        if not np.isfinite(logp).all() or float(np.abs(total).max()) > ROUNDING:
            raise UsageError(
                "the rows are no log-probabilities: their probabilities do not sum to 1",
                where=self._place(name),
                do="Apply log_softmax before writing.",
            )
        return np.asarray(logp - total[:, None], np.float32)

    def _place(self, name: str) -> str:
        return str(self.path / f"{name}.npy") if self._names is None else f"{self.path}: {name}"

    def ids(self, store: Store) -> Iterator[str]:
        """Yield the ids of a store that the student has an output for."""
        return (utt_id for utt_id in store if utt_id in self)


def frame_stream(store: Store) -> StreamSpec:
    """Return the stream that a student's output is compared with; raises ``UsageError`` where there is none."""
    for spec in store.spec.streams:
        if spec.kind == "ctc" and is_frames(spec):
            return spec
    raise UsageError("the store has no ctc stream to compare a student's output with", where=str(store.place))


def target_of(target: Target, stream: str, frames: int) -> NDArray[np.float32]:
    """Return the (S, V) log-probabilities of a target at a student's frames, by the stream's default method.

    Raises ``LengthError`` for a number of frames that cannot be the utterance's.
    """
    if not target.T / 8 <= frames <= target.T * 8:
        raise LengthError(f"{frames} student frames for {target.T} of the teacher", where=target.id)
    return resample_stream(target, stream, frames, Method.of(stream, None), 1.0).rows.dense()


def divergence(target: Target, stream: str, student: NDArray[np.float32]) -> Numbers:
    """Return the (S,) KL(target ‖ student) of each student frame in nats."""
    return kl(target_of(target, stream, len(student)), student)
