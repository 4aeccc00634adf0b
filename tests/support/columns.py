"""Changes to one column of a record, after which the columns disagree; each takes the array and a generator."""

import numpy as np


def shortened(array, rng):
    return array[:-1]


def emptied(array, rng):
    return array[:0]


def lengthened(array, rng):
    return np.concatenate([array, array[:1], array[-1:]])


def scrambled(array, rng):
    return np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape).copy()


CHANGES = (shortened, emptied, lengthened, scrambled)
