"""Claims of utterance ids by the processes of one capture, and proof that an id names one utterance only.

A distributed sampler gives an utterance to several processes, and programs go through their data several
times. Each utterance is stored once. Two recordings under one id would be another matter: all but the first
would be lost. So each claim holds the valid frames and a signature of the output, and a second claim must
agree with both.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ManifestError
from ..schema.checksums import id_hash

SIGNATURE_SIZE = 16
SAME = 0.9  # cosine of two signatures; padding and half precision leave 0.99, other recordings are near 0
ROUNDING = 2  # frames, of lengths that are shares of the longest utterance of a batch
CLAIM = np.dtype(
    [
        ("id", "<u8"),
        ("process", "<u4"),
        ("batch", "<u4"),
        ("position", "<u4"),
        ("frames", "<u4"),
        ("stored", "?"),
        ("signature", "<f4", SIGNATURE_SIZE),
    ]
)
Signatures = NDArray[np.float32]


class IdClaims:
    """Ids claimed by any process of a capture.

    All processes append to one locked file in the session folder.

    Args:
        session: session folder.
    """

    def __init__(self, session: Path) -> None:
        self._file = open(session / "claims", "ab+")
        self._claims: dict[int, np.void] = {}  # by hash of the id
        self._read = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def take(
        self,
        ids: Sequence[str],
        batch: int,
        lengths: Sequence[int],
        signatures: Signatures | None,
        stored: Sequence[bool],
    ) -> list[bool]:
        """Claim the ids of a batch; return for each whether it is new to this capture.

        Args:
            ids: utterance ids.
            batch: number of the batch, for messages.
            lengths: valid frames of each utterance.
            signatures: (B, 16) signatures of their outputs; None where there are none.
            stored: whether each is in the store already.

        Raises ``ManifestError`` where an id was claimed for another utterance.
        """
        made = np.zeros(len(ids), CLAIM)
        made["id"] = [id_hash(i) for i in ids]
        made["process"], made["batch"] = os.getpid(), batch
        made["position"], made["frames"] = np.arange(1, len(ids) + 1), lengths
        made["stored"] = stored
        if signatures is not None:
            made["signature"] = signatures
        is_new = []
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._file.seek(self._read)
            for claim in np.frombuffer(self._file.read(), CLAIM):
                self._claims.setdefault(int(claim["id"]), claim)
            for utt_id, claim in zip(ids, made, strict=True):
                first = self._claims.setdefault(int(claim["id"]), claim)
                is_new.append(first is claim)
                if not _same_utterance(first, claim):
                    raise _two_utterances(utt_id, first, claim)
            self._file.write(made[np.array(is_new, bool)].tobytes())
            self._file.flush()
            self._read = self._file.tell()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return is_new


def captured_by(session: Path, pid: int) -> int:
    """Return the number of utterances that a process claimed to write."""
    path = session / "claims"
    if not path.exists():
        return 0
    data = path.read_bytes()
    claims = np.frombuffer(data[: len(data) // CLAIM.itemsize * CLAIM.itemsize], CLAIM)
    return int(((claims["process"] == pid) & ~claims["stored"]).sum())


def _same_utterance(first: np.void, second: np.void) -> bool:
    if abs(int(first["frames"]) - int(second["frames"])) > ROUNDING:
        return False
    a, b = first["signature"], second["signature"]
    if not (a.any() and b.any()):  # one of them has no signature
        return True
    return float(a @ b) >= SAME


def _two_utterances(utt_id: str, first: np.void, second: np.void) -> ManifestError:
    def where(claim: np.void) -> str:
        text = f"utterance {claim['position']} of batch {claim['batch']} ({claim['frames']} frames)"
        return text if first["process"] == second["process"] else f"{text} in process {claim['process']}"

    return ManifestError(
        f"one id names two utterances: {where(first)} and {where(second)}",
        where=utt_id,
        why="The outputs of the two differ, and a store holds one record of an id. File names without their "
        "folder are often not unique.",
        do="Use ids that are unique in the whole run: --ids EXPR, for example the path instead of its stem.",
    )


@torch.no_grad()
def signatures_of(output: torch.Tensor, lengths: Sequence[int]) -> Signatures:
    """Return (B, 16) unit vectors that tell utterances apart by their outputs.

    They are random projections of the valid frames (B, T, D) or of the first label position (B, T, U+1, V),
    with the mean over time removed. Zero vectors where an output does not change over time, or is not finite.
    """
    if output.dim() == 4:
        output = output[:, :, 0]
    t = output.shape[1]
    projected = (output @ _projection(output.shape[2]).to(output)).float()  # (B, T, 16)
    valid = torch.arange(t, device=output.device)[None] < torch.tensor(lengths, device=output.device)[:, None]
    counts = valid.sum(1).clamp(min=1)[:, None]
    mask = valid[:, :, None]
    projected = torch.where(mask, projected, projected.new_zeros(()))
    centred = torch.where(mask, projected - projected.sum(1, keepdim=True) / counts[:, None], 0.0)
    summed = (centred * _time_signs(t).to(centred.device)).sum(1)
    norms = summed.norm(dim=1, keepdim=True)
    units = torch.where((norms > 1e-6) & norms.isfinite(), summed / norms, 0.0)
    found: Signatures = units.cpu().numpy().astype(np.float32)
    return found


@lru_cache(maxsize=4)
def _projection(size: int) -> torch.Tensor:
    """Return a fixed (D, 16) matrix; numpy's generator leaves the program's random numbers alone."""
    values = np.random.Generator(np.random.PCG64(1)).standard_normal((size, SIGNATURE_SIZE))
    return torch.from_numpy((values / np.sqrt(size)).astype(np.float32))


@lru_cache(maxsize=4)
def _all_time_signs(blocks: int) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(2))
    return torch.from_numpy(generator.choice([-1.0, 1.0], (1024 * blocks, SIGNATURE_SIZE)).astype(np.float32))


def _time_signs(t: int) -> torch.Tensor:
    """Return a fixed (T, 16) matrix of signs, whose first rows do not depend on T."""
    blocks = 1
    while 1024 * blocks < t:
        blocks *= 2
    return _all_time_signs(blocks)[:t]
