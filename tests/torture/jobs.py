"""A large manifest of which 3 % are broken in every way: every one is named, the rest is dumped."""

import contextlib
import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from logitstore.corpus.manifest import read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import TooManySkipped
from logitstore.store.reader import Store
from logitstore.store.verify import verify_store
from logitstore.teachers import load_teacher

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "manifests" / "demo.jsonl"
SHARE = 0.03


def _wav(path, samples, rate=16000, subtype="FLOAT"):
    import soundfile

    soundfile.write(path, samples, rate, subtype=subtype)
    return str(path)


def ways(folder, line):
    """What breaks a line: a changed line or raw text, and the reason skipped.jsonl gives."""
    good = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    flac = Path(line["audio"]).read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 3])
    (folder / "zeros.flac").write_bytes(bytes(len(flac)))
    (folder / "text.wav").write_text("this is no recording")
    (folder / "nothing.wav").write_bytes(b"")
    whole = {"offset": 0, "duration": None}
    return {
        "missing": ({"audio": "nowhere.flac"}, "AudioError"),
        "a folder": ({"audio": str(folder)}, "AudioError"),
        "empty file": ({**whole, "audio": str(folder / "nothing.wav")}, "AudioError"),
        "no samples": ({**whole, "audio": _wav(folder / "e.wav", good[:0])}, "AudioError"),
        "nine samples": ({**whole, "audio": _wav(folder / "n.wav", good[:9])}, "AudioError"),
        "truncated": ({**whole, "audio": str(folder / "cut.flac"), "duration": 2.0}, "AudioError"),
        "zeros": ({**whole, "audio": str(folder / "zeros.flac")}, "AudioError"),
        "text": ({**whole, "audio": str(folder / "text.wav")}, "AudioError"),
        "NaN": ({**whole, "audio": _wav(folder / "x.wav", good * np.nan)}, "AudioError"),
        "beyond the end": ({"offset": 1e6}, "AudioError"),
        "duration 0": ({"duration": 0}, "ManifestError"),
        "duration NaN": ({"duration": "NaN"}, "ManifestError"),
        "no id": ({"id": ""}, "ManifestError"),
        "control": ({"id": "a\x1b[2Jb"}, "ManifestError"),
        "not JSON": ("{", "ManifestError"),
        "not an object": ("[1, 2]", "ManifestError"),
        "no audio": ({"audio": None}, "ManifestError"),
        "twice": ({"id": "good-000000"}, "ManifestError"),
        "tokens": ({"tokens": [-1]}, "ManifestError"),
        "text is a list": ({"text": []}, "ManifestError"),
    }


def odd(folder):
    """Recordings that are strange, but good."""
    tone = np.sin(np.arange(9600 * 2) / 20).astype(np.float32) * 0.3
    return [
        {"audio": _wav(folder / "8bit.wav", tone[:9600], 16000, "PCM_U8"), "offset": 0, "duration": None},
        {
            "audio": _wav(folder / "96k.wav", np.stack([tone, tone], 1), 96000, "PCM_24"),
            "offset": 0,
            "duration": None,
        },
        {"audio": _wav(folder / "8k.wav", tone[:4800], 8000, "PCM_16"), "offset": 0, "duration": None},
    ]


def broken_manifest(folder, count, seed=0):
    """A manifest of ``count`` lines; gives the path, how many are good, and the reasons of the rest."""
    dice = random.Random(seed)
    demo = [json.loads(x) for x in DEMO.read_text("utf-8").splitlines()]
    for line in demo:
        line["audio"] = str(DEMO.parent / line["audio"])
    broken, strange = ways(folder, demo[0]), odd(folder)
    bad = set(dice.sample(range(1, count), round(count * SHARE)))
    kinds, reasons, lines = list(broken), Counter(), []
    for number in range(count):
        line = dict(dice.choice(demo))
        line.pop("text")  # a cut does not say it all
        line.update(id=f"good-{number:06d}", offset=round(dice.uniform(0, 0.5), 3), duration=0.15)
        if number in bad:
            change, reason = broken[kinds[sum(reasons.values()) % len(kinds)]]
            reasons[reason] += 1
            lines.append(
                change if isinstance(change, str) else json.dumps({**line, "id": f"bad-{number}", **change})
            )
            continue
        if dice.random() < 0.01:
            line.update(dice.choice(strange))
        lines.append(json.dumps(line))
    path = folder / "m.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path, count - len(bad), reasons


def many(family, root, utterances, seed=0):
    """The dump finishes, names each, counts agree; ``--max-skipped 1%`` stops it and keeps what is sealed."""
    path, good, reasons = broken_manifest(root, utterances, seed)
    manifest = read_manifest(path)
    teacher = load_teacher(f"{ROOT}/recipes/demo/teacher.py:load")
    given = {"streams": {"ctc": "topk:4"}, "on_error": "skip", "shard_size": "100", "batch_seconds": 60.0}
    out = root / "s"
    with family.case("--max-skipped 1% stops it"):
        with pytest.raises(TooManySkipped, match="--max-skipped 1%"):
            dump_logits(teacher, manifest, out, DumpOptions(**given, max_skipped="1%"))
        assert not verify_store(out).findings
    with family.case("the whole manifest"):
        done = dump_logits(teacher, manifest, out, DumpOptions(**given))
        listed = [json.loads(x) for x in (out / "skipped.jsonl").read_text("utf-8").splitlines()]
        assert done.skipped == len(listed) == sum(reasons.values()), (done.skipped, len(listed), reasons)
        assert Counter(x["reason"] for x in listed) == reasons
        assert all(x["what"] for x in listed)
    with family.case("counts agree"):
        ids = set(Store(out))
        family.lost += good - len(ids)
        assert len(ids) == good, f"{len(ids)} of {good}"
        assert not {x["id"] for x in listed if x["reason"] != "ManifestError"} & ids
        assert not verify_store(out).findings
    with family.case("again: nothing to do"):
        again = dump_logits(teacher, manifest, out, DumpOptions(**given))
        assert (again.done, again.shards) == (0, 0)
    with family.case("a recording that vanishes while the dump runs"):
        _vanishing(teacher, root)


def _vanishing(teacher, root):
    gone = root / "gone.wav"
    _wav(gone, np.zeros(16000, np.float32))
    good = [json.loads(x) for x in DEMO.read_text("utf-8").splitlines()][:4]
    lines = [{**x, "audio": str(DEMO.parent / x["audio"])} for x in good]
    lines.append({"id": "gone", "audio": str(gone), "duration": 1.0})
    path = root / "v.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    options = DumpOptions({"ctc": "dense"}, shard_size="1", batch_seconds=0, on_error="skip")

    def vanish(progress):
        with contextlib.suppress(FileNotFoundError):
            os.remove(gone)

    done = dump_logits(teacher, read_manifest(path), root / "v", options, report=vanish)
    assert (done.done, done.skipped) == (4, 1), done
    assert "does not exist" in (root / "v" / "skipped.jsonl").read_text("utf-8")
