"""Golden stores of attention decoders, of layers and of transcripts, as they were written once.

    python tests/golden/make_kinds.py EMPTY_FOLDER

The small model of make_encodings.py, with an attention decoder of a few dozen weights on its encoder, hears
two pieces of the demo's recordings; rows say which recordings these are. Beside each store stands NAME.npz:
the model's own numbers, and what was read from the store on the day it was made.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path += [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from make_encodings import ROOT, TEMPERATURES, TOKENS
from make_encodings import teacher as small

from logitstore import open_store
from logitstore.corpus.audio import load_audio
from logitstore.corpus.manifest import read_manifest
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.schema.spec import Head
from logitstore.teachers.layers import with_layers
from recipes.demo.teacher import DemoTeacher

END, WIDTH, ENCODER = 8, 6, 11
LAYERS = (Head("hidden", "encoder.norm", 0), Head("hidden_b", "encoder.blocks.0", 0))
STORES = {
    "kinds": (
        "webdataset",
        {"seq2seq": "nucleus:0.01", "hidden": "vectors", "hidden_b": "vectors:int8", "text": ""},
    ),
    "kinds-zarr": ("zarr", {"ctc": "dense", "seq2seq": "topk:3", "hidden": "vectors:int8"}),
}
UTTERANCES = (
    '{"id": "a.1", "audio": "demo/demo-00.flac", "offset": 0.5, "duration": 0.5, "tokens": [3, 1, 4], '
    '"text": "cad", "recording": "demo/00", "channel": 0, '
    '"expected": 3.0425}\n'
    '{"id": "b/2’", "audio": "demo/demo-01.flac", "offset": 0.25, "duration": 0.3, "tokens": [], '
    '"recording": "demo/01"}\n'
)


class Decoder(nn.Module):
    """The sum of the labels so far looks over at the encoder: (n,) ids and (T, E) to (1, n, V)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(TOKENS), WIDTH)
        self.query = nn.Linear(WIDTH, ENCODER)
        self.output_layer = nn.Linear(WIDTH + ENCODER, len(TOKENS))

    def forward(self, ids, memory):
        said = self.embed(ids).cumsum(0)
        seen = (self.query(said) @ memory.T).softmax(-1) @ memory
        return self.output_layer(torch.cat([said, seen], -1))[None]


class AttentionTeacher(DemoTeacher):
    """Its decoder begins with the blank and ends with class 8; what it writes down is always the same."""

    def describe(self):
        spec = super().describe()
        head = Head("seq2seq", "attention.output_layer", 0, end=END)
        return replace(spec, name="golden", heads=(*spec.heads, head))

    def transcribe(self, audio):
        return ("c ad", -1.25) if len(audio) > 6000 else ("", None)

    def decode(self, output, b, labels):
        memory = output.encoder_out[b, : int(output.lens[b])]
        return self.model.attention(torch.tensor([0, *labels[:-1]]), memory)


def teacher(folder):
    """The small model, with its decoder and its layers."""
    table, model = Path(folder, "tokens.txt"), small(folder).model
    torch.manual_seed(5)
    model.attention = Decoder().requires_grad_(False)
    model.attention.output_layer.weight.mul_(3)
    return with_layers(AttentionTeacher(model, table), LAYERS)


def own(teacher, utt):
    """The model's own numbers by stream, without any hook of ours."""
    model, features = teacher.model, teacher.features(load_audio(utt, 16000))
    caught = []
    handle = model.encoder.blocks[0].register_forward_hook(lambda module, args, x: caught.append(x))
    with torch.inference_mode():
        output = teacher.forward(features[None], torch.tensor([len(features)]))
        rows = {"ctc": model.ctc_output[1](output.encoder_out)[0], "hidden": output.encoder_out[0]}
        rows["hidden_b"] = caught[0][0]
        rows["seq2seq"] = model.attention(torch.tensor([0, *utt.tokens]), output.encoder_out[0])[0]
    handle.remove()
    return {name: x.numpy() for name, x in rows.items()}


def main(folder):
    with tempfile.TemporaryDirectory() as scratch:
        speaker = teacher(scratch)
        listing = Path(scratch, "golden.jsonl")
        listing.write_text(UTTERANCES, "utf-8")
        manifest = read_manifest(listing, audio_root=ROOT / "manifests")
        for name, (storage, streams) in STORES.items():
            place = Path(folder, f"v1.0-{name}")
            if place.exists():
                sys.exit(f"{place} is there already, and golden stores are never written twice")
            options = DumpOptions(streams=streams, storage=storage, transcripts="all")
            dump_logits(speaker, manifest, place, options)
            store, kept = open_store(place), {}
            for utt in manifest:
                target, said = store[utt.id], own(speaker, utt)
                for stream in store.spec.streams:
                    if not stream.stream_kind.axes:
                        continue
                    kept[f"{utt.id} {stream.name} own"] = said[stream.name]
                    if not stream.stream_kind.classes:
                        kept[f"{utt.id} {stream.name}"] = target.vectors(stream.name)
                        continue
                    for t in TEMPERATURES:
                        kept[f"{utt.id} {stream.name} {t:g}"] = target.log_probs(stream.name, t)
            np.savez_compressed(Path(folder, f"v1.0-{name}.npz"), **kept)


if __name__ == "__main__":
    main(sys.argv[1])
