"""Reads a student's batch from a store, as a training step would: `student_batch.py STORE`."""

from __future__ import annotations

import sys

from torch.utils.data import DataLoader

from logitstore import TargetDataset, collate_targets, open_store


def collate(targets):
    """A student with half the teacher's frame rate, distilled at temperature 2."""
    return collate_targets(targets, frames=[(t.T + 1) // 2 for t in targets], temperature=2.0)


def main() -> None:
    store = open_store(sys.argv[1])
    loader = DataLoader(TargetDataset(store), batch_size=4, collate_fn=collate, num_workers=2)
    batch = next(iter(loader))
    print(f"a batch of {len(batch)} for a student of half the frame rate, temperature {batch.temperature:g}:")
    print(f"  lengths       {batch.lengths.tolist()}, labels {batch.label_lengths.tolist()}")
    for name, stream in batch.streams.items():
        kept = "all classes" if stream.ids is None else f"ids {tuple(stream.ids.shape)}"
        mass = stream.dense().exp().sum(-1)[stream.mask]
        print(f"  {name:<13} logp {tuple(stream.logp.shape)}, {kept}, mask {tuple(stream.mask.shape)}")
        print(f"  {'':<13} probabilities of a row sum to {mass.min():.4f}…{mass.max():.4f}")


if __name__ == "__main__":
    main()
