"""Mistakes of a caller: each is named with its remedy, in place of a bare traceback or of wrong advice."""

import re

import pytest
import torch

from logitstore import open_store
from logitstore.errors import LengthError, UsageError
from logitstore.losses import ctc_kd, joint_kd, rnnt_kd
from tests.support import demo
from tests.support.command import logitstore
from tests.support.dumping import run

LABELS_FAIL = """
from recipes.demo.teacher import load as load_demo

def load():
    teacher = load_demo()
    def labels(text):
        raise KeyError(text[0])
    teacher.labels = labels
    return teacher
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("messages") / "s"
    run(out, limit=2)
    return open_store(out)


@pytest.fixture(scope="module")
def batch(store):
    return store.batch(list(store))


def named(*parts):
    """Return a pattern of parts in this order, in one message."""
    return "(?s)" + ".*".join(map(re.escape, parts))


def test_a_lattice_of_another_shape_is_refused_with_the_axis_that_differs(batch):
    shape = (*batch["rnnt"].mask.shape, batch["rnnt"].classes)
    b, t, u, v = shape
    wrong = {
        "axis B": ((b + 1, t, u, v), named(f"The student has {b + 1} utterances, the batch {b}")),
        "axis T": ((b, t - 1, u, v), named("Rows of different moments", "frames=lengths")),
        "axis U": (
            (b, t, u - 1, v),
            named(f"{u - 1} label positions, the target U + 1 = {u}", "batch.labels"),
        ),
        "order": ((b, u, t, v), named("the same in another order", "Transpose")),
        "axes": ((b, t, v), named("The number of axes differs")),
    }
    for wanted, message in wrong.values():
        with pytest.raises(LengthError, match=message):
            rnnt_kd(torch.zeros(wanted), batch["rnnt"])
    with pytest.raises(LengthError, match=named("The number of axes differs")):
        ctc_kd(torch.zeros(shape), batch["ctc"])


def test_a_joint_loss_without_parts_says_what_to_give(batch):
    for lambdas in (None, {"ctc": 1.0}):
        with pytest.raises(UsageError, match=named("a joint loss of no parts", "Give logits by stream")):
            joint_kd(batch, logits={}, lambdas=lambdas)


def test_one_id_in_place_of_a_list_is_named(store):
    first = next(iter(store))
    with pytest.raises(UsageError, match=named(f"ids={first!r} is one id", f"[{first!r}]")):
        store.batch(first)


def test_an_unknown_device_is_an_error_without_a_traceback(tmp_path):
    done = logitstore(
        "dump",
        "--teacher",
        demo.FACTORY,
        "--manifest",
        demo.MANIFEST,
        "--out",
        tmp_path / "s",
        "--device",
        "gpu",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "torch knows no device 'gpu'" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_teacher_whose_labels_fail_is_named_with_the_utterance(tmp_path):
    (tmp_path / "teacher.py").write_text(LABELS_FAIL)
    done = logitstore(
        "dump", "--teacher", f"{tmp_path}/teacher.py:load", "--manifest", demo.MANIFEST, "--out", tmp_path / "s",
        "--stream", "rnnt=topk:4",
        PYTHONPATH=str(demo.ROOT),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"TeacherError: demo-\d\d: labels\(\) failed with KeyError", done.stderr), done.stderr


def test_verify_tells_a_changed_file_from_a_cut_one(store, tmp_path):
    import shutil

    folder = tmp_path / "s"
    shutil.copytree(str(store.place), folder)
    path = next((folder / "shards").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = logitstore("verify", folder).stdout
    assert f"the checksum of its {len(data)} bytes is not the one that was sealed (SPEC S6)" in said
    path.write_bytes(data[:-100])
    assert (
        f"it has {len(data) - 100} bytes, and {len(data)} were sealed" in logitstore("verify", folder).stdout
    )
