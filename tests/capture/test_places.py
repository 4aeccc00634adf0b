"""Stores at places: an unknown scheme is refused before the program runs, and one known here alone is named."""

import pytest

from logitstore import CaptureOptions, capture_logits, registry
from logitstore.errors import UnknownName
from tests.support import recipe
from tests.support.memory_place import MemoryPlaces


def test_an_unknown_scheme_is_refused_before_the_program_runs(tmp_path):
    with pytest.raises(UnknownName, match="nowhere"):
        capture_logits(["touch", str(tmp_path / "ran")], "nowhere://x", CaptureOptions(ctc="a"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_only_this_process_knows_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register("places", "here", MemoryPlaces(tmp_path))
    monkeypatch.setenv("PYTHON", recipe.sys.executable)
    result = capture_logits(list(map(str, recipe.DECODE)), "here://x", CaptureOptions(ctc="ctc_output.1"))
    assert result.status == 1
    (error,) = result.errors
    assert error.startswith("UnknownName: here://x: ")
    assert "register() adds a place to one process only" in error
    assert "entry point of the group logitstore.places" in error
    assert not any(":" in path.name for path in tmp_path.iterdir())  # no folder named like the scheme
