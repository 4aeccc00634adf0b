"""Which encodings and lattice forms are worth trying, and the wish to have one of them chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from ...schema.kinds import kind_of
from ...schema.lattice import Form

BUDGET = 1e-3  # nats that a row may lose on average where nothing is said
NUCLEUS, FACTORED = (1e-5, 10.0), (1e-6, 1.0)  # budgets that these encodings take
TOP = (8, 32)
FORMS = ("banded:5", "path")  # beside the whole lattice


@dataclass(frozen=True)
class Wish:
    """An encoding to be chosen by what it costs on a sample: ``auto``, ``auto:KL``, each with ``/FORM``.

    Attributes:
        budget: nats that a row may lose on average at any temperature; 0 for what the plan says.
        form: of the lattice; empty for any.
    """

    budget: float = 0.0
    form: str = ""

    @classmethod
    def parse(cls, text: str) -> Wish | None:
        """The wish that stands for an encoding; None for the name of one. Raises ``UsageError``."""
        how, slash, form = text.partition("/")
        name, colon, budget = how.partition(":")
        if name != "auto":
            return None
        if colon and not re.fullmatch(r"\d{1,3}(\.\d{1,9})?(e-?\d{1,2})?", budget):
            raise UsageError(f"{text}: {budget!r} is no number of nats", do="E.g. auto, auto:1e-3.")
        value = float(budget) if colon else 0.0
        if colon and not value > 0:
            raise UsageError(f"{text}: a budget of {budget} nats", do="More than 0, e.g. auto:1e-3.")
        if slash and Form.parse(form).framewise:
            raise UsageError(
                f"{text}: means over label positions are not rows of the teacher to compare with",
                do="Name their encoding, e.g. dense/mean-u, or another form.",
            )
        return cls(value, str(Form.parse(form)) if slash else "")


def contenders(stream: str, budget: float, temperatures: Sequence[float], form: str = "") -> list[str]:
    """Encodings of a stream to try, as a user writes them: ``topk:8``, ``nucleus:0.001/path``, ...

    Args:
        stream: ``ctc``, ``rnnt``, ``seq2seq``, or a layer: ``hidden``, ``hidden_NAME``.
        budget: nats that a row may lose.
        temperatures: at which it shall not lose more.
        form: the only lattice form to try; empty for those that make sense.
    """
    if not kind_of(stream).classes:
        return ["vectors", "vectors:int8"]
    near, hottest = _between(budget, NUCLEUS), min(max(temperatures), 16.0)
    every = ["dense", "dense:int8", *(f"topk:{k}" for k in TOP), f"nucleus:{near}"]
    if hottest > 1:
        every.append(f"nucleus:{near}@{hottest:g}")
    if stream != "rnnt":
        return [*every, "factored", "factored:int8", f"factored:{_between(budget, FACTORED)}"]
    every.append("collapsed")
    if form:
        return [*(f"{e}/{form}" for e in every), *(["factored"] if form == "full" else [])]
    some = ("dense:int8", f"topk:{TOP[0]}", f"nucleus:{near}", "collapsed")
    return [*every, "factored", *(f"{e}/{f}" for f in FORMS for e in some)]


def _between(budget: float, limits: tuple[float, float]) -> str:
    return f"{min(max(budget, limits[0]), limits[1]):g}"
