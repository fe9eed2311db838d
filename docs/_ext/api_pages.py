"""Write one page per public name, from the packages themselves: what `__all__` lists is what the reference holds."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from files import write_if_changed

import skcompressae

# scikit-learn makes these for metadata routing, which no estimator here takes part in
EXCLUDED_MEMBERS = "get_metadata_routing, with_traceback, add_note"


class PublicName(NamedTuple):
    """A public object: where it is documented, and what it is."""

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """Return the dotted name."""
        return f"{self.module}.{self.name}"

    @property
    def directive(self) -> str:
        """Return the autodoc directive that documents it."""
        if inspect.isclass(self.value):
            return "autoexception" if issubclass(self.value, BaseException) else "autoclass"
        return "autofunction" if callable(self.value) else "autodata"

    @property
    def role(self) -> str:
        """Return the role that refers to it."""
        return {"autoexception": "exc", "autoclass": "class", "autofunction": "func", "autodata": "data"}[
            self.directive
        ]

    @property
    def summary(self) -> str:
        """Return the first line of its docstring."""
        if self.directive == "autodata":
            return f"A constant of type {type(self.value).__name__}."
        line = (inspect.getdoc(self.value) or "").split("\n", 1)[0]
        # its links are relative to its own page
        return re.sub(r":\w+:`~?([^`]+)`", r"``\1``", line)


def public_modules() -> list[ModuleType]:
    """Return the modules without an underscore in their path that declare `__all__`, the package itself first."""
    found = [skcompressae]
    for info in pkgutil.walk_packages(skcompressae.__path__, "skcompressae."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            module = importlib.import_module(info.name)
            if getattr(module, "__all__", None):
                found.append(module)
    return found


def public_names(module: ModuleType) -> list[PublicName]:
    """Return what a module's `__all__` lists, dunder names left out."""
    names = [name for name in module.__all__ if not name.startswith("__")]
    return [PublicName(module.__name__, name, getattr(module, name)) for name in names]


def canonical(names: list[PublicName]) -> dict[int, PublicName]:
    """Return for each object (by identity) the first of its public names: the one with a page."""
    homes: dict[int, PublicName] = {}
    for name in names:
        homes.setdefault(id(name.value), name)
    return homes


def object_page(entry: PublicName) -> str:
    """Return the page of one object."""
    lines = [entry.name, "=" * len(entry.name), "", f".. currentmodule:: {entry.module}", ""]
    lines.append(f".. {entry.directive}:: {entry.name}")
    if entry.directive == "autoclass":
        # but not of torch.nn.Module, under the name that its subclass in sentence-transformers shares
        lines += ["   :members:", "   :inherited-members: Module", f"   :exclude-members: {EXCLUDED_MEMBERS}"]
    lines += ["", f".. minigallery:: {entry.path}", "   :add-heading: Examples", "   :heading-level: -", ""]
    return "\n".join(lines)


def index_page(modules: list[ModuleType]) -> str:
    """Return the overview: a table per module."""
    lines = ["API reference", "=============", ""]
    lines += ["Everything that is public, module by module, from the docstrings. What is not here is private.", ""]
    every = [entry for module in modules for entry in public_names(module)]
    homes = canonical(every)
    for module in modules:
        title = f"``{module.__name__}``"
        lines += [title, "-" * len(title), "", (inspect.getdoc(module) or "").split("\n\n", 1)[0], ""]
        lines += [".. list-table::", "   :widths: 40 60", ""]
        for entry in public_names(module):
            home = homes[id(entry.value)]
            text = entry.name if home.name == entry.name else f"{entry.name} ({home.name})"
            lines += [f"   * - :{home.role}:`{text} <{home.path}>`", f"     - {entry.summary}"]
        lines.append("")
    lines += [".. toctree::", "   :hidden:", ""] + [f"   {entry.path}" for entry in homes.values()]
    return "\n".join([*lines, ""])


def write_api(folder: Path) -> None:
    """Write the overview and every page, and remove the pages of names that are gone."""
    modules = public_modules()
    pages = {f"{e.path}.rst": object_page(e) for e in canonical([e for m in modules for e in public_names(m)]).values()}
    pages["index.rst"] = index_page(modules)
    for name, text in pages.items():
        write_if_changed(folder / name, text)
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
