"""Memory maps of files that hold no file descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def map_file(fd: int) -> NDArray[np.uint8]:
    """Map an open file and return its bytes as a read-only array; the file may be closed afterwards.

    ``mmap.mmap`` would keep a duplicate of the descriptor for every map, so that a store of many shards would
    need more descriptors than a process may have.

    Args:
        fd: file descriptor, open for reading.
    """
    size = os.fstat(fd).st_size
    if size == 0:  # an empty file cannot be mapped
        return np.zeros(0, np.uint8)
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    block = (ctypes.c_ubyte * size).from_address(address)
    unmap = weakref.finalize(block, libc.munmap, address, size)
    unmap.atexit = False  # arrays may be in use until the process ends
    return np.frombuffer(memoryview(block).toreadonly(), np.uint8)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
