"""Programs that once went wrong: scripted models, images, wrappers, query rows, ids in odd places, no start-up hook."""

import sys

import pytest
import torch
from torch import nn

from logitstore import CaptureOptions, capture_logits
from logitstore.capture.batch_ids import FoundIds, find_ids, gives, walk
from logitstore.capture.inject.lengths import ratio_lengths
from logitstore.capture.probe.observer import OutputObserver
from logitstore.capture.probe.rank import rank
from logitstore.errors import TapError, TapNeverFired
from tests.support import demo, recipe
from tests.support.captured import Program, check, decode, loader

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit and torch.ao


@pytest.mark.parametrize("how", ["script", "trace", "load"])
def test_a_model_of_torch_jit_runs_under_probe(model, how, tmp_path):
    x, lens = torch.randn(1, 60, 64), torch.tensor([60])
    head = nn.Sequential(model.encoder.first, nn.ReLU()).eval()
    plain = head(x.transpose(1, 2)).log_softmax(1)
    assert len(lens) == len(x)
    with OutputObserver() as observer:
        observer.batch = 1
        if how == "script":
            made = torch.jit.script(head)
        else:
            made = torch.jit.trace(head, torch.randn(1, 64, 60))
        if how == "load":
            torch.jit.save(made, tmp_path / "m.pt")
            made = torch.jit.load(tmp_path / "m.pt")
        with torch.no_grad():
            again = nn.functional.linear(torch.randn(3, 8), torch.randn(4, 8))  # weights are looked up
            assert torch.equal(made(x.transpose(1, 2)).log_softmax(1), plain)
    assert again.shape == (3, 4)


class Images(nn.Module):
    """A head behind a convolution over time and frequency, whose output goes to a softmax."""

    def __init__(self):
        super().__init__()
        self.front, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 20, 30)

    def forward(self, x):
        x = self.front(x[:, None])
        attention = x.softmax(-1)
        return self.head((x * attention).transpose(1, 2).flatten(2)).log_softmax(-1)


def test_a_convolution_over_images_is_no_joiner():
    torch.manual_seed(0)
    model, observer = Images().eval(), OutputObserver()
    with observer, torch.no_grad():
        observer.batch += 1
        model(torch.randn(2, 50, 20))
    layouts = {c.path: c.layout for c in rank(list(observer.emitted.values()), [model], 2, None)}
    assert layouts == {"head": "BTV", "front": "BCTF"}


def test_ids_at_the_end_of_a_tuple_and_under_the_name_filenames():
    x, n = torch.randn(2, 30, 4), torch.tensor([30, 20])
    (found,) = find_ids((x, n, ("spk1-0", "spk2-1")), 2)
    assert (found.expression, found.values) == ("batch[2]", ("spk1-0", "spk2-1"))
    (found,) = find_ids((x, n, ("hello world", "good day"), ["a1", "a2"]), 2)
    assert found.expression == "batch[3]"
    (found,) = find_ids({"feats": x, "filenames": ["a.wav", "b.wav"]}, 2)
    assert found.expression == 'batch["filenames"]'
    assert not find_ids((x, n, ("hello world", "good day")), 2)  # texts


def test_ids_by_an_expression_that_cannot_be_evaluated_are_not_proposed():
    names = {"batch": {"id": ["a", "b"]}, "index": [0, 1]}
    assert gives(FoundIds('batch["id"]', ("a", "b")), names.__getitem__)
    assert not gives(FoundIds('batch["id"]', ("b", "a")), names.__getitem__)
    assert not gives(FoundIds('[batch["id"][i]["id"][i] for i in index]', ("a", "b")), names.__getitem__)


def test_lengths_that_are_a_whole_ratio_of_those_of_the_batch():
    batch = {"width": torch.tensor([320, 248, 100]), "text_len": torch.tensor([5, 3, 2])}
    (found,) = ratio_lengths(walk(batch, "batch"), 3, 40)
    assert (found.expression, found.values) == ('batch["width"] // 8', (40, 31, 12))
    assert not list(ratio_lengths(walk(batch, "batch"), 3, 41))


class Wrapper(nn.Module):
    """A wrapper in training mode around a model in eval mode."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


def test_wrappers_in_training_mode_around_a_model_in_eval_mode(session, model, utterances):
    run = session(ctc="inner.inner.headed.lo")
    decode(Wrapper(Wrapper(Program(model, "plain").eval())), loader(utterances))
    check(run.store(), model, utterances)


def test_dropout_in_training_mode_is_refused_by_its_path(session, model, utterances):
    session()
    program = Program(model, "plain").eval()
    program.model.ctc_output[0].train()
    with pytest.raises(TapError, match=r"in training mode, for example model\.ctc_output\.0"):
        decode(program, loader(utterances))


def test_a_quantised_head_is_not_in_training_mode(session, model, utterances):
    run, program = session(), Program(model, "plain").eval()
    program.headed["lo"] = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(program.headed["lo"].linear).eval(), {nn.Linear}, dtype=torch.qint8
    )
    assert program.headed["lo"][0].training  # as torch makes it
    decode(program, loader(utterances))
    assert len(run.store()) == len(utterances)


class Queries(Program):
    """Four rows before the frames, as SenseVoice has them."""

    def forward(self, x, lens):
        x = torch.cat([x[:, :4] * 0, x], 1)
        hidden, _ = self.model.encoder(x, lens + 4)
        rows = nn.functional.interpolate(hidden.transpose(1, 2), size=x.shape[1]).transpose(1, 2)
        output_lens = lens + 4
        return self.headed["lo"](rows), output_lens


@pytest.mark.parametrize("skipped", [0, 4])
def test_rows_before_the_frames_are_noted_and_can_be_left_out(session, model, utterances, skipped):
    run = session(skip_rows=skipped, lengths="lens + 4")
    decode(Queries(model, "plain").eval(), loader(utterances))
    notes = run.inside.report.fields["notes"]
    assert ("--skip-rows 4 leaves them out" in notes.get("rows", "")) == (not skipped)
    store = run.store()
    lengths = {u.id: len(u.features) + 4 - skipped for u in utterances}
    assert {i: store[i].T for i in store} == lengths


TRANSFORMER = """
import hashlib, sys, torch
from torch import nn
from torch.utils.data import DataLoader
torch.manual_seed(0); torch.set_num_threads(1)
layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(64, 30)).eval()
data = [{"x": torch.randn(40, 64), "id": f"u{i}"} for i in range(4)]
with torch.inference_mode():
    for batch in DataLoader(data, batch_size=2):
        lens = torch.tensor([40, 40])
        y = model(batch["x"])
        print(hashlib.sha256(y.numpy().tobytes()).hexdigest())
"""


def test_the_first_batch_is_the_programs_own_bit_for_bit(tmp_path):
    (tmp_path / "x.py").write_text(TRANSFORMER)
    plain = recipe.call(sys.executable, tmp_path / "x.py")
    ran = recipe.capture(
        tmp_path / "s", "--ctc", "1", "--lengths", "lens", command=[sys.executable, tmp_path / "x.py"]
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == plain.stdout
    assert len(plain.stdout.split()) == 2


UNHOOKED = {
    "python -I": [sys.executable, "-I", "-c"],
    "PYTHONPATH": ["env", f"PYTHONPATH={demo.ROOT}", sys.executable, "-c"],
}


@pytest.mark.parametrize("way", list(UNHOOKED))
def test_a_program_without_the_start_up_hook_is_ended_at_once(tmp_path, way):
    """The program would wait for ever: only capture can end it."""
    code = "import torch, signal; signal.pause()"
    with pytest.raises(TapNeverFired, match="without the start-up hook") as error:
        capture_logits(
            ["bash", "-c", '"$@"; true', "sh", *UNHOOKED[way], code], tmp_path / "s", CaptureOptions(ctc="a")
        )
    assert way in str(error.value)
