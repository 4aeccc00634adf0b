"""Slow and plain reference computations of what lattices and losses give."""

import math

import torch

from logitstore.store.lattice_nodes import occupancy


def means(logits, labels, form):
    """Return (T, V) probabilities: the mean of each frame's nodes, plain or by occupancy, in float64."""
    p = torch.softmax(logits.double(), -1)
    share = torch.full(p.shape[:2], 1 / p.shape[1], dtype=torch.float64)
    if form.endswith("occupancy"):
        following = torch.tensor([*labels, 0])
        label = torch.stack([p[:, u, following[u]] for u in range(p.shape[1])], 1)
        occupied = torch.from_numpy(occupancy(p[..., 0].log().numpy(), label.log().numpy()))
        share = occupied / occupied.sum(1, keepdim=True)
    return torch.einsum("tuv,tu->tv", p, share)


def brute(stream, logits, direction="forward", tail="class"):
    """Return the loss of the textbook, row by row and class by class, in float64."""
    out = torch.zeros(stream.mask.shape, dtype=torch.float64)
    tau = stream.temperature
    for at in stream.mask.nonzero().tolist():
        at = tuple(at)
        s = torch.log_softmax(logits[at].detach().double() / tau, -1).exp().tolist()
        p = stream.logp[at].double().exp().tolist()
        ids = range(stream.classes) if stream.ids is None else stream.ids[at].tolist()
        entries = {v: (q, s[v]) for v, q in zip(ids, p, strict=True) if q > 0}
        rest = [v for v in range(stream.classes) if v not in entries]
        mass = math.exp(float(stream.tail[at]))
        if tail == "ignore":
            total = [sum(x[i] for x in entries.values()) for i in (0, 1)]
            pairs = [(a / total[0], b / total[1]) for a, b in entries.values()]
        elif tail == "class":
            pairs = [*entries.values(), (mass, sum(s[v] for v in rest))]
        else:
            pairs = [*entries.values(), *((mass / len(rest), s[v]) for v in rest)]
        if direction == "reverse":
            pairs = [(b, a) for a, b in pairs]
        out[at] = sum(a * math.log(a / b) for a, b in pairs if a > 0) * tau**2
    return out
