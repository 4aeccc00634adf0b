"""A test set as padded batches, in the shape of lhotse's K2SpeechRecognitionDataset with return_cuts."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from recipes.demo.decode import read_audio
from recipes.demo.features import log_mel


@dataclass(frozen=True)
class Cut:
    """One utterance; `id` as in lhotse."""

    id: str
    audio: Path
    text: str


class SpeechRecognitionDataset(Dataset):
    """Indexed by a list of cuts, gives a whole batch."""

    def __init__(self, cuts):
        self.cuts = cuts

    def __len__(self):
        return len(self.cuts)

    def __getitem__(self, indices):
        cuts = [self.cuts[i] for i in indices]
        features = [torch.from_numpy(log_mel(read_audio(cut.audio))) for cut in cuts]
        return {
            "inputs": torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
            "supervisions": {
                "sequence_idx": torch.arange(len(cuts), dtype=torch.int32),
                "num_frames": torch.tensor([len(f) for f in features], dtype=torch.int32),
                "text": [cut.text for cut in cuts],
                "cut": cuts,
            },
        }


class BySize:
    """Indices in batches of a fixed number of utterances, in order."""

    def __init__(self, count, size):
        self.count, self.size = count, size

    def __len__(self):
        return -(-self.count // self.size)

    def __iter__(self):
        for begin in range(0, self.count, self.size):
            yield list(range(begin, min(begin + self.size, self.count)))


def read_cuts(manifest):
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [Cut(row["id"], manifest.parent / row["audio"], row["text"]) for row in rows]


def test_dataloader(manifest, max_cuts, num_workers):
    dataset = SpeechRecognitionDataset(read_cuts(manifest))
    sampler = BySize(len(dataset), max_cuts)
    return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=num_workers)
