"""ESPnet's other transducer, the task ``asr_transducer``: to be known, built and asked in its own ways."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def is_transducer_task(config: Mapping[str, Any]) -> bool:
    """Whether a config.yaml is of that task: the other one writes ``joint_net_conf``."""
    return "joint_network_conf" in config


def build(config: Mapping[str, Any]) -> Any:
    """The model, random weights, as ``asr_transducer_inference`` has it."""
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    with _no_kernel():
        model: Any = ASRTransducerTask.build_model(argparse.Namespace(**config))
    # Otherwise the encoder draws a chunk size in every forward, in eval mode too.
    model.encoder.dynamic_chunk_training = False
    return model


@contextmanager
def _no_kernel() -> Iterator[None]:
    """RWKV's constructor compiles its training kernel, and fails where there is no GPU or no compiler."""
    from espnet2.asr_transducer.decoder.modules.rwkv import attention

    compile_kernel = attention.load_wkv_kernel
    attention.load_wkv_kernel = lambda context_size: None
    try:
        yield
    finally:
        attention.load_wkv_kernel = compile_kernel
