"""Conversion of ``OSError`` to ``DiskError`` with the remedy for each cause."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import DiskError

_FULL = "Free space, or move the store to a larger disk; then run the same job again. Sealed shards are kept."
_DO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "The quota of your account is used up. " + _FULL,
    errno.EFBIG: "A limit on the size of files (ulimit -f) is too low for one shard. Raise it, or choose "
    "a smaller shard size.",
    errno.EROFS: "The disk is mounted read-only. Mount it for writing, or choose another location.",
    errno.EACCES: "Ask for the permission (ls -ld shows who has it), or choose another location.",
    errno.EPERM: "Ask for the permission (ls -ld shows who has it), or choose another location.",
    errno.EIO: "The disk or the network fails: read the kernel log (dmesg), and copy the store elsewhere.",
    errno.EMFILE: "This process has too many open files: raise the limit (ulimit -n).",
    errno.ENFILE: "This machine has too many open files: close some, or raise fs.file-max.",
    errno.ESTALE: "The network file system lost the file: mount it again, then run the same job again.",
    errno.ENAMETOOLONG: "Give the store a shorter path.",
    errno.ENOTDIR: "There is a file where a folder should be: choose another location.",
    errno.EISDIR: "There is a folder where a file should be: restore the file from a copy.",
    errno.ELOOP: "A symbolic link in the store leads to itself, or links are not allowed there.",
}


@contextmanager
def disk_errors(where: object, *, missing_too: bool = False) -> Iterator[None]:
    """Raise ``DiskError`` for every ``OSError`` inside the block.

    Args:
        where: the file or folder, for the message.
        missing_too: convert ``FileNotFoundError`` too, instead of passing it on.
    """
    try:
        yield
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not missing_too:
            raise
        raise DiskError(
            f"the file system reports: {e.strerror or e}",
            where=str(where),
            do=_DO.get(e.errno or 0, "Sealed shards are safe: remove the cause and run the same job again."),
        ) from e
