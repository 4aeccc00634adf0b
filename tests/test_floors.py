"""The import graph follows the flow: a module imports only from floors below its own.

FLOORS lists every module of the package from the ground up; a package stands for all of its modules, which
may import one another. A new module gets a line between the highest it imports and the lowest that imports
it; put it as low as it can be.
"""

import ast
import sys
from pathlib import Path

import pytest

import logitstore

ROOT = Path(logitstore.__file__).parent
FLOORS = [
    # 0: words
    "errors",
    "digest",
    "registry",
    "world",
    "kinds",
    "frames",
    "spec",
    "lattice",
    "curve",
    "target",
    "inputs",
    "divergence",
    "clip",
    "timeline",
    "emission",
    "faults",
    "places",
    # 1: meaning
    "manifests",
    "manifest",
    "vocabdiff",
    "bytelevel",
    "vocab",
    "vocabs",
    "regroup",
    "expression",
    "batchids",
    "vocabmap",
    "index",
    "encodings",
    "where",
    "alignment",
    "decode",
    # 2: bytes
    "storage",
    "sealed",
    "replacing",
    "layout",
    "constants",
    "footprint",
    # 3: outside
    "audio",
    "survey",
    "gpu",
    "machine",
    "doctor",
    "products",
    "tap",
    "head",
    "tokenise",
    "drives",
    "tailerror",
    "teachers",
    "layers",
    "engines",
    # 4: stories
    "encoder",
    "picker",
    "identity",
    "sealing",
    "loophead",
    "writer",
    "blocks",
    "batches",
    "drive",
    "chunked",
    "factor",
    "transcribe",
    "gates",
    "selfcheck",
    "pipe",
    "contenders",
    "choice",
    "extent",
    "reader",
    "cuts",
    "plan",
    "trial",
    "planning",
    "auto",
    "dump",
    "joints",
    "driving",
    "inject",
    "asking",
    "pieces",
    "scribe",
    "joiner",
    "capturing",
    "capture",
    "observe",
    "candidates",
    "observing",
    "probe",
    "probe_teacher",
    "transcripts",
    "against",
    "compare",
    "compact",
    "convert",
    "verify",
    "repair",
    "resample",
    "splice",
    "streambatch",
    "batch",
    # 5: faces
    "dataset",
    "losses",
    "report",
    "testing",
    "cli",
    "__main__",
]
FIRST_WITH_TORCH = "products"
# (module, what it imports from above or before its time, why that is allowed)
ALLOWED_INSIDE_FUNCTIONS = {
    ("gpu", "torch"): "only looking at GPUs runs torch, judging what was found does not",
    ("writer", "torch"): "the caller's logits are torch's; reading never comes here",
    ("writer", "picker"): "drives the caller's lattices, with torch",
    ("writer", "loophead"): "the caller's heads are torch's",
    ("encodings.collapsed", "torch"): "only encoding runs torch, decoding never does",
    ("encodings.topk", "torch"): "only encoding runs torch, decoding never does",
    ("encodings.factored", "torch"): "only encoding runs torch, decoding never does",
    ("encodings._narrow", "torch"): "only encoding runs torch, decoding never does",
    ("encodings._transform", "torch"): "only encoding runs torch, decoding never does",
    ("reader", "batch"): "Store.batch is the door to tensors; opening a store stays free of torch",
}
ALLOWED_FOR_TYPES = {
    ("encodings.base", "torch"): "encode's tensors",
    ("encodings.collapsed", "torch"): "encode's tensors",
    ("encodings.dense", "torch"): "encode's tensors",
    ("encodings.topk", "torch"): "encode's tensors",
    ("encodings.nucleus", "torch"): "encode's tensors",
    ("encodings.factored", "torch"): "encode's tensors",
    ("encodings.vectors", "torch"): "encode's tensors",
    ("encodings._narrow", "torch"): "encode's tensors",
    ("encodings._transform", "torch"): "encode's tensors",
    ("encoder", "torch"): "encode's tensors",
    ("writer", "torch"): "encode's tensors",
    ("reader", "batch"): "what Store.batch returns",
    ("", "*"): "names that load on first use",
}
# Modules above FIRST_WITH_TORCH that keep free of it: these are what a reader of arrays loads.
WITHOUT_TORCH = {
    "encoder",
    "identity",
    "replacing",
    "sealing",
    "writer",
    "reader",
    "cuts",
    "compare",
    "compact",
    "repair",
    "resample",
    "splice",
    "layout",
    "report",
    "decode",
    "testing.storage",
    "testing",
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES, MAX_PARAMETERS = 400, 8


def modules():
    """Dotted name below the package and path of every module; ``""`` is the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()
PARAMS = [pytest.param(n, p, id=n or "logitstore") for n, p in MODULES.items()]


def floor(name):
    top = name.partition(".")[0]
    if top not in FLOORS:
        pytest.fail(
            f"logitstore/{name.replace('.', '/')} stands on no floor. Add {top!r} to FLOORS in {__file__}: "
            "after everything it imports, before everything that imports it."
        )
    return FLOORS.index(top)


def imports(name, path):
    """Every import as (module below the package or a foreign root, where: top / function / types)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node, where):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, "types")
            for child in node.orelse:
                yield from visit(child, where)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "function" if where == "top" else where
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _below(alias.name), where
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package.split(".") if package else []
                base = base[: len(base) - (node.level - 1)]
                stem = ".".join([*base, *([node.module] if node.module else [])])
            else:
                stem = _below(node.module)
                if stem is None or not node.module.startswith("logitstore"):
                    yield stem, where
                    return
            for alias in node.names:
                full = f"{stem}.{alias.name}" if stem else alias.name
                yield ("logitstore." + (full if full in MODULES else stem)), where
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    for statement in ast.parse(path.read_text("utf-8")).body:
        yield from visit(statement, "top")


def _below(dotted):
    root, _, rest = dotted.partition(".")
    return f"logitstore.{rest}" if root == "logitstore" else root


def allowed(name, target, where):
    if where == "function":
        return (name, target) in ALLOWED_INSIDE_FUNCTIONS
    return where == "types" and ((name, target) in ALLOWED_FOR_TYPES or (name, "*") in ALLOWED_FOR_TYPES)


@pytest.mark.parametrize(("name", "path"), PARAMS)
def test_imports_come_from_below(name, path):
    own = floor(name) if name else len(FLOORS)
    for target, where in imports(name, path):
        if not target.startswith("logitstore"):
            continue
        target = target.removeprefix("logitstore").removeprefix(".")
        if not target or target.partition(".")[0] == name.partition(".")[0]:
            continue  # the package's own name, or a neighbour in the same package
        if floor(target) >= own and not allowed(name, target, where):
            pytest.fail(
                f"{name} imports {target}, which stands above it ({where} level). Move one in FLOORS, "
                "or turn the dependency round."
            )


@pytest.mark.parametrize(("name", "path"), PARAMS)
def test_torch_begins_at_the_tap(name, path):
    late = name and floor(name) >= FLOORS.index(FIRST_WITH_TORCH) and name not in WITHOUT_TORCH
    for target, where in imports(name, path):
        if target == "torch" and not late and not allowed(name, "torch", where):
            pytest.fail(f"{name} imports torch ({where} level), which begins at {FIRST_WITH_TORCH}")


@pytest.mark.parametrize(("name", "path"), PARAMS)
def test_modules_stay_small_and_well_named(name, path):
    parts = set(name.lower().strip("_").split("."))
    assert not {p.strip("_") for p in parts} & FORBIDDEN_NAMES, "name it after what it holds"
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines, more than {MAX_LINES}: split it by meaning"


@pytest.mark.parametrize(("name", "path"), PARAMS)
def test_functions_have_few_parameters(name, path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            count = len([*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])])
            if a.args and a.args[0].arg in ("self", "cls"):
                count -= 1
            assert count <= MAX_PARAMETERS, f"{node.name} takes {count} parameters"


def test_exceptions_are_still_needed():
    real = {
        (name, target.removeprefix("logitstore").removeprefix("."), where)
        for name, path in MODULES.items()
        for target, where in imports(name, path)
    }
    for listed, where in ((ALLOWED_INSIDE_FUNCTIONS, "function"), (ALLOWED_FOR_TYPES, "types")):
        for name, target in listed:
            if target != "*":
                assert (name, target, where) in real, f"{name} no longer imports {target}: drop it"


def test_only_the_standard_library_and_what_setup_cfg_names():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT.parent / "setup.cfg")
    text = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    names = (line.split(">")[0].split("=")[0] for line in text.split())
    known = {n.replace("-", "_") for n in names} | {"logitstore"} | set(sys.stdlib_module_names)
    known |= {"__future__", "crc32c"}
    for name, path in MODULES.items():
        for target, where in imports(name, path):
            root = target.partition(".")[0]
            if where == "top" and not name.startswith("teachers."):
                assert root in known, f"{name} imports {root}, which setup.cfg does not install"
