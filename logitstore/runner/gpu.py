"""Whether the installed torch can run on the device that was asked for; said before anything else begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it.

    Attributes:
        name: e.g. ``NVIDIA H200``.
        capability: compute capability, major and minor.
        free: bytes of memory that no process holds.
        error: what running one operation on it said; empty where it ran.
    """

    name: str
    capability: tuple[int, int]
    free: int = 0
    error: str = ""


@dataclass(frozen=True)
class Cuda:
    """What torch and the driver know of GPUs.

    Attributes:
        torch: its version.
        built_for: CUDA version that torch was built with; empty for a build without CUDA.
        architectures: that it holds code for, e.g. ``sm_90``, ``compute_90``.
        gpus: those that torch sees.
        driver: names of those that the driver has, whether torch sees them or not.
        error: what counting them said, if that failed.
    """

    torch: str
    built_for: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    driver: tuple[str, ...] = ()
    error: str = ""


def look(device: str = "cpu") -> Cuda:
    """Look at every GPU, and run one operation on the one asked for."""
    import torch

    built_for = torch.version.cuda or torch.version.hip or ""
    found: list[Gpu] = []
    error = ""
    try:
        count = torch.cuda.device_count() if built_for else 0
        for i in range(count):
            about = torch.cuda.get_device_properties(i)
            tried = _try(i) if device in (f"cuda:{i}", "cuda" if i == 0 else "") else ""
            free = 0 if tried else torch.cuda.mem_get_info(i)[0]
            found.append(Gpu(about.name, (about.major, about.minor), free, tried))
    except (RuntimeError, AssertionError) as e:
        error = str(e).splitlines()[0]
    names = tuple(torch.cuda.get_arch_list()) if built_for else ()
    return Cuda(torch.__version__, built_for, names, tuple(found), _driver(), error)


def _try(index: int) -> str:
    """One product on a GPU: what it died of, or nothing."""
    import torch

    try:
        square = torch.eye(16, device=f"cuda:{index}")
        (square @ square).sum().item()
    except (RuntimeError, AssertionError) as e:
        return str(e).splitlines()[0]
    return ""


def _driver(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Models of the GPUs that an NVIDIA driver lists."""
    names = []
    for info in sorted(root.glob("*/information")):
        found = re.search(r"Model:\s*(.+)", info.read_text("utf-8", "replace"))
        names.append(found[1].strip() if found else "?")
    return tuple(names)


def runs_on(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether code for one of these architectures runs on a GPU of that compute capability.

    ``sm_XY`` runs on the same major version from minor Y on, ``sm_XYa`` on X.Y alone, and ``compute_XY`` is
    compiled for anything from X.Y on (CUDA C++ programming guide, "Application compatibility").
    """
    for name in architectures:
        m = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if m is None:
            continue
        built = int(m[2]), int(m[3])
        if m[4] == "a":
            fits = built == capability
        elif m[1] == "compute" and not m[4]:
            fits = built <= capability
        else:
            fits = built[0] == capability[0] and built[1] <= capability[1]
        if fits:
            return True
    return False


def trouble(cuda: Cuda, device: str) -> UsageError | None:
    """Why the device asked for cannot be used; None where it can."""
    m = re.fullmatch(r"cuda(?::(\d+))?", device)
    if m is None:
        return None
    index = int(m[1] or 0)
    there = f"{', '.join(cuda.driver)}" if cuda.driver else ""
    if not cuda.built_for:
        return UsageError(
            f"torch {cuda.torch} is a build without CUDA" + (f"; this machine has {there}" if there else ""),
            where=f"--device {device}",
            do="Install a CUDA build of torch, or use --device cpu.",
        )
    if index >= len(cuda.gpus):
        seen = f"torch sees {len(cuda.gpus)} GPUs" if cuda.gpus else "torch sees no GPU"
        return UsageError(
            seen + (f", the driver has {there}" if there else "") + (f": {cuda.error}" if cuda.error else ""),
            where=f"--device {device}",
            do="Look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu.",
        )
    gpu = cuda.gpus[index]
    major, minor = gpu.capability
    if cuda.architectures and not runs_on(cuda.architectures, gpu.capability):
        return UsageError(
            f"torch {cuda.torch} cannot run on the {gpu.name}: its compute capability is {major}.{minor}, "
            f"torch was built for {' '.join(cuda.architectures)}",
            where=f"--device {device}",
            why="It would die with 'no kernel image is available' once the first batch is loaded.",
            do=f"Install a torch whose torch.cuda.get_arch_list() has sm_{major}{minor}.",
        )
    if gpu.error:
        return UsageError(
            f"the {gpu.name} does not run: {gpu.error}",
            where=f"--device {device}",
            do="Look at nvidia-smi: another program may hold it, or its driver needs a restart.",
        )
    return None


def require_device(device: str) -> None:
    """Raise ``UsageError`` unless torch can run on a device; nothing is looked at for the CPU."""
    if device.startswith("cuda") and (wrong := trouble(look(device), device)):
        raise wrong
