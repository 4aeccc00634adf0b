"""Golden stores of the narrower encodings and of the lattice forms, as they were written once.

    python tests/golden/make_encodings.py EMPTY_FOLDER

A model of nine classes and a few dozen weights, so that what a factored store keeps once is small, hears two
pieces of the demo's recordings. Beside each store stands NAME.npz: the model's own logits, and what was read
from the store on the day it was made.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from logitstore import open_store
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.teacher import DemoTeacher

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ("<blk>", "a", "b", "▁c", "d", "e", "f", "g", "h")
STORES = {
    "int8": ("webdataset", "dense:int8", "dense:int8/mean-u"),
    "nucleus": ("zarr", "nucleus:0.001", "nucleus:0.01@2/banded:2+occupancy"),
    "factored": ("webdataset", "factored", "factored"),
    "factored-int8": ("zarr:blosc", "factored:int8", "collapsed"),
    "path": ("zarr:blosc", "nucleus:0.0001", "topk:3/path+occupancy"),
    "sample": ("webdataset", "topk:2", "collapsed/sample:2"),
    "factored-kl": ("zarr", "factored:0.001", "factored:0.01"),
    "mean": ("webdataset", "factored:0.1", "dense/mean-u+occupancy"),
}
UTTERANCES = (
    '{"id": "a.1", "audio": "demo/demo-00.flac", "offset": 0.5, "duration": 0.5, "tokens": [3, 1, 4]}\n'
    '{"id": "b/2’", "audio": "demo/demo-01.flac", "offset": 0.5, "duration": 0.3, "tokens": []}\n'
)
TEMPERATURES = (1.0, 3.0)


def teacher(folder):
    """The model, its heads loud enough to be sure of some frames."""
    table = Path(folder, "tokens.txt")
    table.write_text("".join(f"{t} {i}\n" for i, t in enumerate(TOKENS)), "utf-8")
    torch.manual_seed(4)
    model = AsrModel(Sizes(front=8, encoder=11, blocks=1, kernel=3, decoder=8, joiner=10, vocab=len(TOKENS)))
    with torch.no_grad():
        for head in (model.ctc_output[1], model.joiner.output_linear):
            head.weight.mul_(8)
    return DemoTeacher(model.requires_grad_(False), table)


def own(teacher, utt, stream):
    """The model's own logits, (T, V) or (T, U+1, V)."""
    features = teacher.features(load_audio(utt, 16000))
    with torch.inference_mode():
        output = teacher.forward(features[None], torch.tensor([len(features)]))
        if stream == "ctc":
            return teacher.model.ctc_output[1](output.encoder_out)[0].numpy()
        return teacher.join(*teacher.transducer(output, 0, list(utt.tokens))).numpy()


def main(folder):
    with tempfile.TemporaryDirectory() as scratch:
        speaker = teacher(scratch)
        listing = Path(scratch, "golden.jsonl")
        listing.write_text(UTTERANCES, "utf-8")
        manifest = read_manifest(listing, audio_root=ROOT / "manifests")
        for name, (storage, ctc, rnnt) in STORES.items():
            place = Path(folder, f"v1.0-{name}")
            if place.exists():
                sys.exit(f"{place} is there already, and golden stores are never written twice")
            dump_logits(
                speaker, manifest, place, DumpOptions(streams={"ctc": ctc, "rnnt": rnnt}, storage=storage)
            )
            store, kept = open_store(place), {}
            for utt in manifest:
                target = store[utt.id]
                for stream in ("ctc", "rnnt"):
                    kept[f"{utt.id} {stream} own"] = own(speaker, utt, stream)
                    for t in TEMPERATURES:
                        kept[f"{utt.id} {stream} {t:g}"] = target.log_probs(stream, t)
            np.savez_compressed(Path(folder, f"v1.0-{name}.npz"), **kept)


if __name__ == "__main__":
    main(sys.argv[1])
