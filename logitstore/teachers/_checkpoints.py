"""Checkpoints in ``.pt`` files: read without running pickled code, averaged, and loaded into a model."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import TeacherError

State = dict[str, torch.Tensor]


def read_checkpoint(path: Path, *, trusted: bool = False) -> dict[str, Any]:
    """Read a file of ``torch.save`` to the CPU; raises ``TeacherError``.

    Args:
        path: checkpoint file.
        trusted: run the code that is pickled in the file; otherwise only tensors, plain values and paths are
            read.
    """
    safe: list[Any] = [pathlib.PosixPath, pathlib.PurePosixPath]
    try:
        with torch.serialization.safe_globals(safe):
            value = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as e:
        raise TeacherError(
            "it holds pickled objects besides weights",
            where=str(path),
            why=f"Reading them runs code out of the file. {str(e).splitlines()[0]}",
            do="Save the state_dict alone, or say pickle=trusted if the file is yours.",
        ) from e
    except (OSError, RuntimeError, EOFError) as e:
        raise TeacherError(f"not a checkpoint: {e}", where=str(path)) from e
    if not isinstance(value, Mapping):
        raise TeacherError(f"it holds {type(value).__name__}, not a state_dict", where=str(path))
    return dict(value)


def mean_of(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """Average several state_dicts in float64; integer and boolean tensors come from the last one."""
    mean = dict(states[-1])
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum((s[name].double() for s in states[:-1]), last.double())
            mean[name] = (total / len(states)).to(last.dtype)
    return mean


def between(start: Mapping[str, Any], end: Mapping[str, Any], where: str) -> State:
    """Average the weights over the batches between two icefall checkpoints, the first excluded.

    Each checkpoint holds ``model_avg``, the mean since training began over ``batch_idx_train`` batches.
    """
    for checkpoint in (start, end):
        if not checkpoint.get("model_avg"):
            raise TeacherError("the checkpoint has no model_avg", where=where, do="Add use-averaged-model=0.")
    period = int(start.get("average_period", 1))
    first, last = (int(c["batch_idx_train"]) // period * period for c in (start, end))
    if last <= first:
        raise TeacherError(f"batches {first} to {last} are an empty range to average over", where=where)
    mean = dict(end["model_avg"])
    for name, value in mean.items():
        if value.is_floating_point():
            total = value.double() * last - start["model_avg"][name].double() * first
            mean[name] = (total / (last - first)).to(value.dtype)
    return mean


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load a state_dict, with or without DDP's prefix ``module.``; raises ``TeacherError`` unless it fits."""
    state = {k.removeprefix("module."): v for k, v in state.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as e:
        raise TeacherError(f"the weights do not fit {type(model).__name__}: {e}", where=where) from e
    for names, what in ((missing, "lacks"), (unexpected, "holds weights that the model lacks:")):
        if names:
            raise TeacherError(
                f"the checkpoint {what} {', '.join(names[:4])}{', …' if len(names) > 4 else ''}",
                where=where,
                why="A part of the teacher would have random weights, or be left out.",
                do="Build the model with the settings that it was trained with.",
            )
