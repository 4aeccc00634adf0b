"""Small ESPnet2 models, built by its tasks and written as its trainer writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

TOKENS = ["<blank>", "<unk>", "<space>", *"acdehost", "<sos/eos>"]


CONFORMER: dict[str, Any] = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 3,
    "cnn_module_kernel": 5,
    "dropout_rate": 0.1,
}


CONDITIONED: dict[str, Any] = {
    **CONFORMER,
    "interctc_layer_idx": [1, 2],
    "interctc_use_conditioning": True,
}


def build(folder: Path, *options: str, task: str = "asr", **config: Any) -> Any:
    """Build a model of a task with these settings, and write its config.yaml and weights."""
    import yaml
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    from logitstore.teachers.espnet import _no_rwkv_kernel, _transducer_loss_stub

    Task = ASRTask if task == "asr" else ASRTransducerTask
    args = Task.get_parser().parse_args(["--output_dir", str(folder), "--token_type", "char", *options])
    for key, value in {"token_list": TOKENS, "frontend_conf": {"fs": "16k", "n_mels": 40}, **config}.items():
        setattr(args, key, value)
    stats = folder.parent / "exp" / "asr_stats" / "feats_stats.npz"
    stats.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(stats, count=100, sum=rng.standard_normal(40) * 100, sum_square=np.full(40, 1e4))
    args.normalize, args.normalize_conf = "global_mvn", {"stats_file": str(stats)}
    torch.manual_seed(0)
    with _transducer_loss_stub(), _no_rwkv_kernel():
        model = Task.build_model(args)
    for p in model.decoder.parameters() if task == "asr_transducer" else ():
        p.data += 0.1 * torch.randn_like(p)  # the blank is a row of zeros, and a norm would make noise of it
    said = {**vars(args), "normalize_conf": {"stats_file": "exp/asr_stats/feats_stats.npz"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    torch.save({"model": None, "optimizers": [], "epoch": 1}, folder / "checkpoint.pth")
    return model.eval()


CTC: dict[str, Any] = {
    "encoder": "conformer",
    "encoder_conf": CONFORMER,
    "decoder": None,
    "decoder_conf": {},
    "model_conf": {"ctc_weight": 1.0},
}


TRANSDUCER: dict[str, Any] = {
    "encoder": "conformer",
    "encoder_conf": CONFORMER,
    "decoder": "transducer",
    "decoder_conf": {"rnn_type": "lstm", "num_layers": 1, "hidden_size": 12},
    "joint_net_conf": {"joint_space_size": 10},
    "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
}
