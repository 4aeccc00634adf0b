"""What would bite later, said before a long job: each check judges the facts of one thing in one line."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ...runner.gpu import runs_on, trouble
from .facts import FRAMEWORKS, Facts

GOOD, NOTE, BAD = "good", "note", "bad"
FEW_FILES = 1024  # a reader keeps up to 64 shards open, each with a file or two a column
LITTLE_SHARED = 1 << 30
SPARE = 1.1  # of an estimate of bytes: entries, index, a shard in the making
COMMON = ("WAV", "FLAC", "OGG", "MP3")


@dataclass(frozen=True)
class Finding:
    """One line of ``logitstore doctor``.

    Attributes:
        name: of the thing.
        level: ``good``; ``note``, which may bite; ``bad``, which surely will.
        what: how it is.
        do: what to do about it.
    """

    name: str
    level: str
    what: str
    do: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def examine(facts: Facts) -> list[Finding]:
    """Judge every fact; one finding a check, in a fixed order."""
    return [check(facts) for check in CHECKS]


def device(f: Facts) -> Finding:
    """Whether torch can run where it shall."""
    wrong = trouble(f.cuda, f.device)
    if wrong is not None:
        return Finding("device", BAD, wrong.what, wrong.do)
    if f.device.startswith("cuda"):
        gpu = f.cuda.gpus[int(f.device.partition(":")[2] or 0)]
        return Finding(
            "device", GOOD, f"{f.device}: {gpu.name}, {_size(gpu.free)} free, torch {f.cuda.torch}"
        )
    for gpu in f.cuda.gpus:
        if not runs_on(f.cuda.architectures, gpu.capability):
            said = f"{f.device}; the {gpu.name} (compute capability {'.'.join(map(str, gpu.capability))})"
            return Finding("device", NOTE, f"{said} is nothing torch {f.cuda.torch} was built for")
    idle = [gpu.name for gpu in f.cuda.gpus] or list(f.cuda.driver)
    if idle:
        what = f"{f.device}, while there is {', '.join(idle)}"
        return Finding("device", NOTE, what, "Use --device cuda; torch must be a CUDA build.")
    return Finding("device", GOOD, f"{f.device}, torch {f.cuda.torch}")


def recordings(f: Facts) -> Finding:
    """Whether the manifest's recordings open."""
    said = f"libsndfile {f.libsndfile}"
    if f.work is not None:
        bad = {ending: error for ending, (_, error) in f.work.recordings.items() if error}
        if bad:
            ending, error = next(iter(bad.items()))
            count = f.work.recordings[ending][0]
            return Finding("audio", BAD, f"{count} recordings with {ending}: {error} ({said})", CODECS)
        there = ", ".join(f"{n} {e}" for e, (n, _) in f.work.recordings.items())
        return Finding("audio", GOOD, f"{there}: one of each opened, {said}")
    missing = [name for name in COMMON if name not in f.codecs]
    if missing:
        return Finding("audio", NOTE, f"{said} reads no {', '.join(missing)}", CODECS)
    return Finding("audio", GOOD, f"{said} reads {', '.join(COMMON)} and {len(f.codecs) - len(COMMON)} more")


CODECS = "pip install -U soundfile brings a newer libsndfile; convert what it never reads (ffmpeg)."


def manifest(f: Facts) -> Finding:
    """Whether every line can be used."""
    if f.work is None:
        return Finding("manifest", GOOD, "none given (--manifest)")
    hours = f"{f.work.utterances} utterances, about {f.work.seconds / 3600:.2f} h"
    if f.work.problems:
        what = f"{hours}; {f.work.problems} lines cannot be used"
        return Finding("manifest", BAD, what, "logitstore manifest FROM lists them.")
    return Finding("manifest", GOOD if f.work.utterances else BAD, hours)


def disk(f: Facts) -> Finding:
    """Whether the store fits."""
    if f.disk is None:
        return Finding("disk", GOOD, "no place given (--out)")
    if f.disk.writes:
        return Finding("disk", BAD, f"{f.disk.path}: {f.disk.writes}", "Choose a place you may write to.")
    what = f"{_size(f.disk.free)} free at {f.disk.path}"
    if f.work is None or not f.work.bytes:
        return Finding("disk", GOOD, f"{what}; give --manifest, --stream and --tokens for an estimate")
    what = f"{what}, about {_size(f.work.bytes)} wanted"
    if f.work.bytes * SPARE > f.disk.free:
        return Finding("disk", BAD, what, "Keep fewer classes (topk:K), or choose a larger disk.")
    return Finding("disk", GOOD, what)


def filesystem(f: Facts) -> Finding:
    """Whether several writers can share it."""
    if f.disk is None or f.disk.writes:
        return Finding("filesystem", GOOD, "not looked at")
    if f.disk.renames:
        what = f"{f.disk.path} does not rename over a file: {f.disk.renames}"
        return Finding("filesystem", BAD, what, "A shard is sealed by a rename: use a POSIX file system.")
    if f.disk.locks:
        what = f"{f.disk.path} has no flock: {f.disk.locks}"
        return Finding("filesystem", BAD, what, "Dump to a local disk, then copy; or mount with locks.")
    return Finding("filesystem", GOOD, f"{f.disk.path} locks and renames as it should")


def open_files(f: Facts) -> Finding:
    """Whether enough files may be open."""
    soft, hard = f.open_files
    what = f"{soft} files may be open at once"
    if 0 <= soft < FEW_FILES:
        return Finding("files", NOTE, what, f"ulimit -n {hard if hard > soft else FEW_FILES}")
    return Finding("files", GOOD, what if soft >= 0 else "any number of files may be open")


def shared_memory(f: Facts) -> Finding:
    """Whether dataloader workers can hand over batches."""
    if f.shared_memory is None:
        return Finding("memory", NOTE, "there is no /dev/shm", "Dataloader workers need one.")
    total, free = f.shared_memory
    what = f"{_size(free)} of {_size(total)} shared memory free"
    if free < LITTLE_SHARED:
        do = "Workers die with 'Bus error' when it is full: docker run --shm-size 8g."
        return Finding("memory", NOTE, what, do)
    return Finding("memory", GOOD, what)


def encoding(f: Facts) -> Finding:
    """Whether a program that opens a text file without naming an encoding survives a ’."""
    try:
        name = codecs.lookup(f.encoding).name
    except LookupError:
        name = f.encoding
    from_where = ", ".join(f"{k}={v}" for k, v in f.locale.items()) or "no LANG, no LC_ALL"
    if name == "utf-8":
        return Finding("locale", GOOD, f"UTF-8 ({from_where})")
    return Finding(
        "locale",
        NOTE,
        f"text is {name} here ({from_where}): your own scripts die on the first ’ they read or print",
        "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1). What logitstore writes is UTF-8 anyway.",
    )


def versions(f: Facts) -> Finding:
    """What is installed."""
    frameworks = [f"{n} {f.versions[n]}" for n in FRAMEWORKS if n in f.versions]
    ours = [f"{n} {v}" for n, v in f.versions.items() if n not in FRAMEWORKS]
    return Finding("versions", GOOD, ", ".join(ours + (frameworks or ["no speech framework"])))


def cpus(f: Facts) -> Finding:
    """Whether thread counts fit the CPUs."""
    usable, there = f.cpus
    what = f"{usable:g} of {there} usable"
    high = [f"{k}={v}" for k, v in f.threads.items() if v.isdigit() and int(v) > max(usable, 1)]
    if high:
        return Finding("cpus", NOTE, f"{what}, but {', '.join(high)}", "More threads than CPUs are slower.")
    return Finding("cpus", GOOD, ", ".join([what, *(f"{k}={v}" for k, v in f.threads.items())]))


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
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
