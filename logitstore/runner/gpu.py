"""GPUs as torch and the driver see them, and whether the installed torch can run on one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it.

    Attributes:
        name: model, e.g. ``NVIDIA H200``.
        capability: compute capability, major and minor.
        free: bytes of memory that no process holds.
        error: error of one operation on the GPU; empty where it ran.
    """

    name: str
    capability: tuple[int, int]
    free: int = 0
    error: str = ""


@dataclass(frozen=True)
class Cuda:
    """CUDA as torch and the driver report it.

    Attributes:
        torch: version of torch.
        built_for: CUDA version that torch was built with; empty for a build without CUDA.
        architectures: architectures that torch holds code for, e.g. ``sm_90``, ``compute_90``.
        gpus: GPUs that torch sees.
        driver: models of the driver's GPUs, whether torch sees them or not.
        error: error of counting the GPUs; empty where that worked.
    """

    torch: str
    built_for: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    driver: tuple[str, ...] = ()
    error: str = ""


def look(device: str = "cpu") -> Cuda:
    """Describe every GPU, and run one operation on the given device."""
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
    """Run one matrix product on a GPU and return its error; empty where it ran."""
    import torch

    try:
        square = torch.eye(16, device=f"cuda:{index}")
        (square @ square).sum().item()
    except (RuntimeError, AssertionError) as e:
        return str(e).splitlines()[0]
    return ""


def _driver(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Return the models of the GPUs that an NVIDIA driver lists."""
    names = []
    for info in sorted(root.glob("*/information")):
        found = re.search(r"Model:\s*(.+)", info.read_text("utf-8", "replace"))
        names.append(found[1].strip() if found else "?")
    return tuple(names)


def runs_on(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Tell whether code for one of these architectures runs on a GPU of this compute capability.

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
    """Return the error that keeps a device from being used; None where it can be used."""
    m = re.fullmatch(r"cuda(?::(\d+))?", device)
    if m is None:
        return None
    index = int(m[1] or 0)
    there = ", ".join(cuda.driver)
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
            do="Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu.",
        )
    gpu = cuda.gpus[index]
    major, minor = gpu.capability
    if cuda.architectures and not runs_on(cuda.architectures, gpu.capability):
        return UsageError(
            f"torch {cuda.torch} cannot run on the {gpu.name}: its compute capability is {major}.{minor}, "
            f"torch was built for {' '.join(cuda.architectures)}",
            where=f"--device {device}",
            why="It would fail with 'no kernel image is available' on the first batch.",
            do=f"Install a torch with sm_{major}{minor} in torch.cuda.get_arch_list().",
        )
    if gpu.error:
        return UsageError(
            f"the {gpu.name} does not run: {gpu.error}",
            where=f"--device {device}",
            do="Check nvidia-smi: another program may hold it, or its driver needs a restart.",
        )
    return None


def require_device(device: str) -> None:
    """Raise ``UsageError`` unless torch can run on a device; the CPU is never checked."""
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError(
            f"torch knows no device {device!r}",
            where=f"--device {device}",
            do="Give cpu, cuda or cuda:N; cuda is the first GPU.",
        ) from None
    if device.startswith("cuda") and (wrong := trouble(look(device), device)):
        raise wrong
