"""Golden stores of rarer cases, as they were written once.

    python tests/golden/make_more.py EMPTY_FOLDER

``relu``: a joiner with relu, a coded stream in several pieces, inner chunks of a few items. ``own-labels``: a
whole lattice with occupancy over labels that the teacher found itself, in several packs. ``sealed``: a store whose
writer died while it merged two shards into one, with a shard of skipped utterances alone, a leftover file, a long
shard name, and more records than one block of the index or of the metadata holds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from make_encodings import ROOT, TEMPERATURES, UTTERANCES, own
from make_encodings import teacher as small
from make_example import TOKENS

from logitstore import StoreWriter, open_store
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.schema.spec import TeacherSpec
from logitstore.storage import faults
from logitstore.storage.backends import _zarr_write, webdataset
from logitstore.store import stream_output
from logitstore.store.rewrite import merge_shards
from recipes.demo.teacher import DemoTeacher

UNLABELLED = UTTERANCES.replace(', "tokens": [3, 1, 4]', "").replace(', "tokens": []', "")
RECORDS, LONG = 600, "n" * 100
STORES = {
    "relu": ("zarr", "factored:0.001", "factored"),
    "own-labels": ("webdataset", "dense", "dense/full+occupancy"),
}


class ReluTeacher(DemoTeacher):
    """The small model with another function in its joiner."""

    def join(self, enc, dec):
        return self.model.joiner.output_linear((enc[:, None] + dec[None]).relu())


def teacher(folder, name):
    """Return the teacher of a store."""
    made = small(folder)
    return ReluTeacher(made.model, Path(folder, "tokens.txt")) if name == "relu" else made


def spoken(folder, name):
    """Return the manifest of a store."""
    listing = Path(folder, "golden.jsonl")
    listing.write_text(UNLABELLED if name == "own-labels" else UTTERANCES, "utf-8")
    return read_manifest(listing, audio_root=ROOT / "manifests")


def dumped(folder, name):
    """Write a store by a dump, and the numbers beside it."""
    storage, ctc, rnnt = STORES[name]
    place = Path(folder, f"v1.0-{name}")
    with tempfile.TemporaryDirectory() as scratch:
        speaker, manifest = teacher(scratch, name), spoken(scratch, name)
        options = DumpOptions(streams={"ctc": ctc, "rnnt": rnnt}, storage=storage, transcripts="all")
        dump_logits(speaker, manifest, place, options)
        store, kept = open_store(place), {}
        for utt in manifest:
            target = store[utt.id]
            labelled = (
                utt
                if utt.tokens is not None
                else type(utt)(**{**vars(utt), "tokens": target.labels.tolist()})
            )
            for stream in ("ctc", "rnnt"):
                kept[f"{utt.id} {stream} own"] = own(speaker, labelled, stream)
                for t in TEMPERATURES:
                    kept[f"{utt.id} {stream} {t:g}"] = target.log_probs(stream, t)
    np.savez_compressed(Path(folder, f"v1.0-{name}.npz"), **kept)


class Died(Exception):
    """The end of a writer at a step of the protocol."""


def die_at(step):
    """Return a hook that ends the writer at a step."""

    def hook(reached):
        if reached == step:
            raise Died

    return hook


def sealed(folder):
    """Write the store whose writer died."""
    place = Path(folder, "v1.0-sealed")
    options = {
        "tokens": TOKENS,
        "streams": {"text": ""},
        "storage": "webdataset",
        "teacher": TeacherSpec("golden", 16000, 640),
    }
    with StoreWriter.open(place, writer=LONG, **options) as writer:
        for i in range(RECORDS):
            writer.add(f"utt-{i:04d}", seconds=0.04, hyp=f"a b {i}")
        writer.flush()
        writer.shard("skipped").seal([{"id": "lost", "reason": "AudioError", "what": "no such file"}])
    for name in ("one", "two"):
        with StoreWriter.open(place, writer=name, **options) as writer:
            writer.add(f"of {name}", seconds=0.04, hyp=name)
    store = open_store(place)
    (place / "shards" / "leftover.tar").write_bytes(b"left by a crash")
    faults.install(die_at("sealed"))
    writer = StoreWriter(store.place, store.spec, writer="merge").begin(store.tokens)
    try:
        merge_shards(store, writer, ["one-000002", "two-000003"])
    except Died:
        writer.abandon()
    faults.install(None)


def main(folder):
    _zarr_write.CHUNK_BYTES = webdataset.PACK_BYTES = 64
    stream_output.FRAMES = 5
    for name in STORES:
        dumped(folder, name)
    sealed(folder)


if __name__ == "__main__":
    main(sys.argv[1])
