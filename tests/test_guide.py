"""Code on the pages of the documentation: what can run here runs, the rest compiles and names what exists.

Doctest blocks are run by the build of the site, the page on engines by `test_engines_docs.py`.
"""

import ast
import importlib
import re
import shlex

import numpy as np
import pytest
from conftest import DOCS, ROOT
from documented_examples import code_blocks

from skcompressae._cli._main import make_parser

PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("[!_]*/*.md")])
PAGES = [page for page in PAGES if "generated" not in page.parts]
PYTHON = [page for page in PAGES if code_blocks(page, "python")]
SHELL = [page for page in PAGES if re.search(r"^skcompressae ", "\n".join(code_blocks(page, "sh")), flags=re.MULTILINE)]


def name(page):
    return str(page.relative_to(ROOT))


def test_pages_are_found():
    assert {"docs/guide/large_data.md", "docs/engines.md"} <= set(map(name, PYTHON))
    assert "docs/command_line.md" in map(name, SHELL)


@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_python_compiles_and_names_what_we_have(page):
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block, filename=name(page))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("skcompressae"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_training_on_a_memory_map(embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", embeddings)
    (block,) = code_blocks(DOCS / "guide" / "large_data.md", "python")
    # the defaults are for more and wider rows than these
    assert "= CompresSAETransformer(" in block
    namespace = {}
    exec(block.replace("= CompresSAETransformer(", "= CompresSAETransformer(48, k=6, max_iter=60, "), namespace)
    assert namespace["packed"].shape == (400, 48)


@pytest.mark.parametrize("page", SHELL, ids=name)
def test_commands_are_understood(page, capsys):
    commands = [
        line for block in code_blocks(page, "sh") for line in block.splitlines() if line.startswith("skcompressae ")
    ]
    assert commands
    for command in commands:
        words = shlex.split(command.partition(" > ")[0], comments=True)
        try:
            make_parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{command}\n{capsys.readouterr().err}")
