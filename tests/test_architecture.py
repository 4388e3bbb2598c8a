"""The architecture stays true: imports point one way, every file keeps the rules."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eah_interp"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300

# What each room may import from this package when it is itself imported: the rooms
# below it. `toy` and `testing` stand aside.
BASE = {"_types", "errors", "files"}
ALLOWED = {
    "_types": set(),
    "errors": set(),
    "files": {"errors"},
    "kernels": BASE,
    "toy": BASE,
    "testing": BASE | {"toy", "lvlm"},
    "lvlm": BASE | {"kernels"},
    "interventions": BASE | {"kernels", "lvlm"},
    "transformer_lens": BASE | {"kernels", "lvlm", "interventions"},
    "attribution": BASE | {"kernels", "lvlm", "interventions"},
    "benchmarks": BASE | {"kernels", "lvlm", "interventions"},
    "studies": BASE | {"kernels", "lvlm", "interventions", "attribution", "benchmarks"},
    "viz": BASE
    | {"kernels", "lvlm", "interventions", "attribution", "benchmarks", "studies"},
    "report": BASE | {"kernels", "lvlm", "interventions", "attribution", "viz"},
    "cli": BASE
    | {"kernels", "lvlm", "interventions", "attribution", "benchmarks", "studies"}
    | {"viz", "report", "toy", "testing"},  # `models` lists the families of testing
}
# What a function may import beyond that when it is called: `load()` without a name
# opens the toy, a result's `.plot()` draws, benchmarks have a version for the toy.
LAZILY = {
    "lvlm": {"toy"},
    "toy": {"lvlm", "benchmarks"},  # a trained toy is measured as users would
    "interventions": {"viz"},
    "attribution": {"viz"},
    "benchmarks": {"toy"},
    "studies": {"viz", "toy"},
    "viz": {"toy"},
    "report": {"studies"},  # a study's hash of the weights
}
# Third-party packages that only these rooms name.
HOME = {
    "nnsight": {"lvlm", "interventions"},
    "transformers": {"lvlm", "toy", "testing"},
    "transformer_lens": {"transformer_lens"},
    "typer": {"cli"},
    "rich": {"cli", "studies"},
    "ray": {"studies"},
    "circuitsvis": {"viz"},
    "nltk": {"benchmarks"},
    "matplotlib": {"viz"},
    "PIL": {"lvlm", "toy", "testing", "viz", "report", "cli", "benchmarks"},
}
KERNELS_MAY = {"torch", "einops", "jaxtyping", "eah_interp"} | set(
    sys.stdlib_module_names
)
KERNELS_MAY_LAZILY = {"scipy", "statsmodels", "numpy", "pandas"}  # statistics.py
OPTIONAL = {
    "circuitsvis",
    "matplotlib",
    "nltk",
    "pyarrow",
    "pydantic",
    "ray",
    "scipy",
    "statsmodels",
    "transformer_lens",
    "yaml",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    """Return the room a file belongs to; `__init__` for the table of contents."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops what only a type checker imports."""

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def runs_on_import(tree):
    """Yield the nodes that run on import: not those inside functions."""
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def imported_names(nodes, path):
    """Return the dotted names that import statements among a file's nodes add."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = [*home, *([node.module] if node.module else [])]
            names |= {".".join([*module, alias.name]) for alias in node.names}
    return names


def own_rooms(names):
    """Return our rooms among dotted names: `eah_interp.lvlm.model.LVLM` -> `lvlm`."""
    return {name.split(".")[1] for name in names if name.startswith("eah_interp.")}


def top_packages(names):
    return {name.split(".")[0] for name in names}


@pytest.fixture(params=MODULES, ids=name_of)
def module(request):
    return request.param


@pytest.fixture
def tree(module):
    return WithoutTypeChecking().visit(ast.parse(module.read_text(encoding="utf-8")))


def test_imports_point_one_way(module, tree):
    room = room_of(module)
    eager = own_rooms(imported_names(runs_on_import(tree), module))
    anywhere = own_rooms(imported_names(ast.walk(tree), module))
    if room == "__init__":
        return  # the table of contents names every room
    assert room in ALLOWED, f"{room} is a new room: give it a place in ALLOWED"
    allowed = ALLOWED[room] | {room}
    assert eager <= allowed, f"{name_of(module)} imports upwards: {eager - allowed}"
    lazily = allowed | LAZILY.get(room, set())
    assert anywhere <= lazily, f"{name_of(module)} imports upwards: {anywhere - lazily}"


def test_third_party_packages_stay_in_their_rooms(module, tree):
    room = room_of(module)
    strangers = {
        package
        for package in top_packages(imported_names(ast.walk(tree), module))
        if room not in HOME.get(package, {room})
    }
    assert not strangers, f"{name_of(module)} names {strangers}"


def test_kernels_are_pure_tensor_maths(module, tree):
    if room_of(module) != "kernels":
        return
    eager = top_packages(imported_names(runs_on_import(tree), module))
    anywhere = top_packages(imported_names(ast.walk(tree), module))
    assert eager <= KERNELS_MAY, eager - KERNELS_MAY
    assert anywhere <= KERNELS_MAY | KERNELS_MAY_LAZILY, anywhere - KERNELS_MAY


def test_optional_packages_are_imported_inside_functions(module, tree):
    eager = top_packages(imported_names(runs_on_import(tree), module))
    assert not eager & OPTIONAL, f"{name_of(module)} needs {eager & OPTIONAL} to import"


def test_imports_name_parents_in_full_and_annotations_are_values(module, tree):
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [node.lineno for node in froms if node.level > 1]
    # With postponed annotations jaxtyping cannot check a dataclass's shapes.
    assert "__future__.annotations" not in imported_names(froms, module)


def test_nothing_prints(tree):
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    assert "print" not in named


def test_files_hold_one_concept(module):
    lines = len(module.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name_of(module)} has {lines} lines"


def test_public_kernels_show_an_example_that_runs():
    silent = []
    contents = PACKAGE / "kernels" / "__init__.py"
    tree = ast.parse(contents.read_text(encoding="utf-8"))
    public = {name.split(".")[-1] for name in imported_names(ast.walk(tree), contents)}
    for path in sorted((PACKAGE / "kernels").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in functions:
            if node.name in public and ">>>" not in str(ast.get_docstring(node)):
                silent.append(f"{path.name}: {node.name}")
    assert public
    assert not silent, f"no example in {silent}"


def test_the_rules_would_notice():
    """The helpers above see an upward import, a lazy one and a relative one."""
    code = "import a.b\nfrom eah_interp.viz import x\ndef f():\n    from ..c import d\n"
    tree = ast.parse(code)
    path = PACKAGE / "kernels" / "sinks.py"
    eager = {"a.b", "eah_interp.viz.x"}
    assert imported_names(runs_on_import(tree), path) == eager
    assert imported_names(ast.walk(tree), path) == eager | {"eah_interp.c.d"}
    assert own_rooms(eager) == {"viz"}
