"""A new virtual environment that borrows this interpreter's libraries, so that nothing is downloaded.

The environment lists the running interpreter's site-packages as a plain folder. Libraries are found there; an
editable install of logitstore is not, because ``.pth`` files and finders of a plain folder are not run.
Packages that are installed into the environment itself come first.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support import demo

PACKAGED = ("logitstore", "bin", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command, cwd, **variables):
    """Run a command outside of the repository and return its standard output; fail with all of its output."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**env, **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(folder):
    """Make a virtual environment at ``folder`` and return the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(packages, "borrowed.pth").write_text("".join(f"{p}\n" for p in sorted(borrowed)))
    return python


def wheel(source, out):
    """Build the wheel of a source folder into ``out`` and return its path."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def install(python, built):
    """Install a wheel into an environment without any of its dependencies."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "-q", "--no-deps", "--no-index", built, cwd=built.parent)


def source(folder):
    """Copy what a wheel of logitstore is built from, so that the repository stays clean."""
    folder.mkdir()
    for name in PACKAGED:
        origin = demo.ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, folder / name)
    return folder


def logitstore(folder):
    """Build logitstore's wheel, install it into a new environment below ``folder`` and return its Python."""
    python = environment(folder / "environment")
    built = folder / "wheel"
    built.mkdir()
    install(python, wheel(source(folder / "source"), built))
    return python
