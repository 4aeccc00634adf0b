"""Where the valid lengths are: integers, masks of either polarity, shares of the longest; or a refusal."""

import pytest
import torch

from logitstore.capture.expression import Expression
from logitstore.capture.inject.lengths import candidates, choose, possible_lengths
from logitstore.errors import LengthError
from tests.support.captured import Program, check, decode, loader

LENS, T = torch.tensor([76, 37, 42, 34]), 76
VALID = torch.arange(T)[None] < LENS[:, None]
SAMPLES = torch.tensor([48680, 23700, 26900, 21800])


def waves(lengths=SAMPLES):
    x = torch.randn(len(lengths), int(lengths.max()))
    return x.masked_fill(torch.arange(x.shape[1])[None] >= lengths[:, None], 0.0)


def settled(*tensors, inputs=(), b=4, t=T):
    found = candidates((pair for i, x in enumerate(tensors) for pair in possible_lengths(x, f"x{i}")), b, t)
    return choose(found, b, t, "here", inputs)


FORMS = {
    "numbers": LENS,
    "numbers, int32": LENS.int(),
    "valid is true": VALID,
    "padding is true": ~VALID,
    "(B, 1, T)": VALID[:, None],
    "(B, 1, 1, T)": VALID[:, None, None],
    "(B, T, 1)": ~VALID[:, :, None],
    "ones and zeros": VALID.long(),
    "floats": VALID.float(),
    "shares": LENS / T,
    "rounded shares": SAMPLES / SAMPLES.max(),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms(form):
    tensor = FORMS[form]
    found = settled(tensor)
    wanted = LENS.tolist() if form != "rounded shares" else (SAMPLES / SAMPLES.max() * T).round().tolist()
    assert list(found.values) == wanted
    names = {"x0": tensor, "B": 4, "T": T}
    again = Expression(found.expression, "--lengths").value(names.__getitem__)
    assert [round(v) for v in again.reshape(-1).tolist()] == wanted


NONE = {
    "a mask with holes": VALID & (torch.arange(T) != 20),
    "padded on the left": VALID.flip(1),
    "of other frames": VALID[:, :70],
    "of a short batch": torch.arange(T)[None] < (LENS // 2)[:, None],
    "attention": VALID[:, None] & VALID[:, :, None],
    "no shares": torch.tensor([0.9, 0.2, 0.3, 0.1]),
    "weights": torch.tensor([1.0, -0.5, 0.3, 0.0]),
    "samples": SAMPLES,
    "two values": VALID.float() * 2,
}


@pytest.mark.parametrize("name", list(NONE))
def test_no_tensor_that_can_be_the_lengths(name):
    with pytest.raises(LengthError, match="nothing holds the valid lengths of 4 utterances in 76 frames"):
        settled(NONE[name])


@pytest.mark.parametrize("form", [torch.ones(4, T), torch.zeros(4, T, dtype=torch.bool), torch.ones(4)])
def test_a_mask_without_padding_must_agree_with_the_input(form):
    with pytest.raises(LengthError, match="nothing holds"):
        settled(form)
    with pytest.raises(LengthError, match="nothing holds"):
        settled(form, inputs=[waves(), SAMPLES])
    with pytest.raises(LengthError, match="nothing holds"):
        settled(form, inputs=[waves(torch.tensor([48000] * 4))])  # padded with something else, perhaps
    for inputs in ([torch.ones(4, 300, dtype=torch.long)], [torch.tensor([300] * 4)]):
        assert settled(form, inputs=inputs).values == (T,) * 4


def test_shares_that_agree_with_the_features_are_preferred():
    shares, tokens = SAMPLES / SAMPLES.max(), torch.tensor([1.0, 0.8, 0.9, 0.3])
    with pytest.raises(LengthError, match=r"(?s)several tensors .*\(x0 \* T\).round\(\).*\(x1 \* T\)"):
        settled(tokens, shares)
    assert settled(tokens, shares, inputs=[waves()]).expression == "(x1 * T).round()"
    assert settled(tokens, shares, inputs=[SAMPLES]).expression == "(x1 * T).round()"


def test_counts_are_preferred_to_masks_and_masks_to_shares():
    shares = SAMPLES / SAMPLES.max()
    assert settled(shares, VALID, LENS).expression == "x2"
    assert settled(shares, VALID).expression == "x1.reshape(B, T).sum(1)"
    nearly = LENS - 3
    assert settled(nearly, shares).expression == "(x1 * T).round()"
    assert settled(nearly).values == tuple(nearly.tolist())


@pytest.mark.parametrize(
    ("one", "other"),
    [(LENS, LENS - torch.tensor([0, 1, 0, 0])), (LENS, ~(torch.arange(T) < (LENS - 1)[:, None]))],
)
def test_candidates_that_disagree_are_refused_and_listed(one, other):
    if other.dim() == 2:  # a mask whose longest is as long as the batch
        other = ~(torch.arange(T)[None] < torch.tensor([76, 37, 42, 33])[:, None])
    with pytest.raises(LengthError, match=r"(?s)several tensors.*x0 = \[76, 37, 42, 34\].*x1.*--lengths"):
        settled(one, other)


@pytest.mark.parametrize("way", ["padding", "valid", "shares"])
def test_lengths_in_variables_of_a_program(session, model, utterances, way):
    class Masked(Program):
        def forward(self, x, lens):
            hidden, lens = self.model.encoder(x, lens)
            frames = torch.arange(hidden.shape[1])[None]
            told = {
                "padding": frames >= lens[:, None],
                "valid": (frames < lens[:, None])[:, None],
                "shares": lens / lens.max(),
            }[way]
            del lens
            return self.headed["lo"](hidden), told

    run = session()
    # The encoder returns its lengths, and says them in masks: not here.
    keep = run.inside._locator._keep_tensors
    run.inside._locator._hook.remove()
    assert keep is not None
    decode(Masked(model, "plain").eval(), loader(utterances))
    assert run.inside._locator.lengths_expression.text.startswith(("T - told", "told.reshape", "(told * T)"))
    check(run.store(), model, utterances)


def test_lengths_in_the_inputs_of_a_module(session, model, utterances):
    class Layer(torch.nn.Module):
        def forward(self, x, mask):
            return x

    class Inner(Program):
        def __init__(self, model, way):
            super().__init__(model, way)
            self.layer = Layer()

        def forward(self, x, lens):
            return self.headed["lo"](self.encode(x, lens))

        def encode(self, x, lens):
            hidden, lens = self.model.encoder(x, lens)
            frames = torch.arange(hidden.shape[1])[None]
            return self.layer(hidden, mask=frames < lens[:, None])

    run = session(lengths='inputs["layer"]["mask"].sum(1)')
    decode(Inner(model, "plain").eval(), loader(utterances))
    check(run.store(), model, utterances)
