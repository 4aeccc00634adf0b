"""Token errors of targets at another rate, as ``inspect --rate`` prints them."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from logitstore import DumpOptions, dump_logits, inspect_store
from logitstore.cli.inspect import command
from logitstore.encodings import parse_encoding
from logitstore.errors import UsageError
from logitstore.targets.served import served_errors
from logitstore.targets.target import Target
from logitstore.testing.encoding import decoded
from tests.support import demo


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "s"
    dump_logits(
        demo.teacher(), demo.manifest(4), path, DumpOptions(streams={"ctc": "dense", "rnnt": "topk:8"})
    )
    return path


def test_at_the_teachers_own_rate_nothing_is_lost(store):
    for one in inspect_store(store, rate=(1, 1)).served:
        assert (one.errors, one.unfit, one.drift) == (0, 0, 0.0)
        assert one.tokens > 20


def test_at_half_the_rate_few_tokens_differ_and_at_a_tenth_none_fit(store):
    half = {one.stream: one for one in inspect_store(store, rate=(1, 2)).served}
    assert half["ctc"].method == "keep-tokens"
    assert half["rnnt"].method == "compose"
    assert all(one.rate < 0.1 for one in half.values())
    tenth = {one.stream: one for one in inspect_store(store, rate=(1, 10)).served}
    assert tenth["ctc"].unfit == tenth["ctc"].utterances
    assert tenth["ctc"].rate > 0.3


def test_equal_neighbours_need_a_frame_more():
    best = torch.tensor([1, 0, 1, 0])
    rows = decoded(parse_encoding("dense"), torch.nn.functional.one_hot(best, 3).float() * 9)
    made = Target("u", 4, np.zeros(0, np.int32), {"ctc": rows}, {"ctc": (4, 3)}, blank=0)
    assert served_errors([made], ["ctc"], (3, 4))[0].unfit == 0
    assert served_errors([made], ["ctc"], (1, 2))[0].unfit == 1


def test_the_command_prints_a_row_per_stream(store):
    shown = CliRunner().invoke(command, [str(store), "--rate", "1:2"])
    assert shown.exit_code == 0
    assert "keep-tokens" in shown.output
    assert "compose" in shown.output
    said = json.loads(CliRunner().invoke(command, [str(store), "--rate", "1:2", "--json"]).stdout)
    assert {one["stream"] for one in said["served"]} == {"ctc", "rnnt"}
    assert CliRunner().invoke(command, [str(store), "--rate", "half"]).exit_code == 2
    with pytest.raises(UsageError, match="rate"):
        inspect_store(store, rate=(0, 1))
