"""Write every golden store anew, and their bytes into the worked example of SPEC.md.

    python tests/golden/make.py

From format 1.0 on this is never run again: today's reader must read yesterday's bytes.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("make_example.py", "make_encodings.py", "make_kinds.py", "make_more.py")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            subprocess.run([sys.executable, HERE / part, folder], check=True)
        for old in HERE.glob("v1.0-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for new in Path(folder).iterdir():
            shutil.move(new, HERE)
    for text in HERE.glob("v1.0-*/SPEC.md"):  # the worked example in it would be that of another day
        text.unlink()
    subprocess.run([sys.executable, HERE / "example.py"], check=True)
