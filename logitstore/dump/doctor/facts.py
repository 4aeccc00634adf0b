"""Facts about this machine and the work planned for it: looked up here, judged by ``doctor``."""

from __future__ import annotations

import fcntl
import importlib.metadata
import locale
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...corpus.audio import header, seconds_of
from ...corpus.manifest import Manifest
from ...encodings import HeadEncoding, parse_encoding
from ...errors import AudioError
from ...runner.gpu import Cuda, look
from ...schema.kinds import kind_of
from ...tokens.table import TokenTable

FRAMEWORKS = ("transformers", "nemo_toolkit", "espnet", "speechbrain", "wenet", "k2", "lhotse", "datasets")
LIBRARIES = ("numpy", "zarr", "numcodecs", "webdataset", "soundfile", "soxr")
WIDTH = 512  # numbers that a layer gives a frame, as long as nobody says
LOOKED_AT = 500  # utterances whose length is looked up; the others are taken to be like them
CHARACTERS = 3  # of text a token, where the manifest has no token ids; large tables have more


@dataclass(frozen=True)
class Work:
    """What is to be dumped.

    Attributes:
        utterances: good lines of the manifest.
        problems: lines that cannot be used.
        seconds: of audio.
        bytes: that the shards will take, by the encodings' own columns; 0 where no stream was named.
        recordings: by file ending, how many there are, and what opening the first of them said.
    """

    utterances: int
    problems: int
    seconds: float
    bytes: int = 0
    recordings: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """Where the store will lie.

    Attributes:
        path: the nearest folder that is there already.
        free: bytes.
        locks: what taking an flock said; empty where it works.
        renames: what renaming a file over another said; empty where it works.
        writes: why nothing can be written there; empty where it can.
    """

    path: str
    free: int
    locks: str = ""
    renames: str = ""
    writes: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything ``doctor`` judges.

    Attributes:
        device: asked for.
        cuda: what torch knows of GPUs.
        versions: of Python, of our libraries and of the frameworks that are there.
        libsndfile: its version.
        codecs: formats it reads.
        encoding: of text files that a program opens without saying which; the locale's.
        locale: the variables that decide it.
        open_files: soft and hard limit.
        shared_memory: total and free bytes of /dev/shm; None where there is none.
        cpus: that this process may use, and that the machine has.
        threads: variables that set numbers of threads.
        disk: where the store will lie, if anywhere.
        work: what is to be dumped, if anything.
    """

    device: str
    cuda: Cuda
    versions: Mapping[str, str]
    libsndfile: str
    codecs: tuple[str, ...]
    encoding: str
    locale: Mapping[str, str]
    open_files: tuple[int, int]
    shared_memory: tuple[int, int] | None
    cpus: tuple[float, int]
    threads: Mapping[str, str]
    disk: Disk | None = None
    work: Work | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gather(device: str, out: Path | None = None, work: Work | None = None) -> Facts:
    """Look everything up."""
    import soundfile

    return Facts(
        device=device,
        cuda=look(device),
        versions=_versions(),
        libsndfile=str(soundfile.__libsndfile_version__),
        codecs=tuple(sorted(soundfile.available_formats())),
        encoding="utf-8" if os.environ.get("PYTHONUTF8") == "1" else locale.getencoding(),
        locale=_environment("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        shared_memory=_shared_memory(),
        cpus=(_cpus(), os.cpu_count() or 1),
        threads=_environment("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        disk=None if out is None else try_disk(out),
        work=work,
    )


def plan(manifest: Manifest, streams: Mapping[str, str], table: TokenTable | None, shift: float) -> Work:
    """What dumping a manifest comes to.

    Args:
        manifest: it is read once more; one recording of every file ending is opened.
        streams: encoding by stream name.
        table: the teacher's; without one no bytes are estimated.
        shift: seconds between two teacher frames.
    """
    size = {name: _row_bytes(name, encoding, table) for name, encoding in streams.items()} if table else {}
    known, seconds, total = 0, 0.0, 0.0
    endings: dict[str, tuple[int, str]] = {}
    for utt in manifest:
        ending = "a pipe" if utt.pipe else utt.audio.suffix.lower() or "no ending"
        count, said = endings.get(ending, (0, ""))
        try:
            if not count and not utt.pipe:
                header(utt)
            if known < LOOKED_AT and not (utt.pipe and utt.duration is None and utt.expected is None):
                length = seconds_of(utt)
                labels = len(utt.tokens) if utt.tokens is not None else -(-len(utt.text or "") // CHARACTERS)
                known, seconds = known + 1, seconds + length
                frames = round(length / shift)
                total += sum(kind_of(name).rows(frames, labels) * bytes for name, bytes in size.items())
        except AudioError as e:
            said = said or str(e).splitlines()[0]
        endings[ending] = count + 1, said
    scale = manifest.utterances / max(known, 1)
    return Work(manifest.utterances, len(manifest.problems), seconds * scale, round(total * scale), endings)


def _row_bytes(name: str, asked: str, table: TokenTable) -> int:
    import numpy as np

    kind, (encoding, _, form) = kind_of(name), asked.partition("/")
    if not kind.axes:
        return 0
    parsed = parse_encoding(encoding)
    if isinstance(parsed, HeadEncoding):
        return 2 * len(
            table
        )  # how wide its head's input is, only the teacher knows; no wider than float16 rows
    size = len(table) if kind.classes else int(form) if form.isdigit() else WIDTH
    columns = parsed.columns(size)
    return sum(np.dtype(c.dtype).itemsize * int(np.prod(c.shape, dtype=int)) for c in columns)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *FRAMEWORKS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _environment(*names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _shared_memory() -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return usage.total, usage.free


def _cpus() -> float:
    """CPUs this process may use: its affinity, and the quota of its control group."""
    usable = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(usable, int(quota) / int(period)) if quota != "max" else usable
    except (OSError, ValueError):
        return usable


def try_disk(out: Path) -> Disk:
    """Free space, an flock and a rename in the nearest folder that is there; it is left as it was."""
    folder = out.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryDirectory(prefix=".logitstore-", dir=folder) as name:
            return Disk(str(folder), free, locks=_locks(Path(name)), renames=_renames(Path(name)))
    except OSError as e:
        return Disk(str(folder), free, writes=str(e))


def _locks(folder: Path) -> str:
    """Two openings of one file must not both hold its flock."""
    with open(folder / "lock", "wb") as one, open(folder / "lock", "wb") as two:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            return str(e)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
        return "two writers both got the lock"


def _renames(folder: Path) -> str:
    """A rename over a file that is there."""
    try:
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
        os.rename(folder / "a", folder / "b")
        return "" if (folder / "b").read_bytes() == b"a" else "the old file was still there"
    except OSError as e:
        return str(e)
