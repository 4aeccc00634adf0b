"""Dumps of the demo, small enough for a test, and a comparison of two folders."""

import filecmp
import os

from logitstore import open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from tests.support import demo

SMALL = {"shard_size": "6", "batch_seconds": 10.0}


def run(out, limit=0, streams=demo.STREAMS, manifest=None, teacher=None, **options):
    """Dump the demo (or another teacher or manifest) in shards of six utterances."""
    return dump_logits(
        teacher or demo.teacher(),
        manifest or demo.manifest(limit),
        out,
        DumpOptions(streams=dict(streams), **{**SMALL, **options}),
    )


def same_tree(a, b):
    """Return whether two folders hold the same files with the same bytes."""
    found = [
        sorted(os.path.relpath(os.path.join(p, f), x) for p, _, fs in os.walk(x) for f in fs) for x in (a, b)
    ]
    return found[0] == found[1] and filecmp.cmpfiles(a, b, found[0], shallow=False)[1:] == ([], [])


def same_records(a, b):
    """Return whether two stores hold the same records, bit for bit, in shards of any size and order."""
    one, two = open_store(a), open_store(b)
    if sorted(one) != sorted(two):
        return False
    return all(
        x.meta == y.meta
        and x.arrays.keys() == y.arrays.keys()
        and all(x.arrays[n].tobytes() == y.arrays[n].tobytes() for n in x.arrays)
        for x, y in ((one.record(i), two.record(i)) for i in one)
    )
