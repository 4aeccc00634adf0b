"""Pages that list something: the public names, the rooms, the errors, the options of the README."""

import importlib
import inspect
import re

import pytest

import logitstore
from logitstore import errors
from tests import rooms
from tests.support import demo

DOCS = demo.ROOT / "docs"
LISTED = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)


def public():
    """Yield every name that the API page has to show."""
    shown_by_its_names = {"__version__", "losses"}
    yield from (f"logitstore.{name}" for name in logitstore.__all__ if name not in shown_by_its_names)
    yield from (f"logitstore.losses.{name}" for name in logitstore.losses.__all__)


def test_the_api_page_shows_exactly_the_public_names():
    assert sorted(LISTED) == sorted(public())


@pytest.mark.parametrize("name", sorted(public()))
def test_a_public_name_is_documented(name):
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert inspect.getdoc(found)
    if inspect.isclass(found):
        own = [m for n, m in vars(found).items() if not n.startswith("_") and inspect.isfunction(m)]
        assert not [m.__qualname__ for m in own if not inspect.getdoc(m)]


def test_the_architecture_page_has_the_rooms_and_their_arrows():
    text = (DOCS / "architecture.md").read_text("utf-8")
    table = {
        room: set(re.findall(r"`(\w+)`", arrows))
        for room, arrows in re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    }
    own = {"errors", "registry", "__init__", "__main__"}
    assert table == {room: set(arrows.split()) for room, arrows in rooms.ARROWS.items() if room not in own}


def test_the_newcomers_tasks_name_files_that_exist():
    text = (DOCS / "architecture.md").read_text("utf-8")
    named = {n for n in re.findall(r"`((?:logitstore|tests)/[\w/.]+)`", text) if "NAME" not in n}
    assert len(named) > 8
    assert not [n for n in named if not (demo.ROOT / n).exists()]


def test_every_error_has_its_section():
    classes = {n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    assert {*re.findall(r"^## (\w+)$", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)} == classes


def test_the_readme_is_short_and_says_what_people_search_for():
    text = (demo.ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    for words in ("knowledge distillation", "KD", "teacher logits", "pseudo-labels", "ASR", "CTC", "RNN-T"):
        assert words in text
    for command in ("make test", "make demo"):
        assert command in text


def test_pages_name_files_of_the_repository_that_exist():
    missing = []
    for page in [demo.ROOT / "README.md", demo.ROOT / "CONTRIBUTING.md", *DOCS.glob("**/*.md")]:
        for name in re.findall(
            r"`((?:logitstore|tests|recipes|benchmarks|bin|docs|manifests)/[\w/.-]+)`",
            page.read_text("utf-8"),
        ):
            if "NAME" not in name and not (demo.ROOT / name).exists():
                missing.append(f"{page.name}: {name}")
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "recipes/demo/README.md"])
def test_links_outside_of_the_documentation_lead_somewhere(page):
    path = demo.ROOT / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]
