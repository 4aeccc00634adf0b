"""What SpeechBrain's training leaves behind: a resolved yaml, and ``save/CKPT+…`` with a file a module.

Such a yaml names modules but not their order, which is in the recipe's ``compute_forward``. The public
recipes call the same modules by the same names in one order, ``STEPS``; where a yaml holds others, the order
has to be given. No brain is made, no dataset opened, nothing downloaded or written.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import TeacherError, UsageError

STEPS = (
    ("wav2vec2", "compute_features"),
    ("normalize",),
    ("CNN",),
    ("enc", "Transformer", "model"),
    ("back_end_ffn",),
    ("proj_enc", "enc_lin"),
)
HEADS = ("ctc_lin", "proj_ctc", "output")  # of CTC; with a transducer, output is the joint's
ASIDE = ("emb", "dec", "dec_lin", "proj_dec", "Tjoint", "transducer_lin", "output", "seq_lin", "lm_model")
LEAST, MOST = ("WER", "PER", "CER"), ("ACC",)  # what recipes keep and evaluate their checkpoints by
LENGTHS = ("lengths", "wav_lens", "wav_len")
UNUSED = ("train_logger", "__set_seed")


class Chain(nn.Module):
    """Modules one after the other, with the lengths for those that take them."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        """(B, samples) and (B,) lengths relative to the longest → (B, T, D)."""
        for part in self.parts.values():
            call: Any = getattr(part, "encode", part)  # a Transformer's forward wants tokens too
            takes = inspect.signature(part.forward if call is part else call).parameters
            given = {n: relative for n in LENGTHS if n in takes}
            said: Any = call(x, **given)
            x = said[0] if isinstance(said, tuple) else said
        return x


def is_training(folder: Path) -> bool:
    """Whether a folder, or its ``save``, holds checkpoints of a training."""
    return any(folder.glob("CKPT+*/CKPT.yaml")) or any(folder.glob("save/CKPT+*/CKPT.yaml"))


Taken = dict[str, str]


def read(folder: Path, text: str, asked: Mapping[str, str]) -> tuple[dict[str, Any], Taken, list[nn.Module]]:
    """What a teacher needs of the yaml, checkpoint loaded; what was taken; the modules that it fills.

    Raises ``TeacherError`` where a part of the chain would be random, and ``UsageError`` where something has
    to be said: the chain, the checkpoint, the tokenizer.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a wav2vec2 is fetched by its constructor
    from hyperpyyaml import load_hyperpyyaml

    text, overrides = _settled(text, folder)
    hparams = load_hyperpyyaml(text, overrides, overrides_must_match=False)
    modules = hparams.get("modules")
    keeper: Any = hparams.get("checkpointer")
    if not isinstance(modules, dict) or not hasattr(keeper, "keywords"):
        raise TeacherError(
            "it has no modules or no checkpointer: is it the yaml of a training?", where=str(folder)
        )
    searcher = _searcher(hparams)
    chain = _chain(hparams, asked.get("chain", ""), str(folder))
    head = next((modules[n] for n in HEADS if n in modules and not (n == "output" and searcher)), None)
    save = folder / "save" if any(folder.glob("save/CKPT+*")) else folder
    filled, took = _load(save, keeper.keywords.get("recoverables", {}), asked, hparams)
    needed = {**chain, **({"the CTC layer": head} if head is not None else {})}
    if searcher is not None:
        needed |= {f"the decoder's {type(m).__name__}": m for m in searcher.decode_network_lst}
        needed |= {"the joint's output": searcher.classifier_network[0]}
    have = {id(m) for f in filled for m in f.modules()}
    for name, module in needed.items():
        learnt = any(True for _ in module.parameters()) or getattr(module, "norm_type", "") == "global"
        if learnt and id(module) not in have:
            raise TeacherError(
                f"no file of {took['checkpoint']} fills {name}",
                where=str(folder),
                why="Its weights would be random, or those of somebody else's model.",
                do="Give an inference folder: a hyperparams.yaml whose pretrainer loads every part.",
            )
    took["chain"] = " + ".join(chain)
    found = {"encoder": Chain(chain), **({"ctc_lin": head} if head is not None else {})}
    keep = {k: hparams[k] for k in ("sample_rate", "blank_index") if k in hparams}
    tokenizer = _tokenizer(folder, save / took["checkpoint"], asked)
    return {**keep, "modules": found, "searcher": searcher, "tokenizer": tokenizer}, took, filled


def _settled(text: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The yaml with its output folder where it is now, and without what is for training alone."""
    overrides: dict[str, Any] = {n: None for n in UNUSED if re.search(rf"^{n}:", text, re.M)}
    overrides |= dict.fromkeys(re.findall(r"^(\w+): *!PLACEHOLDER", text, re.M), "unused")
    was = re.search(r"^output_folder: *(.+?) *(?:#.*)?$", text, re.M)
    if was and was[1].startswith("!"):
        overrides["output_folder"] = str(folder)
    elif was:  # a training writes its yaml with all references resolved
        there = str(folder).replace("\\", r"\\")
        text = re.sub(rf"(?<![\w./-]){re.escape(was[1])}(?=[/\s'\"\]}},]|$)", there, text)
    # Not made: it would make its folder.
    return text.replace("!new:speechbrain.utils.checkpoints.Checkpointer", "!name:dict"), overrides


def _chain(hparams: dict[str, Any], said: str, where: str) -> dict[str, nn.Module]:
    """The encoder's modules in the order of their calls."""
    known = {k: m for k, m in [*hparams.items(), *hparams["modules"].items()] if isinstance(m, nn.Module)}
    if said:
        names = said.split("+")
        if missing := [n for n in names if n not in known]:
            raise UsageError(f"chain= names {missing[0]!r}", do=registry.suggest(missing[0], known))
        return {n: known[n] for n in names}
    names = []
    for step in STEPS:
        found = [n for n in step if n in known and (n in hparams["modules"] or n in STEPS[0] + STEPS[1])]
        if step == STEPS[1] and "compute_features" not in names:
            continue
        names += [n for n in found if not isinstance(known[n], nn.ModuleList)][:1]
    strange = [
        n
        for n, m in hparams["modules"].items()
        if n not in (*names, *HEADS, *ASIDE)
        and isinstance(m, nn.Module)
        and any(True for _ in m.parameters())
    ]
    encoders = [n for n in names if n in STEPS[3] or n == "wav2vec2"]
    if strange or not encoders or names[0] not in STEPS[0]:
        raise UsageError(
            f"its modules {', '.join(hparams['modules'])} do not tell the order in which they are called",
            where=where,
            why="That order is in the recipe's compute_forward."
            + (f" Nothing says where {', '.join(strange)} belongs." if strange else ""),
            do="Say it, up to what goes into CTC layer or joint: chain=compute_features+normalize+enc.",
        )
    return {n: known[n] for n in names}


def _load(
    save: Path, recoverables: Mapping[str, Any], asked: Mapping[str, str], hparams: Mapping[str, Any]
) -> tuple[list[nn.Module], Taken]:
    """Fill the recoverable modules by SpeechBrain's own checkpointer, as the recipe's evaluation does."""
    from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints

    modules = {n: m for n, m in recoverables.items() if isinstance(m, nn.Module)}
    keeper = Checkpointer(save, modules, allow_partial_load=True)
    saved = keeper.list_checkpoints()
    by = _by({k for c in saved for k in c.meta}, asked)
    if asked.get("ckpt", "last") != "last":
        ranked = [c for c in saved if c.path.name == asked["ckpt"]]
    else:
        ranked = keeper.find_checkpoints(**({f"{by[0]}_key": by[1]} if by else {}))
    if not ranked:
        there = (f"{c.path.name} ({', '.join(sorted(c.meta))})" for c in sorted(saved, key=lambda c: c.path))
        raise UsageError(f"no such checkpoint in {save}", do=f"There are: {'; '.join(there)}.")
    best = ranked[0]
    keeper.load_checkpoint(best)
    chosen = f"{by[0]} {by[1]}: {best.meta[by[1]]:g}" if by else "as said" if "ckpt" in asked else "newest"
    took = {"checkpoint": best.path.name, "chosen": chosen}
    several = ranked[: int(asked.get("avg", hparams.get("avg_checkpoints") or 1))]
    if len(several) > 1 and "model" in modules and "ckpt" not in asked:
        modules["model"].load_state_dict(average_checkpoints(several, recoverable_name="model"), strict=True)
        took["averaged"] = ", ".join(c.path.name for c in several)
    return [m for n, m in modules.items() if n in best.paramfiles], took


def _by(keys: set[str], asked: Mapping[str, str]) -> tuple[str, str] | None:
    """Which checkpoint is best: that of the least or most of something, or, for None, the newest."""
    if "ckpt" in asked:
        return None
    known = [*(("min", k) for k in LEAST), *(("max", k) for k in MOST)]
    said = [(side, asked[side]) for side in ("min", "max") if side in asked]
    return next(iter([*said, *(k for k in known if k[1] in keys)]), None)


def _tokenizer(folder: Path, checkpoint: Path, asked: Mapping[str, str]) -> Any:
    """The tokenizer of the folder: a label encoder's lines, or a SentencePiece model."""
    places = [checkpoint / "tokenizer.ckpt", folder / "save" / "tokenizer.ckpt", folder / "tokenizer.ckpt"]
    places += [folder / "save" / "label_encoder.txt", folder / "label_encoder.txt"]
    found = [p for p in places if p.exists()][:1]
    found = found or sorted({*folder.glob("*.model"), *folder.glob("save/*.model")})
    found = [Path(asked["tokenizer"])] if "tokenizer" in asked else found
    if len(found) != 1 or not found[0].exists():
        raise UsageError(
            f"{folder} holds {len(found)} tokenizers"
            if "tokenizer" not in asked
            else f"{found[0]} does not exist",
            where="--teacher",
            do="Say tokenizer=FILE: a SentencePiece .model, or a label_encoder.txt.",
        )
    if b" => " in found[0].read_bytes():
        from speechbrain.dataio.encoder import CTCTextEncoder

        encoder: Any = CTCTextEncoder()
        encoder.load(str(found[0]))
        return encoder
    with registry.needs("speechbrain", "pip install sentencepiece"):
        import sentencepiece
    return sentencepiece.SentencePieceProcessor(model_file=str(found[0]))


def _searcher(hparams: Mapping[str, Any]) -> Any:
    """The transducer searcher; by its attributes, as its class has moved before."""
    has = ("decode_network_lst", "tjoint", "classifier_network")
    return next((v for v in hparams.values() if all(hasattr(v, n) for n in has)), None)
