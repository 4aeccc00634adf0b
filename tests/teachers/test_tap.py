"""What hooks on other people's models run into, each trap with real torch modules and no framework.

Which test covers which of the traps found in public code (a name without a file is one of this file's):

 1. several calls a forward: a_head_that_fires_several_times, a_decoding_loop_fires_hundreds,
    an_output_that_is_no_tensor (fused joints), gradient_checkpointing; frameworks/test_espnet.py: test_ctc,
    frameworks/test_nemo.py: test_transducers
 2. no call: a_hook_that_never_fires, a_method_can_be_tapped; frameworks/test_nemo.py: test_ctc (hybrid)
 3. torch.compile: a_compiled_model_is_looked_through, a_tap_opened_after_compilation
 4. TorchScript, export: scripted_and_traced_modules, an_exported_program
 5. names and wrappers: dataparallel, a_compiled_model_is_looked_through, a_quantised_head,
    a_copy_of_the_model
 6. edits in place: edits_in_place_after_the_layer, the_input_side_is_taken_before
 7. live dropout: live_dropout_in_eval; frameworks/test_espnet.py: test_live_dropout,
    frameworks/test_wenet.py: test_live_dropout
 8. half precision: half_precision_is_said
 9. what a hook returns, keywords: a_hook_leaves_the_output_alone, the_input_side_of_a_call_by_keyword
10. log-probabilities: runner/test_teacher_checks.py: test_log_probabilities;
    frameworks/test_nemo.py: test_transducers
11. one label row squeezed away: frameworks/test_huggingface.py: test_parakeet_transducers,
    frameworks/test_nemo.py: test_no_labels, frameworks/test_icefall.py: test_joiners_without_projections
12. lengths: runner/test_teacher_checks.py: test_lengths_in_feature_frames, test_a_length_too_few;
    frameworks/test_icefall_recipes.py: test_a_transducer
13. axes by shape alone: axes_of_one_size_need_a_layout, a_conv1d_head_may_transpose;
    capture/test_probe.py: test_layouts
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from logitstore.encodings.linear_head import linear_head
from logitstore.errors import LengthError, TapError, TapFiredTwice, TapNeverFired, TapPathError, TeacherError
from logitstore.schema.spec import Head, TeacherSpec
from logitstore.teachers.protocol import check_deterministic
from logitstore.teachers.tap import Tap, find_module, unpack
from logitstore.tokens.table import TokenTable

B, T, D, V = 2, 7, 5, 11


class Recogniser(nn.Module):
    """A CTC recogniser with every habit found in public code, one at a time."""

    def __init__(self, *, habit: str = "", dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, D)
        self.dropout = nn.Dropout(0.5)
        self.ctc_lo = nn.Conv1d(D, V, 1) if habit == "conv" else nn.Linear(D, V)
        self.habit, self.rate = habit, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.dropout(self.encoder(x))
        if self.habit == "live dropout":
            h = F.dropout(h, self.rate)  # ESPnet, FunASR and WeNet write it so: training=True is the default
        if self.habit == "conv":
            return self.ctc_lo(h.transpose(1, 2)).transpose(1, 2)
        if self.habit == "functional":
            return F.linear(h, self.ctc_lo.weight, self.ctc_lo.bias)
        if self.habit == "method":
            return self.ctc_lo.forward(h)
        if self.habit == "interctc":  # a conditioning layer, the answer, an auxiliary loss
            h = h + self.ctc_lo(h * 0.5).softmax(-1) @ self.ctc_lo.weight
            logits = self.ctc_lo(h)
            self.ctc_lo(h * 2)
            return logits
        logits = self.ctc_lo(h)
        if self.habit == "in place":
            self.said = logits.clone()
            logits[..., 0] -= 100  # a blank penalty
        return logits


class Steady:
    """The least that can be a teacher."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def describe(self) -> TeacherSpec:
        return TeacherSpec("least", 16000, 160, (Head("ctc", "ctc_lo", 0),))

    def tokens(self) -> TokenTable:
        return TokenTable(("<blk>", *map(str, range(V - 1))), 0)

    def features(self, audio: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(audio).reshape(-1, 3)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        return self.model(features), lengths

    def lengths(self, output: Any) -> torch.Tensor:
        return output[1]


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(B, T, 3)


def tapped(model: nn.Module, x: torch.Tensor, path: str = "ctc_lo", **options: Any) -> torch.Tensor:
    with torch.inference_mode(), Tap(model, {"ctc": path}, **options) as tap:
        model(x)
        return tap.take("ctc")


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_tap_gives_what_the_model_says(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    assert torch.equal(tapped(model, x), model(x))


def test_live_dropout_in_eval_is_refused(x: torch.Tensor) -> None:
    lengths = torch.full((B,), T)
    with pytest.raises(TeacherError, match="two forwards of one batch differ"):
        check_deterministic(Steady(Recogniser(habit="live dropout", dropout=0.3)), x, lengths)
    check_deterministic(Steady(Recogniser(habit="live dropout", dropout=0.0)), x, lengths)
    check_deterministic(Steady(Recogniser()), x, lengths)


def test_a_model_left_in_train_mode_is_refused(x: torch.Tensor) -> None:
    model = Recogniser()
    with pytest.raises(TapError, match="training mode"):
        tapped(model, x)
    model.eval()
    model.ctc_lo.train()
    with pytest.raises(TapError, match="training mode"):
        tapped(model, x)
    assert hooks(model) == 0
    assert tapped(model.train(), x, training=True).shape == (B, T, V)


def test_the_blank_may_be_last() -> None:
    table = TokenTable((*map(str, range(V - 1)), "<blk>"), V - 1)
    assert TokenTable.parse(table.to_bytes()).blank == V - 1


def test_a_conv1d_head_gives_classes_before_frames(x: torch.Tensor) -> None:
    model = Recogniser(habit="conv").eval()
    assert tapped(model, x).shape == (B, V, T)
    assert torch.equal(tapped(model, x, layouts={"ctc": "BVT"}), model(x))


def test_a_conv1d_head_may_transpose_by_itself(x: torch.Tensor) -> None:
    class Head(nn.Conv1d):  # transformers' Parakeet: that it is a Conv1d says nothing about its layout
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    model = Recogniser().eval()
    model.ctc_lo = Head(D, V, 1).eval()
    assert tapped(model, x).shape == (B, T, V)


def test_a_time_major_head_is_turned(x: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(3, V)).eval()
    got = tapped(model, x.transpose(0, 1), "0", layouts={"ctc": "TBV"})
    assert torch.allclose(got, model(x))


@pytest.mark.parametrize("habit", ["functional", "method"])
def test_a_hook_that_never_fires_is_an_error(x: torch.Tensor, habit: str) -> None:
    with pytest.raises(TapNeverFired, match="did not run"):
        tapped(Recogniser(habit=habit).eval(), x)


def test_a_method_can_be_tapped_where_no_module_is_called(x: torch.Tensor) -> None:
    model = Recogniser(habit="method").eval()
    assert torch.equal(tapped(model, x, "ctc_lo.forward()"), model(x))
    model = Recogniser(habit="functional").eval()
    assert torch.equal(tapped(model, x, "forward()"), model(x))
    assert "forward" not in vars(model)
    with pytest.raises(TapPathError, match="Did you mean 'forward'"):
        Tap(model, {"ctc": "forwrd()"})


@pytest.mark.parametrize("how", ["linear", "matmul", "matmul and bias", "einsum", "addmm"])
def test_a_product_with_a_heads_weight_can_be_tapped(x: torch.Tensor, how: str) -> None:
    class Bypassed(Recogniser):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h, w, b = self.encoder(x), self.ctc_lo.weight, self.ctc_lo.bias
            if how == "linear":
                return F.linear(h, w, b)
            if how == "einsum":
                return torch.einsum("btd,vd->btv", h, w) + b
            if how == "addmm":
                return torch.addmm(b, h.flatten(0, 1), w.t()).view(B, T, V)
            return torch.matmul(h, w.t()) + b if how == "matmul" else b + h @ w.T

    model = Bypassed().eval()
    got = tapped(model, x, "fn:ctc_lo.weight")
    assert torch.equal(got.view(B, T, V), model(x))
    assert torch.equal(tapped(model, x, "fn:ctc_lo"), got)
    assert not torch.overrides._get_current_function_mode_stack()
    with pytest.raises(TapNeverFired, match=r"fn:ctc_lo\.weight"):
        tapped(model, x)
    with pytest.raises(TapNeverFired):  # its own call is no product that somebody made
        tapped(Recogniser().eval(), x, "fn:ctc_lo.weight")
    with pytest.raises(TapPathError, match="Known: weight"):
        tapped(model, x, "fn:ctc_lo.other_weight")


def test_tied_embeddings_are_a_head_too(x: torch.Tensor) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.embed = nn.Linear(3, D), nn.Embedding(V, D)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.encoder(x) + self.embed(torch.zeros(T, dtype=torch.long)), self.embed.weight)

    model = Tied().eval()
    assert torch.equal(tapped(model, x, "fn:embed.weight"), model(x))
    h = tapped(model, x, "fn:embed.weight", side="input")
    with torch.no_grad():
        assert torch.equal(F.linear(h, model.embed.weight), model(x))


def test_a_head_that_fires_several_times_is_an_error_until_told_which(x: torch.Tensor) -> None:
    model = Recogniser(habit="interctc").eval()
    with pytest.raises(TapFiredTwice, match="3 times"):
        tapped(model, x)
    assert torch.equal(tapped(model, x, keep={"ctc": 1}), model(x))
    assert not torch.equal(tapped(model, x, keep={"ctc": -1}), model(x))
    with pytest.raises(TapNeverFired, match="ran 3 times"):
        tapped(model, x, keep={"ctc": 3})


def test_a_decoding_loop_fires_hundreds_of_times_and_fills_no_memory(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    with torch.inference_mode(), Tap(model, {"ctc": "ctc_lo"}) as tap:
        for _ in range(300):
            model(x[:, :1])
        assert len(tap._caught["ctc"]) == 1
        with pytest.raises(TapFiredTwice, match="300 times"):
            tap.take("ctc")
        model(x)  # and the next batch is not spoilt by the last
        assert tap.take("ctc").shape == (B, T, V)


def test_chunks_accumulate_in_order_when_asked(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    with torch.inference_mode(), Tap(model, {"ctc": "ctc_lo"}, accumulate=True) as tap:
        for t in range(0, T, 3):
            model(x[:, t : t + 3])
        got = tap.take("ctc")
    assert torch.allclose(got, model(x), atol=1e-6)


def test_edits_in_place_after_the_layer_do_not_reach_the_tap(x: torch.Tensor) -> None:
    model = Recogniser(habit="in place").eval()
    got = tapped(model, x)
    assert torch.equal(got, model.said)
    assert not torch.equal(got, model(x))


def test_dataparallel_is_looked_through(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    wrapped = nn.DataParallel(model).eval()
    assert find_module(wrapped, "ctc_lo") is model.ctc_lo
    assert find_module(wrapped, "module.ctc_lo") is model.ctc_lo
    assert torch.equal(tapped(wrapped, x), model(x))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model_is_looked_through(x: torch.Tensor, fullgraph: bool) -> None:
    torch._dynamo.reset()
    model = Recogniser().eval()
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    assert find_module(compiled, "ctc_lo") is model.ctc_lo
    assert torch.equal(tapped(compiled, x), model(x))


def test_a_tap_opened_after_compilation_never_fires(x: torch.Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Recogniser().eval(), backend="eager")
    with torch.inference_mode():
        compiled(x)
    with pytest.raises(TapNeverFired, match=r"torch\.compile"):
        tapped(compiled, x)
    torch._dynamo.reset()
    assert tapped(compiled, x).shape == (B, T, V)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_scripted_and_traced_modules_are_refused(x: torch.Tensor, how: str) -> None:
    model = nn.Sequential(nn.Linear(3, D), nn.Linear(D, V)).eval()
    scripted = torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)
    with pytest.raises(TapError, match="runs no Python hook"):
        Tap(scripted, {"ctc": "1"})


def test_an_exported_program_never_calls_the_module(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    program = torch.export.export(model, (x,)).module()
    assert torch.allclose(program(x), model(x))
    with torch.inference_mode(), Tap(program, {"ctc": "ctc_lo"}, training=True) as tap:
        program(x)
        with pytest.raises(TapNeverFired, match="did not run"):
            tap.take("ctc")


def test_a_quantised_head_speaks_but_does_not_factor(x: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Recogniser().eval(), {nn.Linear})
    with pytest.raises(TapError, match="training mode"):  # its new layers begin in it
        tapped(model, x)
    model.eval()
    assert not isinstance(model.ctc_lo, nn.Linear)
    assert torch.equal(tapped(model, x), model(x))
    with pytest.raises(TapError, match="not one weight and one bias"):
        linear_head(model.ctc_lo, "ctc")


def test_gradient_checkpointing_calls_the_head_again(x: torch.Tensor) -> None:
    model = Recogniser()
    model.dropout.p = 0.0
    with Tap(model, {"ctc": "ctc_lo"}, training=True) as tap:
        said = torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=True)
        assert torch.equal(tap.take("ctc"), said)
        model(x)
        said.sum().backward()  # runs the first batch again, into the second
        with pytest.raises(TapFiredTwice, match="2 times"):
            tap.take("ctc")


@pytest.mark.parametrize("size", [T, V])
def test_axes_of_one_size_need_a_layout(size: int) -> None:
    """Where B, T or V are equal no shape tells them apart: what is declared is done, whatever the sizes."""
    model = nn.Sequential(nn.Linear(3, V)).eval()
    x = torch.randn(size, T, 3)  # as many utterances as frames, or as classes
    assert torch.allclose(tapped(model, x, "0"), model(x))
    assert torch.allclose(tapped(model, x.transpose(0, 1), "0", layouts={"ctc": "TBV"}), model(x))


def test_the_list_of_traps_names_tests_that_are_there() -> None:
    here = Path(__file__).parents[1]
    said = re.split(r"\n *\d+\. ", __doc__ or "")[1:]
    assert len(said) == 13
    for trap in said:
        file = Path(__file__)
        for word in re.findall(r"[\w/]+\.py|[a-z]\w*_\w+", trap.partition(": ")[2]):
            if word.endswith(".py"):
                file = here / word
                continue
            name = word if word.startswith("test_") else f"test_{word}"
            assert f"def {name}" in file.read_text(encoding="utf-8"), (word, file)
        assert file.exists()


def test_a_wrong_path_lists_its_siblings() -> None:
    with pytest.raises(TapPathError, match=r"Did you mean 'ctc_lo'\? Known: encoder, dropout, ctc_lo") as e:
        Tap(Recogniser(), {"ctc": "ctc_l0"})
    assert "Recogniser" in str(e.value)


def test_half_precision_is_said_not_hidden(x: torch.Tensor) -> None:
    model = Recogniser().eval().bfloat16()
    assert tapped(model, x.bfloat16()).dtype == torch.bfloat16
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert tapped(model, x).dtype == torch.bfloat16


def test_an_exception_inside_removes_the_hooks(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    with pytest.raises(ZeroDivisionError), Tap(model, {"ctc": "ctc_lo", "h": "encoder.forward()"}):
        assert hooks(model) == 1
        raise ZeroDivisionError
    assert hooks(model) == 0
    assert "forward" not in vars(model.encoder)


def test_the_input_side_is_taken_before_the_module_works_in_place() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True)).eval()
    x = torch.randn(B, T, D)
    assert torch.equal(tapped(model, x.clone(), "0", side="input"), x)
    with pytest.raises(TapError, match="no side"):
        Tap(model, {"ctc": "0"}, side="inputs")


def test_the_input_side_of_a_call_by_keyword() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joint = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.joint(encoder_outputs=x, decoder_outputs=x + 1)

    class Inner(nn.Module):
        def forward(self, *, encoder_outputs: torch.Tensor, decoder_outputs: torch.Tensor) -> torch.Tensor:
            return encoder_outputs + decoder_outputs

    x = torch.randn(B, T, D)
    assert torch.equal(tapped(Outer().eval(), x, "joint", side="input"), x)


def test_a_copy_of_the_model_does_not_speak_for_it(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    with torch.inference_mode(), Tap(model, {"ctc": "ctc_lo"}) as tap:
        copy.deepcopy(model)(x)
        with pytest.raises(TapNeverFired):
            tap.take("ctc")


def test_an_output_that_is_no_tensor_is_refused(x: torch.Tensor) -> None:
    class Fused(nn.Module):  # NeMo's fused joint: (loss, None, None, None)
        def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
            return x.sum(), None, None, None

    with pytest.raises(TapError, match="tuple"):
        tapped(nn.Sequential(Fused()).eval(), x, "0")


def test_a_hook_leaves_the_output_alone(x: torch.Tensor) -> None:
    model = Recogniser().eval()
    before = model(x)
    with Tap(model, {"ctc": "ctc_lo"}) as tap:
        during = model(x)
        assert during.requires_grad
        assert not tap.take("ctc").requires_grad
    assert torch.equal(before, during)


def test_packed_rows_of_a_joiner_are_parted() -> None:
    lattices = [torch.randn(t, u, V) for t, u in ((4, 3), (2, 1))]
    packed = torch.cat([lattice.reshape(-1, V) for lattice in lattices])
    for got, wanted in zip(unpack(packed, [4, 2], [3, 1]), lattices, strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(LengthError, match="packed rows"):
        unpack(packed, [4, 2], [3, 2])


def test_a_copied_head_shares_weights_but_not_calls(x: torch.Tensor) -> None:
    """How a teacher tells the answer apart where a model calls its head for other things too."""
    from logitstore.teachers.protocol import copy_without_hooks

    model = Recogniser(habit="interctc").eval()
    model.final = copy_without_hooks(model.ctc_lo)
    with torch.inference_mode(), Tap(model, {"ctc": "final"}) as tap:
        model(x)
        said = model.final(model.encoder(x))
        assert torch.equal(tap.take("ctc"), said)
    assert model.final.weight is model.ctc_lo.weight


def test_the_durations_of_a_tdt_joint_are_no_classes() -> None:
    from types import SimpleNamespace

    from logitstore.teachers.huggingface import HuggingFaceTransducer

    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(D, V + 5)  # five durations behind the tokens

        def forward(self, *, encoder_hidden_states: Any, decoder_hidden_states: Any) -> torch.Tensor:
            return self.head((encoder_hidden_states + decoder_hidden_states).relu())

    teacher = HuggingFaceTransducer.__new__(HuggingFaceTransducer)
    teacher.model = nn.ModuleDict({"joint": Joint()}).eval()
    teacher.model.joint, teacher.model.config = (
        teacher.model["joint"],
        SimpleNamespace(vocab_size=V, blank_token_id=V - 1),
    )
    enc, dec = torch.randn(T, D), torch.randn(3, D)
    with torch.inference_mode():
        out = teacher.join(enc, dec)
        assert torch.equal(out, teacher.model.joint.head((enc[:, None] + dec[None]).relu())[..., :V])
