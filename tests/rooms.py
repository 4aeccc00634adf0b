"""Check the rooms of the package: ``python -m tests.rooms`` prints every import against the arrows and every cycle.

ARROWS holds the rooms that a room imports from besides those that these import from; errors and registry are open
to all. Imports inside functions count for the arrows and not for cycles. HOUSE rules: docs/architecture.md.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "logitstore"
ARROWS = {
    "errors": "",
    "registry": "errors",
    "schema": "registry",
    "pictures": "registry",
    "tokens": "schema",
    "corpus": "schema",
    "encodings": "schema",
    "storage": "schema",
    "targets": "tokens encodings pictures",
    "losses": "targets",
    "store": "storage targets corpus",
    "loading": "store",
    "teachers": "tokens corpus encodings",
    "runner": "teachers store",
    "dump": "runner",
    "capture": "runner",
    "report": "store",
    "cli": "dump capture losses report loading",
    "testing": "runner losses",
    "__init__": "cli testing",
    "__main__": "cli",
}


def below(room):
    """All rooms that a room may import from."""
    direct = ARROWS[room].split()
    return {*direct, *(r for d in direct for r in below(d))}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield parts[:-1] if path.name == "__init__.py" and len(parts) > 1 else parts, path


MODULES = dict(modules())


def imports(parts, path, *, top=False):
    """(line, module) of every import from the package; with ``top`` only those that run on import."""
    package = parts if path.name == "__init__.py" and parts != ("__init__",) else parts[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(
                node.module.split(".") if node.module else ()
            )
            for alias in node.names:
                yield (
                    node.lineno,
                    next((m for m in ((*base, alias.name), base) if m in MODULES), base or ("__init__",)),
                )


def wrong():
    flat = {p.name for p in ROOT.glob("*.py")} - {"__init__.py", "__main__.py", "errors.py", "registry.py"}
    yield from (f"logitstore/{name} lies outside of every room" for name in sorted(flat))
    graph = {}
    for parts, path in MODULES.items():
        graph[parts] = {m for _, m in imports(parts, path, top=True)} - {parts, ("__init__",)}
        graph[parts] -= {m for m in graph[parts] if m == parts[: len(m)]}  # a package runs before its modules
        for line, module in imports(parts, path):
            if module[0] not in {parts[0], "__init__", *below(parts[0])}:
                yield f"{path.relative_to(ROOT.parent)}:{line} imports {'.'.join(module)}: no arrow leads there"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        yield "a cycle: " + " -> ".join(".".join(m) for m in e.args[1])


if __name__ == "__main__":
    found = list(wrong())
    print(
        "\n".join(found)
        or f"{len(MODULES)} modules, {len(ARROWS)} rooms: every import follows the arrows, no cycle"
    )
    sys.exit(bool(found))
