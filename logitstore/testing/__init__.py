"""Conformance suites for authors of encodings, storage backends, places and teachers.

Each module holds one suite: a tuple ``CHECKS`` of functions, each of which raises ``AssertionError`` with the
reason. The suites need no test framework, and run under ``python -O`` too; with pytest, parametrize over
``CHECKS``.

* :mod:`logitstore.testing.encoding`: encodings of logits.
* :mod:`logitstore.testing.head`: encodings of the input of a linear head.
* :mod:`logitstore.testing.vectors`: encodings of the numbers of a layer.
* :mod:`logitstore.testing.storage`: storage backends.
* :mod:`logitstore.testing.places`: places.
* :mod:`logitstore.testing.teacher`: teachers.
"""

from __future__ import annotations


def expect(good: bool, why: str) -> None:
    """Raise ``AssertionError`` unless ``good``; unlike ``assert``, also under ``python -O``."""
    if not good:
        raise AssertionError(why)
