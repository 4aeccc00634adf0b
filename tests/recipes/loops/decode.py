"""Decode with loops that treat batches in many ways: ``python decode.py LOOP MANIFEST``; the loops are at the end."""

import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "recipes" / "icefall_shaped")]

from asr_datamodule import read_cuts  # noqa: E402
from decode import load_model  # noqa: E402

from recipes.demo.decode import read_audio  # noqa: E402
from recipes.demo.features import log_mel  # noqa: E402

torch.set_num_threads(1)
CUTS = read_cuts(Path(sys.argv[2]))
MODEL = load_model(ROOT / "recipes" / "demo")


def pad(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def features_of(waves):
    return [torch.from_numpy(log_mel(wave.numpy())) for wave in waves]


def with_features(cuts):
    feats = features_of([torch.from_numpy(read_audio(c.audio)) for c in cuts])
    return {"x": pad(feats), "n": torch.tensor([len(f) for f in feats]), "id": [c.id for c in cuts]}


def with_waves(cuts):
    waves = [torch.from_numpy(read_audio(c.audio)) for c in cuts]
    return {"wav": pad(waves), "wav_len": torch.tensor([len(w) for w in waves]), "id": [c.id for c in cuts]}


def with_waves_of_one_length(cuts):
    waves = [torch.from_numpy(read_audio(c.audio))[:16000] for c in cuts]
    return {"wav": pad(waves), "id": [c.id for c in cuts]}


def with_paths(cuts):
    return {"path": [str(c.audio) for c in cuts], "id": [c.id for c in cuts]}


def with_stems(cuts):
    """Ids as ``spk1/0_1.wav`` and ``spk2/0_1.wav`` share them."""
    return {**with_features(cuts), "id": [f"0_{int(c.id[-2:]) % 3}" for c in cuts]}


def batches(collate=with_features, size=3, cuts=CUTS, **options):
    return DataLoader(cuts, batch_size=size, collate_fn=collate, **options)


def run(x, n):
    """Run the encoder and its CTC head."""
    encoder_out, encoder_out_lens = MODEL.forward_encoder(x, n)
    return MODEL.ctc_output(encoder_out), encoder_out_lens


def computed(batch, order=None):
    """Features of a batch of waveforms: padded features and their lengths."""
    waves = [w[:n] for w, n in zip(batch["wav"], batch["wav_len"], strict=True)]
    feats = features_of([waves[i] for i in (order if order is not None else range(len(waves)))])
    return pad(feats), torch.tensor([len(f) for f in feats])


def plain():
    for batch in batches():
        run(batch["x"], batch["n"])


def sorted_features():
    for batch in batches():
        order = batch["n"].argsort()
        run(batch["x"][order], batch["n"][order])


def sorted_waves():
    for batch in batches(with_waves):
        run(*computed(batch, batch["wav_len"].argsort()))


def reversed_waves_of_one_length():
    for batch in batches(with_waves_of_one_length):
        feats = features_of(batch["wav"].flip(0))
        run(pad(feats), torch.tensor([len(f) for f in feats]))


def whitened_waves_of_one_length():
    """Features without any level: every frame is normalised."""
    for batch in batches(with_waves_of_one_length):
        feats = torch.stack(features_of(batch["wav"].flip(0)))
        x = (feats - feats.mean(2, keepdim=True)) / feats.std(2, keepdim=True)
        run(x, torch.full((len(x),), x.shape[1]))


def paths():
    for batch in batches(with_paths):
        utt_ids = batch["id"][1:] + batch["id"][:1]  # wrong ones
        feats = features_of([torch.from_numpy(read_audio(Path(p))) for p in batch["path"]])
        assert len(utt_ids) == len(feats)
        run(pad(feats), torch.tensor([len(f) for f in feats]))


def sorted_paths():
    for batch in batches(with_paths):
        feats = features_of([torch.from_numpy(read_audio(Path(p))) for p in batch["path"]])
        feats.sort(key=len)
        run(pad(feats), torch.tensor([len(f) for f in feats]))


def one_path_at_a_time():
    for batch in batches(with_paths, size=1):
        feats = features_of([torch.from_numpy(read_audio(Path(p))) for p in batch["path"]])
        run(pad(feats), torch.tensor([len(f) for f in feats]))


def fetched_ahead(collate=with_features, size=3):
    x = n = None
    for batch in batches(collate, size):
        if x is not None:
            run(x, n)
        x, n = (batch["x"].clone(), batch["n"].clone()) if "x" in batch else computed(batch)
    run(x, n)


def fetched_ahead_waves():
    fetched_ahead(with_waves)


def fetched_ahead_one_wave():
    fetched_ahead(with_waves, size=1)


def shuffled_in_a_buffer():
    waiting = list(batches())
    for i in (2, 0, 1, 3):
        run(waiting[i]["x"], waiting[i]["n"])


def sorted_over_all_batches():
    rows = [(x[:n], int(n)) for batch in batches() for x, n in zip(batch["x"], batch["n"], strict=True)]
    rows.sort(key=lambda row: row[1])
    for i in range(0, len(rows), 3):
        run(pad([x for x, _ in rows[i : i + 3]]), torch.tensor([n for _, n in rows[i : i + 3]]))


def repeated_ids():
    for batch in batches(with_stems):
        run(batch["x"], batch["n"])


def warm_up_before_the_loader():
    for _ in range(3):
        run(torch.zeros(3, 200, 64), torch.tensor([200, 200, 200]))
    plain()


def warm_up_on_a_dummy_in_the_loop():
    for number, batch in enumerate(batches()):
        if number == 0:
            run(torch.randn(batch["x"].shape), batch["n"])
        run(batch["x"], batch["n"])


def warm_up_on_the_first_batch():
    batch = next(iter(batches()))
    run(batch["x"], batch["n"])
    plain()


def model_in_another_thread():
    with ThreadPoolExecutor(1) as pool:
        for batch in batches():
            pool.submit(infer, batch).result()


@torch.no_grad()
def infer(batch):
    run(batch["x"], batch["n"])


def model_in_two_threads():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(infer, batches()))


def loader_in_another_thread():
    fetched = queue.Queue()

    def fetch():
        for batch in batches():
            fetched.put(batch)
        fetched.put(None)

    threading.Thread(target=fetch).start()
    while (batch := fetched.get()) is not None:
        run(batch["x"], batch["n"])


def one_loader_after_another():
    for cuts in (CUTS[:5], CUTS[5:]):
        for batch in batches(cuts=cuts):
            run(batch["x"], batch["n"])


def two_loaders_in_turn():
    for first, second in zip(batches(cuts=CUTS[:5]), batches(cuts=CUTS[5:]), strict=True):
        run(first["x"], first["n"])
        run(second["x"], second["n"])


def two_passes_in_other_orders():
    torch.manual_seed(0)
    for _ in range(2):
        for batch in batches(shuffle=True):
            run(batch["x"], batch["n"])


def augmented_twice():
    for batch in batches():
        run(batch["x"] * 0.9, batch["n"])
        run(batch["x"], batch["n"])


def chunks_of_frames():
    for batch in batches():
        encoder_out, encoder_out_lens = MODEL.forward_encoder(batch["x"], batch["n"])
        assert len(encoder_out_lens) == len(encoder_out)
        for begin in range(0, encoder_out.shape[1], 16):
            MODEL.ctc_output(encoder_out[:, begin : begin + 16])


def parts_of_a_batch():
    for batch in batches():
        run(batch["x"][:2, : batch["n"][:2].max()], batch["n"][:2])
        run(batch["x"][2:, : batch["n"][2:].max()], batch["n"][2:]) if len(batch["n"]) > 2 else None


def parts_in_the_wrong_order():
    for batch in batches():
        run(batch["x"][1:, : batch["n"][1:].max()], batch["n"][1:]) if len(batch["n"]) > 1 else None
        run(batch["x"][:1, : batch["n"][0]], batch["n"][:1])


def short_utterances_left_out():
    for batch in batches():
        keep = batch["n"] > batch["n"].min()
        if keep.any():
            run(batch["x"][keep], batch["n"][keep])


def two_batches_joined():
    loaded = list(batches())
    for first, second in zip(loaded[::2], loaded[1::2], strict=True):
        run(pad([*first["x"], *second["x"]]), torch.cat([first["n"], second["n"]]))


def last_batch_filled_up():
    for batch in batches():
        missing = 3 - len(batch["n"])
        x = torch.cat([batch["x"], *[batch["x"][-1:]] * missing])
        run(x, torch.cat([batch["n"], *[batch["n"][-1:]] * missing]))


if __name__ == "__main__":
    with torch.no_grad():
        globals()[sys.argv[1]]()
