"""The suite for authors of teachers passes on good teachers and names the fault of spoilt ones."""

from dataclasses import replace

import pytest
import torch

from logitstore.corpus.audio import load_audio
from logitstore.testing import teacher as suite
from tests.support import attention_teacher, demo


@pytest.fixture(scope="module")
def recording():
    utt = next(iter(demo.manifest(1)))
    return suite.Recording(load_audio(utt, 16000), utt.text)


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
def test_a_good_teacher_passes(check, recording):
    check(demo.teacher(), recording)
    check(attention_teacher.load(), recording)


def test_a_missing_method_is_named(recording):
    class Empty:
        model = torch.nn.Identity()

    with pytest.raises(AssertionError, match="has no describe, tokens"):
        suite.check_methods(Empty(), recording)


@pytest.mark.parametrize(
    ("methods", "check", "reason"),
    [
        ({"features": lambda t, a: t.features(a).double()}, "check_features", "float64"),
        ({"lengths": lambda t, o: t.lengths(o) + 9999}, "check_forward", "valid frames, and"),
        ({"lengths": lambda t, o: t.lengths(o).float()}, "check_forward", "no whole numbers"),
        ({"lengths": lambda t, o: t.lengths(o) // 3}, "check_times", "but"),
        ({"labels": lambda t, x: [0, *t.labels(x)]}, "check_labels", "hold the blank"),
        ({"join": lambda t, e, d: t.join(e, d).log_softmax(-1)}, "check_lattice", "log-probabilities"),
        ({"join": lambda t, e, d: t.join(e, d)[None]}, "check_lattice", "not"),
        (
            {
                "describe": lambda t: replace(
                    t.describe(), heads=(replace(t.describe().heads[0], module="x"),)
                )
            },
            "check_forward",
            "has no module 'x'",
        ),
    ],
)
def test_a_fault_is_named(recording, methods, check, reason):
    with pytest.raises(AssertionError, match=reason):
        getattr(suite, check)(demo.Spoiled(**methods), recording)
