"""Write the bytes of the golden stores into the worked example of SPEC.md again.

    python tests/golden/example.py

The offsets and the notes beside the bytes stay as they are. A text block of an entry holds the whole file; other
text blocks are written by hand. The block of test vectors is written anew.
"""

import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))

import vectors

import logitstore

GOLDEN = Path(__file__).parent
SPEC = Path(logitstore.__file__).parent / "schema" / "SPEC.md"
BLOCK = re.compile(r"^```hex (v\S+)\n(.*?)^```$", re.M | re.S)
ENTRY = re.compile(r"^```text (v\S+\.entry)\n.*?^```$", re.M | re.S)
VECTORS = re.compile(r"^```vectors\n.*?^```$", re.M | re.S)
LINE = re.compile(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2}(?: |$))+)", re.M)


def shown_file(path):
    """Return the file that a block of the worked example shows; a ``*`` stands for a name by content."""
    (found,) = GOLDEN.glob(path)
    return found


def _bytes_again(block):
    data = shown_file(block[1]).read_bytes()

    def line(found):
        at, count = int(found[1], 16), len(found[2].split())
        shown = data[at : at + count].hex(" ")
        return f"{found[1]}  {shown}" + found[2][len(shown) :]

    return f"```hex {block[1]}\n{LINE.sub(line, block[2])}```"


def _entry_again(block):
    return f"```text {block[1]}\n{shown_file(block[1]).read_text('utf-8')}```"


if __name__ == "__main__":
    text = BLOCK.sub(_bytes_again, SPEC.read_text("utf-8"))
    text = VECTORS.sub(lambda _: f"```vectors\n{vectors.text()}```", text)
    SPEC.write_text(ENTRY.sub(_entry_again, text), "utf-8")
