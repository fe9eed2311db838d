"""Imports point downwards only, every module declares its names, and what needs no torch does not load it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import skcompressae

ROOT = Path(skcompressae.__file__).resolve().parent
MODULES = {
    ".".join(("skcompressae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def is_within(name, package):
    return name == package or name.startswith(package + ".")


def imports_of(tree, is_top_level=True):
    """Names of the imported modules, and whether the import stands at the module's top level."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            # `from package import module` imports the module
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names = [name for i, name in enumerate(names) if i == 0 or name in MODULES]
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports_of(node, is_top_level and not is_function and not is_typing_only)
            continue
        else:
            continue
        yield from ((name, is_top_level) for name in names)


IMPORTS = {name: list(imports_of(tree)) for name, tree in TREES.items()}


def imports_within(package):
    return {(module, imported) for module in MODULES if is_within(module, package) for imported, _ in IMPORTS[module]}


def offences(package, forbidden):
    return sorted(
        f"{module} imports {imported}"
        for module, imported in imports_within(package)
        if any(is_within(imported, name) for name in forbidden)
    )


def test_the_modules_are_found():
    assert {"skcompressae", "skcompressae._core._topk", "skcompressae._torch._training"} <= set(MODULES)
    assert ("skcompressae._transformer", "sklearn.base") in imports_within("skcompressae")


def test_core_imports_arrays_and_nothing_above():
    assert not offences("skcompressae._core", ["torch", "sklearn", "joblib", "pandas", "pyarrow", "faiss"])
    upwards = {
        (module, imported)
        for module, imported in imports_within("skcompressae._core")
        if is_within(imported, "skcompressae")
        and not is_within(imported, "skcompressae._core")
        and imported != "skcompressae.exceptions"
    }
    assert not upwards


def test_torch_layer_knows_core_only():
    assert not offences("skcompressae._torch", ["sklearn"])
    upwards = {
        (module, imported)
        for module, imported in imports_within("skcompressae._torch")
        if is_within(imported, "skcompressae")
        and not is_within(imported, "skcompressae._core")
        and not is_within(imported, "skcompressae._torch")
        and imported != "skcompressae.exceptions"
    }
    assert not upwards


def test_what_else_imports_torch_is_listed():
    importers = {module for module, imported in imports_within("skcompressae") if is_within(imported, "torch")}
    assert {module for module in importers if not is_within(module, "skcompressae._torch")} == {
        "skcompressae._reference_checkpoints",
        "skcompressae._state_dicts",
        "skcompressae.sentence_transformers",
    }


def test_exceptions_import_nothing_of_ours():
    assert not [name for name, _ in IMPORTS["skcompressae.exceptions"] if is_within(name, "skcompressae")]


def test_packed_codes_need_neither_torch_nor_scikit_learn():
    assert not offences("skcompressae.packed", ["torch", "sklearn", "skcompressae._torch"])


def test_imports_at_module_level_have_no_cycles():
    graph = {
        module: {name for name, is_top_level in IMPORTS[module] if is_top_level and name in MODULES and name != module}
        for module in MODULES
    }
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(graph[module]):
            visit(name)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)


def test_private_scikit_learn_names_are_imported_in_one_place():
    private = {
        f"{module}: {name}"
        for module, tree in TREES.items()
        if module != "skcompressae._compat"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and is_within(node.module, "sklearn")
        for name in [*node.module.split("."), *(alias.name for alias in node.names)]
        if name.startswith("_")
    }
    assert not private


def test_private_attributes_of_scikit_learn_are_named_in_one_place():
    names = ["_sklearn_output_config", "_skl_callback", "_init_callback_context", "_parent_callback"]
    sources = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    users = {module for module, source in sources.items() for name in names if name in source}
    assert users == {"skcompressae._compat"}


def public_definitions(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_what_a_module_defines(name):
    tree = TREES[name]
    declared = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    ]
    if not declared:
        # a package that only holds modules, or the version, which setuptools reads
        assert MODULES[name].name in ("__init__.py", "_version.py", "__main__.py")
        assert not list(public_definitions(tree))
        return
    (names,) = declared
    assert len(set(names)) == len(names)
    if name.startswith("skcompressae._torch._triton_"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    for public in names:
        assert hasattr(module, public), f"{name}.__all__ lists {public}, which it does not define"
    if is_within(name, "skcompressae._core") or is_within(name, "skcompressae._torch"):
        assert set(public_definitions(tree)) <= set(names)


@pytest.mark.parametrize("name", MODULES)
def test_code_raises_errors_rather_than_asserting(name):
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Assert), f"{name}, line {node.lineno}: assert"
        is_bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not is_bare, f"{name}, line {node.lineno}: bare except"


def run_alone(code):
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_what_computes_on_a_cpu_does_not_load_torch():
    light = [
        "skcompressae",
        "skcompressae._cli._main",
        "skcompressae._neighbors",
        "skcompressae._torch._cpu_engine",
        "skcompressae._torch._training",
        "skcompressae._transformer",
        "skcompressae.engines",
        "skcompressae.exceptions",
        "skcompressae.metrics",
        "skcompressae.packed",
        "skcompressae.persistence",
        *(name for name in MODULES if is_within(name, "skcompressae._core")),
    ]
    code = f"import importlib, sys\nfor name in {light}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    assert run_alone(code) == ["False"]


def test_public_names_load_when_asked_for():
    code = (
        "import skcompressae, sys\n"
        "print('CompresSAETransformer' in dir(skcompressae), 'torch' in sys.modules)\n"
        "from skcompressae import *\n"
        "print(CompresSAETransformer.__name__, skcompressae.CompresSAETransformer is CompresSAETransformer)\n"
    )
    assert run_alone(code) == ["True", "False", "CompresSAETransformer", "True"]
    assert set(skcompressae.__all__) <= set(dir(skcompressae))
    with pytest.raises(AttributeError, match="module 'skcompressae' has no attribute 'Compressor'"):
        skcompressae.Compressor  # noqa: B018
