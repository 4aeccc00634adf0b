"""Code blocks of Markdown pages.

A block behind the comment ``<!-- not run: reason -->`` is checked as far as possible without running it: Python is
compiled, and the options of ``logitstore`` commands are parsed.
"""

import os
import re
import shlex
from dataclasses import dataclass

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: the word behind the fence, e.g. ``python``.
        code: the text between the fences, without their indentation.
        line: number of the page's line that the code starts at.
        reason: why the block is not run; empty for a block that is.
    """

    language: str
    code: str
    line: int
    reason: str

    def commands(self):
        """Return the commands of a shell block as lists of words, continued lines joined and variables replaced."""
        joined = os.path.expandvars(re.sub(r"\\\n\s*", " ", self.code))
        split = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in split if words]


def blocks(path):
    """Return the code blocks of a page, in order."""
    text = path.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        indent = match["indent"]
        code = "".join(x.removeprefix(indent) for x in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"], code, line, match["reason"] or ""))
    return found
