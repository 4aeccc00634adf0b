"""Decode a test set with a trained model and print its word error rate."""

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.append(str(Path(__file__).resolve().parents[3]))

from asr_datamodule import test_dataloader

from recipes.demo.decode import ctc_greedy, edits, rnnt_greedy
from recipes.demo.model import AsrModel, Sizes
from recipes.demo.pieces import Pieces


def get_parser():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, required=True, help="where teacher.safetensors lies")
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument(
        "--method", choices=["ctc-greedy-search", "greedy-search"], default="ctc-greedy-search"
    )
    parser.add_argument("--max-cuts", type=int, default=5, help="utterances a batch")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--fail-after", type=int, default=0, help="die after so many batches")
    return parser


def load_model(exp_dir):
    with safe_open(exp_dir / "teacher.safetensors", framework="pt") as file:
        sizes = json.loads(file.metadata()["sizes"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = AsrModel(Sizes(**sizes))
    model.load_state_dict(state)
    return model.eval()


def decode_one_batch(params, model, batch):
    """Token ids of every utterance of a batch."""
    feature = batch["inputs"].to(torch.float32)
    feature_lens = batch["supervisions"]["num_frames"]
    encoder_out, encoder_out_lens = model.forward_encoder(feature, feature_lens)
    if params.method == "ctc-greedy-search":
        ctc_output = model.ctc_output(encoder_out)
        return [ctc_greedy(ctc_output[i, :n]) for i, n in enumerate(encoder_out_lens.tolist())]
    return [rnnt_greedy(model, encoder_out[i, :n]) for i, n in enumerate(encoder_out_lens.tolist())]


def decode_dataset(params, model, dl, pieces):
    """(reference words, recognised words) of every utterance."""
    results = []
    for batch_idx, batch in enumerate(dl):
        if params.fail_after and batch_idx == params.fail_after:
            raise RuntimeError("the disk is full")
        hyps = decode_one_batch(params, model, batch)
        for cut, hyp in zip(batch["supervisions"]["cut"], hyps, strict=True):
            words = pieces.decode(hyp)
            print(f"{cut.id}\t{words}")
            results.append((cut.text.split(), words.split()))
        logging.info("batch %d, cuts processed until now is %d", batch_idx, len(results))
    return results


@torch.no_grad()
def main():
    params = get_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    torch.set_num_threads(1)
    pieces = Pieces.read(params.tokens)
    model = load_model(params.exp_dir)
    logging.info("Number of model parameters: %d", sum(p.numel() for p in model.parameters()))
    dl = test_dataloader(params.manifest, params.max_cuts, params.num_workers)
    results = decode_dataset(params, model, dl, pieces)
    errors = sum(edits(hyp, ref) for ref, hyp in results)
    words = sum(len(ref) for ref, _ in results)
    print(f"%WER {100 * errors / words:.2f}% [{errors} / {words}]")


if __name__ == "__main__":
    main()
