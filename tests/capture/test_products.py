"""Heads that no module runs, and heads that run several times: found by probe, taken by capture."""

import json
import shlex
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from logitstore import open_store
from logitstore.capture.probe.observer import OutputObserver
from logitstore.capture.probe.rank import rank
from logitstore.errors import TapError
from tests.support import demo, recipe
from tests.support.captured import check, loader


class Bypassing(nn.Module):
    """The demo's recogniser, its head used without running it."""

    def __init__(self, model, way):
        super().__init__()
        self.model, self.way = model, way
        self.lo = nn.Linear(128, 150)
        self.lo.load_state_dict(model.ctc_output[1].state_dict())

    @torch.no_grad()
    def forward(self, batch):
        hidden, lens = self.model.encoder(batch["feats"], batch["feats_lengths"])
        if self.way == "linear":
            return functional.linear(hidden, self.lo.weight, self.lo.bias), lens
        if self.way == "method":
            return self.lo.forward(hidden), lens
        if self.way == "device":  # a mode of torch's own stands above
            with torch.device("cpu"):
                return functional.linear(hidden, self.lo.weight, self.lo.bias), lens
        if self.way == "twice":
            functional.linear(hidden / 2, self.lo.weight, self.lo.bias)
        return torch.matmul(hidden, self.lo.weight.t()) + self.lo.bias, lens


@pytest.mark.parametrize("way", ["linear", "method", "device", "matmul"])
@pytest.mark.parametrize("path", ["lo", "fn:lo.weight"])
def test_a_head_of_which_only_the_weight_is_used(session, model, utterances, way, path):
    run = session(ctc=path)
    program = Bypassing(model, way).eval()
    for batch in loader(utterances):
        program(batch)
    store = run.store()
    check(store, model, utterances)
    assert store.spec.teacher.heads[0].module == path
    assert run.inside.report.fields["notes"]["ctc"] == "a product with the weight of lo"
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_module_that_runs_needs_no_watching(session, model, utterances):
    run = session(ctc="ctc_output.1")
    batches = iter(loader(utterances))
    for batch in batches:
        with torch.no_grad():
            hidden, encoder_out_lens = model.forward_encoder(batch["feats"], batch["feats_lengths"])
            assert len(encoder_out_lens) == 3
            model.ctc_output(hidden)
        assert not run.inside._products.busy
    assert not torch.overrides._get_current_function_mode_stack()
    check(run.store(), model, utterances)


def test_two_products_in_a_batch_are_refused(session, model, utterances):
    session(ctc="lo")
    with pytest.raises(TapError, match=r"(?s)ran again in one batch.*--call N"):
        for batch in loader(utterances):
            Bypassing(model, "twice").eval()(batch)


def test_a_missing_weight_is_refused(session, model, utterances):
    session(ctc="fn:model.encoder.weight")
    with pytest.raises(TapError, match="Encoder has no 'weight'"):
        for batch in loader(utterances):
            Bypassing(model, "linear").eval()(batch)


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{root!r}, {folder!r}]
from asr_datamodule import test_dataloader
from decode import load_model

model, root = load_model(Path({root!r}) / "recipes" / "demo"), Path({root!r}) / "manifests"
torch.set_num_threads(1)
head = model.ctc_output[1]
with torch.no_grad():
    for batch in test_dataloader(root / "demo.jsonl", 5, 0):
        hidden, lens = model.forward_encoder(batch["inputs"], batch["supervisions"]["num_frames"])
        {head}
"""
BYPASSED = (
    "print(torch.nn.functional.linear(hidden, head.weight, head.bias).log_softmax(-1).argmax(-1)[:, :3])"
)
INTER = """
        middle = head(hidden / 2).softmax(-1)  # as self-conditioning does
        best = head(hidden).log_softmax(-1).argmax(-1)
        print(best[:, :3], head(hidden * 2).log_softmax(-1).mean(), middle.mean())
"""


@pytest.mark.parametrize(
    ("head", "said"),
    [(BYPASSED, ["--ctc", "fn:ctc_output.1.weight"]), (INTER, ["--ctc", "ctc_output.1", "--call", "1"])],
)
def test_the_printed_command_captures_the_right_call(tmp_path, head, said):
    script = tmp_path / "x.py"
    script.write_text(SCRIPT.format(root=str(demo.ROOT), folder=str(recipe.FOLDER), head=head))
    home = {"PYTHONPATH": str(demo.ROOT)}
    tokens = ["--tokens", demo.TOKENS]
    command = [sys.executable, "-m", "logitstore", "probe", *tokens, "--json", "--", sys.executable, script]
    ran = recipe.call(*command, cwd=tmp_path, env=home)
    found = json.loads(ran.stdout.decode().splitlines()[-1])
    words = shlex.split(found["command"])
    assert words[2 : 2 + len(said)] == said
    assert words[words.index("--lengths") + 1] == "lens"
    capture = recipe.call(sys.executable, "-m", *words, cwd=tmp_path, env=home)
    assert capture.returncode == 0, capture.stderr
    opened, own = open_store(tmp_path / "store"), recipe.own()
    assert set(opened) == set(own)
    for utt_id, logits in own.items():
        logp = (logits - logits.logsumexp(-1, keepdim=True)).half().numpy()
        assert (opened.record(utt_id).arrays["ctc.logp"] == logp).all()


class Inter(nn.Module):
    """A head that runs three times, followed by what each case says."""

    def __init__(self, after):
        super().__init__()
        self.head, self.after = nn.Linear(16, 29), after

    def forward(self, x):
        for scale, after in zip((0.5, 1, 2), self.after, strict=True):
            logits = self.head(x * scale)
            for name in after.split():
                logits = getattr(logits, name)(-1)


@pytest.mark.parametrize(
    ("after", "call"),
    [
        (("softmax", "log_softmax argmax", "log_softmax"), 1),
        (("softmax", "softmax", "log_softmax"), 2),
        (("argmax", "softmax", "softmax"), 0),
        (("log_softmax", "log_softmax", "log_softmax"), None),
        (("argmax", "argmax", "log_softmax"), 2),
    ],
)
def test_the_call_that_gives_the_answer(after, call):
    torch.manual_seed(0)
    model, observer = Inter(after), OutputObserver()
    with observer, torch.no_grad():
        for _ in range(2):
            observer.batch += 1
            model(torch.randn(3, 20, 16))
    best = rank(list(observer.emitted.values()), [model], 3, None)[0]
    assert (best.calls, best.answering_call) == (3, call)


def test_tied_embeddings_are_found():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(29, 16), nn.Linear(16, 16)

        def forward(self, x):
            return functional.linear(self.body(x), self.embed.weight).log_softmax(-1)

    torch.manual_seed(0)
    model, observer = Tied(), OutputObserver()
    with observer, torch.no_grad():
        observer.batch += 1
        model(torch.randn(3, 20, 16))
    seen = [*observer.emitted.values(), *observer.products.values()]
    best = rank(seen, [model], 3, None)[0]
    assert (best.path, best.layout, best.classes, best.after) == (
        "fn:embed.weight",
        "BTV",
        29,
        ("log_softmax",),
    )
