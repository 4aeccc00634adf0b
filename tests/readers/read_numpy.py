"""A reader of everything, written from SPEC.md alone: the standard library, numpy, and Blosc for ``zarr:blosc``."""

import json
import math
import struct

import numpy as np

POINTS = (1, 4 / 3, 2, 4, 8)  # temperatures of a tail (E6)


def ids_of(store):
    """Return the id of every record (C1, C2, C6)."""
    entries = {file.stem: _entry(file) for file in store.glob("sealed/*.entry")}
    replaced = {old for entry, _ in entries.values() for old in entry.get("replaces", ())}
    return [i for shard, (_, ids) in sorted(entries.items()) if shard not in replaced for i in ids]


def _entry(file):
    head, _, rest = file.read_bytes().partition(b'\n"crc32c": ')
    return json.loads(head.rstrip(b",") + b"}"), rest.decode().split("\n")[1:-1]


def arrays_of(store, utt_id):
    """Return the stored arrays of a record by column (S2, S4, Z)."""
    for file in sorted(store.glob("sealed/*.entry")):
        entry, ids = _entry(file)
        if utt_id in ids:
            return _arrays(store, entry, ids.index(utt_id))
    raise KeyError(utt_id)


def _arrays(store, entry, i):
    raw, at = np.fromfile(store / entry["files"][0]["path"], np.uint8), entry["layout"]["table"]
    line, _, body = raw[at["offset"] :][: at["bytes"]].tobytes().partition(b"\n")
    table, array, found = json.loads(line), {}, {}
    for k, a in table["arrays"].items():
        flat = np.frombuffer(body, a["dtype"], math.prod(a["shape"]), a["begin"])
        array[k] = flat.reshape(a["shape"]).astype(int)
    p = array["pack"].searchsorted(i, "right") - 1
    for c, column in enumerate(table["columns"]):
        n = np.resize(array[f"count.{column['count']}"], table["records"])
        s = np.dtype(column["dtype"]).itemsize * math.prod(column["shape"])
        first, begin = n[array["pack"][p] : i].sum(), array["offset"][p, c]
        data, begin = (
            (raw, begin + s * first)
            if "chunk" not in column
            else (_unpacked(raw, begin, column, n, s), s * first)
        )
        items = data[begin : begin + s * n[i]].view(column["dtype"])
        found[column["name"]] = items.reshape(n[i], *column["shape"])
    return found


def _unpacked(raw, begin, column, n, s):
    from numcodecs import blosc

    if not column["bytes"]:
        return raw[:0]
    count = -(-int(n.sum()) // column["chunk"])
    data = raw[begin : begin + column["bytes"]]
    pairs = data[len(data) - 4 - 16 * count : len(data) - 4].tobytes()
    pairs = np.frombuffer(pairs, "<u8").reshape(count, 2).astype(int)
    chunks = [blosc.decompress(data[a : a + size].tobytes()) for a, size in pairs]
    return np.frombuffer(b"".join(chunks), np.uint8)


def rows_of(store, utt_id, stream, temperature):
    """Return (rows, V) log-probabilities of a stream at a temperature, or the numbers of a ``hidden`` stream (E)."""
    about = json.loads((store / "logitstore.json").read_bytes())
    spec = next(s for s in about["streams"] if s["name"] == stream)
    whole, v = arrays_of(store, utt_id), about["tokens"]["size"]
    array = {n.partition(".")[2]: a for n, a in whole.items() if n.startswith(f"{stream}.")}
    name, _, setting = spec["encoding"].partition(":")

    def constant(key):
        return np.load(store / f"constants/{stream}.{key}.npy")

    if name == "vectors":
        return array["h"] if not setting else array["code"] * array["scale"][:, None]
    if name == "dense":
        return _dense(array if not setting else {"logp": _int8(array)}, temperature)
    if name == "topk":
        served = zip(array["ids"], array["logp"].astype(float), array["tail"], strict=True)
        return np.array([_served(ids, logp, _tails(logp, t), v, temperature) for ids, logp, t in served])
    if name == "nucleus":
        return _nucleus(array, v, temperature)
    if name == "collapsed":
        return _collapsed(array, spec["form"], about["tokens"]["blank"], v, temperature)
    weight, bias = constant("weight").astype(float), constant("bias").astype(float)
    inputs = _head_inputs(spec, array, setting, constant)
    return _log_softmax((inputs.reshape(-1, inputs.shape[-1]) @ weight.T + bias) / temperature)


def _log_softmax(x):
    x = np.asarray(x, float)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _dense(array, temperature):
    return _log_softmax(array["logp"].astype(float) / temperature)


def _int8(array):
    return _log_softmax(-array["depth"].astype(float)[:, None] * (array["root"] / 255.0) ** 2)


def _kept(logp, temperature):
    return math.log(np.exp(logp / temperature).sum())


def _tails(logp, stored):
    return [_kept(logp, t) + x / 1024 - 20 for t, x in zip(POINTS, stored, strict=True)]


def _served(ids, logp, tails, v, temperature):
    """Return all V log-probabilities of a row that keeps some classes (E7, E8)."""
    left = v - len(ids)
    if temperature in POINTS:
        tail = tails[POINTS.index(temperature)]
    elif left:
        x = [*(math.log(1 + 4 / t) for t in POINTS), 0.0]
        tail = np.polyval(np.polyfit(x, [*tails, math.log(left)], 5), math.log(1 + 4 / temperature))
    tail = tail if left else -math.inf
    z = np.logaddexp(_kept(logp, temperature), tail)
    row = np.full(v, tail - z - math.log(max(left, 1)))
    row[ids.astype(int)] = logp / temperature - z
    return row


def _nucleus(array, v, temperature):
    """Return the rows of ``nucleus`` (E10)."""
    ids, below, pruned, whole, rows = array["ids"], array["below"].astype(float), 0, 0, []
    for k in array["count"].astype(int):
        if not k:
            one = {key: array[key][whole : whole + 1] for key in ("logp", "root", "depth") if key in array}
            rows.append(_dense(one if "logp" in one else {"logp": _int8(one)}, temperature)[0])
            whole += 1
            continue
        odds, bend = array["tail"][pruned] / 1024 - 20, array["bend"][pruned] / 128
        best = -math.log(1 + math.exp(odds[0])) - math.log(1 + np.exp(below[: k - 1]).sum())
        logp = np.concatenate([[best], best + below[: k - 1]])
        one, two, n = _kept(logp, 1) + odds[0], _kept(logp, 2) + odds[1], v - k
        c = (one - 2 * two + math.log(n)) / (math.log(5) - 2 * math.log(3))
        b = one - math.log(n) - c * math.log(5)
        smooth = [math.log(n) + b / t + c * math.log(1 + 4 / t) for t in (4 / 3, 4, 8)]
        bent = [s + x for s, x in zip(smooth, bend, strict=True)]
        rows.append(_served(ids[:k], logp, [one, bent[0], two, *bent[1:]], v, temperature))
        ids, below, pruned = ids[k:], below[k - 1 :], pruned + 1
    return np.array(rows)


def _collapsed(array, form, blank, v, temperature):
    """Return the rows of ``collapsed``, of a whole lattice or of sampled label positions (E18, S7, S10)."""
    labels = array["labels"]
    positions = array["positions"] if form.startswith("sample") else np.arange(len(labels) + 1)
    rows = []
    for number, (logp, tail) in enumerate(zip(array["logp"].astype(float), array["tail"], strict=True)):
        u = positions[number % len(positions)]
        ids = np.array([blank, labels[u]] if u < len(labels) else [blank])
        logp = logp[: len(ids)]
        rows.append(_served(ids, logp, _tails(logp, tail), v, temperature))
    return np.array(rows)


def _head_inputs(spec, array, setting, constant):
    """Return the inputs of a stored head, with the axes of a lattice where there is one (E13 to E17)."""
    if spec["kind"] != "rnnt":
        if not setting:
            return array["h"].astype(float)
        if setting == "int8":
            return array["code"] * array["scale"].astype(float)[:, None]
        return _codes(array["coded"].tobytes(), constant).astype(float)
    activation = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[spec["activation"]]
    if not setting:
        enc, dec = array["enc"] * array["scale"].astype(float)[:, None], array["dec"].astype(float)
    else:
        enc, dec = (
            _codes(array[f"{side}_coded"].tobytes(), lambda key, side=side: constant(f"{side}_{key}"))
            @ constant(f"{side}_back").astype(float)
            + constant(f"{side}_mean")
            for side in ("enc", "dec")
        )
    return activation(enc[:, None] + dec[None])


def _codes(data, constant):
    """Return (n, r) whole numbers of a coded stream (E16)."""
    predict, begin = constant("predict").astype(np.int64), constant("begin").astype(np.int64)
    steps, sizes = constant("steps").astype(np.int64), constant("sizes").astype(int)
    step_tables, size_tables = constant("step_tables").astype(int), constant("size_tables").astype(int)
    contexts, tables = constant("contexts").astype(int), constant("tables").astype(int)
    found = []
    while data:
        n, lanes, w = struct.unpack("<HHI", data[:8])
        words, data = struct.unpack(f"<{w}H", data[8 : 8 + 2 * w]), data[8 + 2 * w :]
        state = [words[2 * lane] * 65536 + words[2 * lane + 1] for lane in range(lanes)]
        rest = iter(words[2 * lanes :])
        read = 2 * lanes

        def symbol(lane, row, state=state, rest=rest):
            nonlocal read
            below = np.concatenate([[0], np.cumsum(row)])
            m = state[lane] % 4096
            s = int(np.searchsorted(below, m, "right")) - 1
            state[lane] = int(row[s]) * (state[lane] // 4096) + m - int(below[s])
            if state[lane] < 65536:
                state[lane], read = 65536 * state[lane] + next(rest), read + 1
            return s

        q, g, chosen = len(steps), len(sizes), []
        for _ in range(n):
            q = symbol(0, step_tables[q])
            g = symbol(0, size_tables[q * (len(sizes) + 1) + g])
            chosen.append((q, g))
        number = escapes = 0
        residuals = np.zeros((n, len(begin)), np.int64)
        for t, (q, g) in enumerate(chosen):
            for place in range(sizes[g]):
                z = symbol(number % lanes, tables[contexts[q, g, place]])
                number += 1
                if z == tables.shape[1] - 1:
                    escapes += 1
                    residuals[t, place] = np.uint16(words[w - escapes]).astype(np.int16)
                else:
                    residuals[t, place] = -(z + 1) // 2 if z % 2 else z // 2
        assert all(x == 65536 for x in state)
        assert read + escapes == w
        codes = np.zeros_like(residuals)
        for t, (q, _) in enumerate(chosen):
            codes[t] = begin if not t else (codes[t - 1] @ predict + 128) // 256
            codes[t] += steps[q] * residuals[t]
        found.append(codes)
    return np.concatenate(found)
