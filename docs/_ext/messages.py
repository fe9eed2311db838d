"""Every error and warning that the package raises, read from its source, for the troubleshooting page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from files import ROOT, write_if_changed

PACKAGE = ROOT / "skcompressae"
# Sections of the troubleshooting page, and the modules whose messages they explain. The first prefix that fits wins.
GROUPS = {
    "devices": ("_torch._devices", "_torch._training"),
    "search": ("_neighbors", "_core._search", "_core._packed_search", "_torch._search"),
    "metrics": ("metrics", "_neighbor_metrics", "_core._exact"),
    "displays": ("_plot",),
    "packed": ("packed", "_packed", "_core._pack", "_core._archive", "_core._residual", "_core._rows"),
    "files": ("persistence", "_checkpoint", "_model", "_reference", "_files", "onnx", "_onnx", "sentence_transformers"),
    "arrow": ("arrow", "_arrow", "_worker", "dask", "_dask", "spark", "_spark", "ray", "_ray", "_cluster", "_parquet"),
    "engines": ("engines", "_engines"),
    "command_line": ("cli", "_cli", "__main__"),
    "training": (
        "_transform",
        "_plain",
        "_fit",
        "_encoding",
        "_recipes",
        "_checks",
        "distributed",
        "_torch",
        "_core",
        "_progress",
    ),
    "other": ("",),
}


class Message(NamedTuple):
    """One raise or warning: where it stands, what it is, and its text with an ellipsis for each value put in."""

    module: str
    kind: str
    text: str
    is_warning: bool


def template(node: ast.expr | None) -> str:
    """Return the text of a message expression, an ellipsis for whatever is only known when it is raised."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return template(node.func.value)
    return "…"


def called_name(node: ast.expr | None) -> str:
    """Return the last part of the name of a class or function."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def messages_of(tree: ast.AST, module: str) -> Iterator[Message]:
    """Yield the errors and warnings of one module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = called_name(node.exc.func)
            if kind[:1].isupper():
                yield Message(module, kind, template(node.exc.args[0] if node.exc.args else None), False)
        elif isinstance(node, ast.Call) and called_name(node.func) == "warn" and node.args:
            category = node.args[1] if len(node.args) > 1 else None
            category = next((word.value for word in node.keywords if word.arg == "category"), category)
            yield Message(module, called_name(category) or "UserWarning", template(node.args[0]), True)


def all_messages() -> list[Message]:
    """Return what the package raises and warns, in the order of its modules, each text once a module."""
    found: dict[Message, None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= dict.fromkeys(messages_of(tree, module))
    return list(found)


def group_of(module: str) -> str:
    """Return the section that explains the messages of a module."""
    return next(name for name, prefixes in GROUPS.items() if module.startswith(prefixes))


def as_list(messages: list[Message]) -> str:
    """Return the messages as a Markdown list."""
    lines = []
    for message in sorted(messages, key=lambda message: (message.kind, message.text)):
        text = " ".join(message.text.split())
        if text.strip("… "):
            lines.append(f"- {message.kind}: {escape(text)}")
    return "\n".join(dict.fromkeys(lines)) or "Nothing."


def escape(text: str) -> str:
    """Return a message as Markdown that shows it letter by letter."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#$|~^" else letter for letter in text)


def write_messages(folder: Path) -> None:
    """Write one list for each section."""
    messages = all_messages()
    for group in GROUPS:
        chosen = [message for message in messages if group_of(message.module) == group]
        write_if_changed(folder / f"messages_{group}.md", as_list(chosen) + "\n")
