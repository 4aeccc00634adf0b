"""Facts about this machine and the planned dump, which the doctor's checks judge."""

from __future__ import annotations

import fcntl
import importlib.metadata
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...corpus.audio import header, seconds_of
from ...corpus.manifest import Manifest
from ...encodings import parse_encoding, stores_head
from ...errors import AudioError
from ...runner.gpu import Cuda, look
from ...schema.kinds import kind_of
from ...tokens.table import TokenTable

FRAMEWORKS = ("transformers", "nemo_toolkit", "espnet", "speechbrain", "wenet", "k2", "lhotse", "datasets")
LIBRARIES = ("numpy", "zarr", "numcodecs", "webdataset", "soundfile", "soxr")
LAYER_WIDTH = 512  # assumed width D of a layer
MEASURED = 500  # utterances whose duration is looked up; the others are assumed to be alike
CHARACTERS = 3  # assumed characters of a token, where the manifest has no token ids


@dataclass(frozen=True)
class PlannedWork:
    """Size of a planned dump.

    Attributes:
        utterances: number of usable manifest lines.
        problems: number of lines that cannot be used.
        seconds: seconds of audio.
        bytes: estimated bytes of the shards; 0 where no stream was named.
        recordings: by file ending, the number of recordings and the error of opening the first, or empty.
    """

    utterances: int
    problems: int
    seconds: float
    bytes: int = 0
    recordings: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class DiskFacts:
    """The disk of the planned store.

    Attributes:
        path: the nearest existing folder.
        free: free bytes.
        locks: error of an flock; empty where it works.
        renames: error of a rename over a file; empty where it works.
        writes: error of writing there; empty where it works.
    """

    path: str
    free: int
    locks: str = ""
    renames: str = ""
    writes: str = ""


@dataclass(frozen=True)
class Facts:
    """All facts that the doctor judges.

    Attributes:
        device: the device to run on.
        cuda: GPUs as torch and the driver see them.
        versions: versions of Python, of required libraries and of installed frameworks.
        libsndfile: version of libsndfile.
        codecs: formats that libsndfile reads.
        encoding: the locale's encoding of text files.
        locale: environment variables that decide the encoding.
        open_files: soft and hard limit of open files.
        shared_memory: total and free bytes of /dev/shm; None where there is none.
        cpus: CPUs that this process may use, and CPUs of the machine.
        threads: environment variables that set numbers of threads.
        disk: the disk of the store, if one is given.
        work: the planned dump, if a manifest is given.
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
    disk: DiskFacts | None = None
    work: PlannedWork | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gather(device: str, out: Path | None = None, work: PlannedWork | None = None) -> Facts:
    """Gather all facts."""
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


def planned_work(
    manifest: Manifest, streams: Mapping[str, str], table: TokenTable | None, shift: float
) -> PlannedWork:
    """Estimate the size of a dump.

    Args:
        manifest: manifest to read; one recording of every file ending is opened.
        streams: encoding by stream name.
        table: the teacher's token table; without one no bytes are estimated.
        shift: seconds between two teacher frames.
    """
    size = {name: _row_bytes(name, encoding, table) for name, encoding in streams.items()} if table else {}
    known, seconds, total = 0, 0.0, 0.0
    endings: dict[str, tuple[int, str]] = {}
    for utt in manifest:
        ending = "a pipe" if utt.pipe else utt.audio.suffix.lower() or "no ending"
        count, error = endings.get(ending, (0, ""))
        try:
            if not count and not utt.pipe:
                header(utt)
            if known < MEASURED and not (utt.pipe and utt.duration is None and utt.expected is None):
                length = seconds_of(utt)
                labels = len(utt.tokens) if utt.tokens is not None else -(-len(utt.text or "") // CHARACTERS)
                known, seconds = known + 1, seconds + length
                frames = round(length / shift)
                total += sum(kind_of(name).rows(frames, labels) * bytes for name, bytes in size.items())
        except AudioError as e:
            error = error or str(e).splitlines()[0]
        endings[ending] = count + 1, error
    scale = manifest.utterances / max(known, 1)
    return PlannedWork(
        manifest.utterances, len(manifest.problems), seconds * scale, round(total * scale), endings
    )


def _row_bytes(name: str, asked: str, table: TokenTable) -> int:
    import numpy as np

    kind, (encoding, _, form) = kind_of(name), asked.partition("/")
    if not kind.axes:
        return 0
    parsed = parse_encoding(encoding)
    if stores_head(parsed):
        return 2 * len(table)  # an upper bound: the width of the head's input is not known here
    size = len(table) if kind.classes else int(form) if form.isdigit() else LAYER_WIDTH
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
    """Return the CPUs that this process may use: its affinity and the quota of its control group."""
    usable = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(usable, int(quota) / int(period)) if quota != "max" else usable
    except (OSError, ValueError):
        return usable


def try_disk(out: Path) -> DiskFacts:
    """Try free space, an flock and a rename in the nearest existing folder, and leave it as it was."""
    folder = out.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryDirectory(prefix=".logitstore-", dir=folder) as name:
            return DiskFacts(str(folder), free, locks=_locks(Path(name)), renames=_renames(Path(name)))
    except OSError as e:
        return DiskFacts(str(folder), free, writes=str(e))


def _locks(folder: Path) -> str:
    """Return the error of an flock: neither two openings of one file nor two processes may both hold it."""
    with open(folder / "lock", "wb") as one, open(folder / "lock", "wb") as two:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            return str(e)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "two writers both got the lock"
        except OSError:
            pass
        return _lock_of_another_process(folder / "lock")


def _lock_of_another_process(path: Path) -> str:
    """Return the error where another process takes a lock that this process holds; empty where it cannot."""
    program = (
        "import fcntl, sys\n"
        "try:\n"
        "    fcntl.flock(open(sys.argv[1], 'wb'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError:\n"
        "    sys.exit(0)\n"
        "sys.exit(7)\n"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", program, str(path)], capture_output=True, check=False)
    return "a second process got the lock that the first one held" if ran.returncode == 7 else ""


def _renames(folder: Path) -> str:
    """Return the error of a rename over an existing file."""
    try:
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
        os.rename(folder / "a", folder / "b")
        return "" if (folder / "b").read_bytes() == b"a" else "the old file was still there"
    except OSError as e:
        return str(e)
