"""Checks of the doctor: each judges one group of facts and returns one line."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ...runner.gpu import runs_on, trouble
from .facts import FRAMEWORKS, Facts

GOOD, NOTE, BAD = "good", "note", "bad"
FEW_FILES = 256  # a reader keeps no file open; audio, the shard being written and workers of a DataLoader do
LITTLE_SHARED = 1 << 30
SPARE = 1.1  # factor on an estimate of bytes, for entries, the index and the open shard
COMMON = ("WAV", "FLAC", "OGG", "MP3")


@dataclass(frozen=True)
class DoctorFinding:
    """One line of ``logitstore doctor``.

    Attributes:
        name: name of the check.
        level: ``good``; ``note``, a possible problem; ``bad``, a certain one.
        what: the state found.
        do: advice, where there is a problem.
    """

    name: str
    level: str
    what: str
    do: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def examine(facts: Facts) -> list[DoctorFinding]:
    """Run every check on the facts; one finding each, in a fixed order."""
    return [check(facts) for check in CHECKS]


def device(f: Facts) -> DoctorFinding:
    """Check that torch can run on the device."""
    wrong = trouble(f.cuda, f.device)
    if wrong is not None:
        return DoctorFinding("device", BAD, wrong.what, wrong.do)
    if f.device.startswith("cuda"):
        gpu = f.cuda.gpus[int(f.device.partition(":")[2] or 0)]
        return DoctorFinding(
            "device", GOOD, f"{f.device}: {gpu.name}, {_size(gpu.free)} free, torch {f.cuda.torch}"
        )
    for gpu in f.cuda.gpus:
        if not runs_on(f.cuda.architectures, gpu.capability):
            gpu_text = f"{f.device}; the {gpu.name} (compute capability {'.'.join(map(str, gpu.capability))})"
            return DoctorFinding(
                "device", NOTE, f"{gpu_text} is not one that torch {f.cuda.torch} was built for"
            )
    idle = [gpu.name for gpu in f.cuda.gpus] or list(f.cuda.driver)
    if idle:
        what = f"{f.device}, while there is {', '.join(idle)}"
        return DoctorFinding("device", NOTE, what, "Use --device cuda; torch must be a CUDA build.")
    return DoctorFinding("device", GOOD, f"{f.device}, torch {f.cuda.torch}")


def recordings(f: Facts) -> DoctorFinding:
    """Check that one recording of each file type opens."""
    library = f"libsndfile {f.libsndfile}"
    if f.work is not None:
        bad = {ending: error for ending, (_, error) in f.work.recordings.items() if error}
        if bad:
            ending, error = next(iter(bad.items()))
            count = f.work.recordings[ending][0]
            return DoctorFinding(
                "audio", BAD, f"{count} recordings with {ending}: {error} ({library})", CODECS
            )
        there = ", ".join(f"{n} {e}" for e, (n, _) in f.work.recordings.items())
        return DoctorFinding("audio", GOOD, f"{there}: one of each opened, {library}")
    missing = [name for name in COMMON if name not in f.codecs]
    if missing:
        return DoctorFinding("audio", NOTE, f"{library} reads no {', '.join(missing)}", CODECS)
    return DoctorFinding(
        "audio", GOOD, f"{library} reads {', '.join(COMMON)} and {len(f.codecs) - len(COMMON)} more"
    )


CODECS = "pip install -U soundfile brings a newer libsndfile; convert formats that it cannot read (ffmpeg)."


def manifest(f: Facts) -> DoctorFinding:
    """Check that every manifest line can be used."""
    if f.work is None:
        return DoctorFinding("manifest", GOOD, "none given (--manifest)")
    hours = f"{f.work.utterances} utterances, about {f.work.seconds / 3600:.2f} h"
    if f.work.problems:
        what = f"{hours}; {f.work.problems} lines cannot be used"
        return DoctorFinding("manifest", BAD, what, "logitstore manifest FROM lists them.")
    return DoctorFinding("manifest", GOOD if f.work.utterances else BAD, hours)


def disk(f: Facts) -> DoctorFinding:
    """Check that the store fits on the disk."""
    if f.disk is None:
        return DoctorFinding("disk", GOOD, "no place given (--out)")
    if f.disk.writes:
        return DoctorFinding(
            "disk", BAD, f"{f.disk.path}: {f.disk.writes}", "Choose a place you may write to."
        )
    what = f"{_size(f.disk.free)} free at {f.disk.path}"
    if f.work is None or not f.work.bytes:
        return DoctorFinding("disk", GOOD, f"{what}; give --manifest, --stream and --tokens for an estimate")
    what = f"{what}, about {_size(f.work.bytes)} wanted"
    if f.work.bytes * SPARE > f.disk.free:
        return DoctorFinding("disk", BAD, what, "Keep fewer classes (topk:K), or choose a larger disk.")
    return DoctorFinding("disk", GOOD, what)


def filesystem(f: Facts) -> DoctorFinding:
    """Check that the file system locks and renames as writers need."""
    if f.disk is None or f.disk.writes:
        return DoctorFinding("filesystem", GOOD, "not checked")
    if f.disk.renames:
        what = f"{f.disk.path} does not rename over a file: {f.disk.renames}"
        return DoctorFinding(
            "filesystem", BAD, what, "A shard is sealed by a rename: use a POSIX file system."
        )
    if f.disk.locks:
        what = f"{f.disk.path} has no flock: {f.disk.locks}"
        return DoctorFinding("filesystem", BAD, what, "Dump to a local disk, then copy; or mount with locks.")
    return DoctorFinding("filesystem", GOOD, f"{f.disk.path} locks and renames as needed")


def open_files(f: Facts) -> DoctorFinding:
    """Check that enough files may be open at once."""
    soft, hard = f.open_files
    what = f"{soft} files may be open at once; a reader keeps none open for its shards"
    if 0 <= soft < FEW_FILES:
        return DoctorFinding("files", NOTE, what, f"ulimit -n {hard if hard > soft else FEW_FILES}")
    return DoctorFinding("files", GOOD, what if soft >= 0 else "any number of files may be open")


def shared_memory(f: Facts) -> DoctorFinding:
    """Check that DataLoader workers have shared memory for batches."""
    if f.shared_memory is None:
        return DoctorFinding("memory", NOTE, "there is no /dev/shm", "DataLoader workers need one.")
    total, free = f.shared_memory
    what = f"{_size(free)} of {_size(total)} shared memory free"
    if free < LITTLE_SHARED:
        do = "Workers die with 'Bus error' when it is full: docker run --shm-size 8g."
        return DoctorFinding("memory", NOTE, what, do)
    return DoctorFinding("memory", GOOD, what)


def encoding(f: Facts) -> DoctorFinding:
    """Check that text files opened without a named encoding are UTF-8."""
    try:
        name = codecs.lookup(f.encoding).name
    except LookupError:
        name = f.encoding
    from_where = ", ".join(f"{k}={v}" for k, v in f.locale.items()) or "no LANG, no LC_ALL"
    if name == "utf-8":
        return DoctorFinding("locale", GOOD, f"UTF-8 ({from_where})")
    return DoctorFinding(
        "locale",
        NOTE,
        f"text is {name} here ({from_where}): your own scripts fail at the first ’ that they read or print",
        "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1). logitstore itself always writes UTF-8.",
    )


def versions(f: Facts) -> DoctorFinding:
    """List the versions of what is installed."""
    frameworks = [f"{n} {f.versions[n]}" for n in FRAMEWORKS if n in f.versions]
    ours = [f"{n} {v}" for n, v in f.versions.items() if n not in FRAMEWORKS]
    return DoctorFinding("versions", GOOD, ", ".join(ours + (frameworks or ["no speech framework"])))


def cpus(f: Facts) -> DoctorFinding:
    """Check that thread counts fit the CPUs."""
    usable, there = f.cpus
    what = f"{usable:g} of {there} usable"
    high = [f"{k}={v}" for k, v in f.threads.items() if v.isdigit() and int(v) > max(usable, 1)]
    if high:
        return DoctorFinding(
            "cpus", NOTE, f"{what}, but {', '.join(high)}", "More threads than CPUs are slower."
        )
    return DoctorFinding("cpus", GOOD, ", ".join([what, *(f"{k}={v}" for k, v in f.threads.items())]))


CHECKS: tuple[Callable[[Facts], DoctorFinding], ...] = (
    device,
    versions,
    manifest,
    recordings,
    disk,
    filesystem,
    open_files,
    shared_memory,
    encoding,
    cpus,
)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
