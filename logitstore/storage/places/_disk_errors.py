"""What a file system says no to, said so that a person knows what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import DiskError

_FULL = (
    "Make room, or move the store to a larger disk; then run the same command again: what is sealed stays."
)
_DO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "Your quota is used up. " + _FULL,
    errno.EFBIG: "A limit on the size of files (ulimit -f) is too low for one shard. Raise it, or give a "
    "smaller --shard-size.",
    errno.EROFS: "The disk is mounted read-only. Mount it for writing, or write elsewhere.",
    errno.EACCES: "Ask for the permission (ls -ld shows who has it), or take another folder.",
    errno.EPERM: "Ask for the permission (ls -ld shows who has it), or take another folder.",
    errno.EIO: "The disk or the network under it fails: look into dmesg, and copy what is there elsewhere.",
    errno.EMFILE: "Too many files are open in this process: raise the limit (ulimit -n).",
    errno.ENFILE: "Too many files are open on this machine: close some, or raise fs.file-max.",
    errno.ESTALE: "The network file system lost the file: mount it again, then run the same command again.",
    errno.ENAMETOOLONG: "Give the store a shorter path.",
    errno.ENOTDIR: "A file stands where a folder should be: give another location.",
    errno.EISDIR: "A folder stands where a file should be: restore it from a copy.",
    errno.ELOOP: "A symbolic link of the store points at itself, or where none may be.",
}


@contextmanager
def disk_errors(where: object, *, missing_too: bool = False) -> Iterator[None]:
    """Raise ``DiskError`` for an ``OSError``; a missing file passes unless it should have been there."""
    try:
        yield
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not missing_too:
            raise
        what = e.strerror or str(e)
        raise DiskError(
            f"the file system says: {what}",
            where=str(where),
            do=_DO.get(
                e.errno or 0, "Nothing that was sealed is lost; mend it and run the same command again."
            ),
        ) from e
