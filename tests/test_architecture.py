"""The architecture stays true: imports point one way, every file keeps the rules.

Each rule is one test over all files, so that a broken rule names every file at once.
"""

import ast
import sys
from pathlib import Path

import torch

import eah_interp as eah
from eah_interp.toy import draw_scene

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eah_interp"

# From the bottom to the top: a folder imports from those above it in this list.
# `docs/contributing.md` says what each of them holds.
ORDER = (
    "__init__",  # names come in when they are used: it imports nothing itself
    "_types",
    "errors",
    "sources",
    "kinds",
    "indices",
    "arguments",
    "files",
    "foreign_files",
    "statistics",
    "tables",
    "plugins",
    "saved_results",
    "shown_results",
    "results",
    "kernels",
    "toy",
    "lvlm",
    "viz",
    "testing",
    "interventions",
    "transformer_lens",
    "attribution",
    "finders",
    "benchmarks",
    "studies",
    "report",
    "toy.training",
    "cli",
    "__main__",
)
# Third-party packages that only these folders name.
HOME = {
    "nnsight": {"lvlm", "interventions", "results"},
    "transformers": {"lvlm", "toy", "toy.training", "testing"},
    "transformer_lens": {"transformer_lens"},
    "typer": {"cli"},
    "rich": {"cli", "studies"},
    "ray": {"studies"},
    "peft": {"lvlm"},
    "accelerate": set(),
    "bitsandbytes": set(),
    "circuitsvis": {"viz"},
    "nltk": {"benchmarks"},
    "matplotlib": {"viz"},
    "PIL": {
        *("lvlm", "toy", "testing", "viz", "report", "cli", "benchmarks", "studies"),
        "saved_results",
    },
}
KERNELS_MAY = {"torch", "einops", "jaxtyping", "eah_interp", *sys.stdlib_module_names}
OPTIONAL = {
    "bitsandbytes",
    "circuitsvis",
    "matplotlib",
    "nltk",
    "peft",
    "pyarrow",
    "pydantic",
    "ray",
    "scipy",
    "statsmodels",
    "transformer_lens",
    "yaml",
}


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops what only a type checker imports."""

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def read(path):
    return WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))


TREES = {path: read(path) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """`eah_interp/lvlm/model.py` -> `eah_interp.lvlm.model`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in TREES}


def folder_of(module):
    """`eah_interp.lvlm.model.LVLM` -> `lvlm`; `__init__` for the package itself."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    return ".".join(parts[:2]) if parts[:2] == ["toy", "training"] else parts[0]


def runs_on_import(tree):
    """Yield the nodes that run on import: not those inside functions."""
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def imported_names(nodes):
    """Return the dotted names that import statements among a file's nodes add."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_modules(names):
    """Return our modules among dotted names, the longest that exists of each."""
    found = set()
    for name in names:
        while name.startswith("eah_interp") and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} & set(MODULES)
    return found


def top_packages(names):
    return {name.split(".")[0] for name in names}


def find_circles(graph):
    """Return the groups of modules that import each other, largest first."""
    reached = {}
    for start in graph:
        seen, pending = set(), [start]
        while pending:
            for following in graph[pending.pop()] - seen:
                seen.add(following)
                pending.append(following)
        reached[start] = seen
    groups = {
        frozenset(b for b in reached[a] if a in reached[b])
        for a in graph
        if a in reached[a]
    }
    return sorted(map(sorted, groups), key=len, reverse=True)


def test_imports_point_one_way():
    """No folder imports from one below it in `ORDER`, not even inside a function."""
    upwards = set()
    for path, tree in TREES.items():
        here = folder_of(module_of(path))
        assert here in ORDER, f"{here} is new: give it a place in ORDER"
        for module in own_modules(imported_names(ast.walk(tree))):
            there = folder_of(module)
            if ORDER.index(there) > ORDER.index(here):
                upwards.add(f"{name_of(path)} -> {module}")
    assert not upwards


def test_there_are_no_circles():
    """No modules import each other, imports inside functions included."""
    graph = {
        module: own_modules(imported_names(ast.walk(TREES[path]))) - {module}
        for module, path in MODULES.items()
    }
    assert find_circles(graph) == []


def test_third_party_packages_stay_in_their_folders():
    strangers = {
        f"{name_of(path)}: {package}"
        for path, tree in TREES.items()
        for package in top_packages(imported_names(ast.walk(tree)))
        if folder_of(module_of(path)) not in HOME.get(package, ORDER)
    }
    assert not strangers


def test_kernels_are_pure_tensor_maths():
    beyond = {
        f"{name_of(path)}: {package}"
        for path, tree in TREES.items()
        if folder_of(module_of(path)) == "kernels"
        for package in top_packages(imported_names(ast.walk(tree))) - KERNELS_MAY
    }
    assert not beyond


def test_optional_packages_are_imported_inside_functions():
    needed = {
        f"{name_of(path)}: {package}"
        for path, tree in TREES.items()
        for package in top_packages(imported_names(runs_on_import(tree))) & OPTIONAL
    }
    assert not needed


def test_imports_name_parents_in_full_and_annotations_are_values():
    relative, postponed = [], []
    for path, tree in TREES.items():
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        relative += [f"{name_of(path)}:{node.lineno}" for node in froms if node.level]
        # With postponed annotations jaxtyping cannot check a dataclass's shapes.
        postponed += [name_of(path) for node in froms if node.module == "__future__"]
    assert not relative
    assert not postponed


def test_nothing_prints():
    printing = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not printing


def test_public_kernels_show_an_example_that_runs():
    contents = TREES[PACKAGE / "kernels" / "__init__.py"]
    public = {name.split(".")[-1] for name in imported_names(ast.walk(contents))}
    silent = [
        f"{path.name}: {node.name}"
        for path in sorted((PACKAGE / "kernels").glob("*.py"))
        for node in TREES[path].body
        if isinstance(node, ast.FunctionDef)
        and node.name in public
        and ">>>" not in str(ast.get_docstring(node))
    ]
    assert public
    assert not silent, f"no example in {silent}"


def test_intervene_is_followed_in_at_most_13_files():
    """From the call to the patched attention; imports are done before."""
    model, image = eah.load(), draw_scene(0).pil()
    settings, entered = eah.EAH(), set()

    def note(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in file.parents:
            entered.add(name_of(file))

    for _ in range(2):  # the first round imports
        entered.clear()
        with torch.no_grad(), model.trace(image, "Is there a boat in the image?"):
            # Functions of this file cannot be called in a trace, so no helper.
            sys.setprofile(note)
            eah.intervene(model, settings)
            sys.setprofile(None)
            model.output.logits.save()
    assert "eah_interp/lvlm/attention.py" in entered
    assert len(entered) <= 13, sorted(entered)


def test_the_rules_would_notice():
    """The helpers above see an upward import, a lazy one, and a circle."""
    code = "import a.b\nfrom eah_interp.viz import x\ndef f():\n    from c import d\n"
    tree = ast.parse(code)
    eager = {"a.b", "eah_interp.viz.x"}
    assert imported_names(runs_on_import(tree)) == eager
    assert imported_names(ast.walk(tree)) == eager | {"c.d"}
    assert own_modules(eager) == {"eah_interp.viz"}
    assert folder_of("eah_interp.toy.training.train") == "toy.training"
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}
    assert find_circles(graph) == [["b", "c"], ["d"]]
