"""The picture of the architecture, drawn from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from files import ROOT

PACKAGE = ROOT / "skcompressae"
# Top-level modules that belong together; every other module, and every subpackage, is a box of its own.
TOGETHER = {
    "compressor": ("_transform", "_fit", "_encoding", "_recipes", "_progress", "_checkpoint", "_model"),
    "search": ("_neighbors", "_neighbor_metrics"),
    "formats": ("_files", "_packed_io", "_arrow_columns"),
    "arrow": ("arrow", "_arrow", "_worker"),
    "clusters": ("dask", "spark", "ray", "_dask", "_spark", "_ray", "_cluster"),
    "onnx": ("onnx", "_onnx"),
    "persistence": ("persistence", "_reference"),
}
# Without arrows: everything may import them.
EVERYWHERE = ("exceptions", "_version", "_compat")


def box_of(module: str) -> str:
    """Return the box that a module (dotted, below skcompressae) stands in."""
    head = module.split(".", 1)[0]
    if (PACKAGE / head).is_dir():
        return head
    for box, prefixes in TOGETHER.items():
        if head.startswith(prefixes):
            return box
    return head


class Imports(ast.NodeVisitor):
    """Collect what a module imports of ours: at its top level, and inside functions."""

    def __init__(self, modules: frozenset[str]) -> None:
        self.modules = modules
        self.at_top: set[str] = set()
        self.inside: set[str] = set()
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Count imports below as made when the function is called."""
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_If(self, node: ast.If) -> None:
        """Leave out what only type checkers import."""
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note the modules."""
        name = node.module or ""
        if name == "skcompressae":
            # names of the package come from its modules, most of them from the compressor's and the search's
            found = {alias.name for alias in node.names if alias.name in self.modules}
        elif name.startswith("skcompressae."):
            found = {name.removeprefix("skcompressae.")}
        else:
            return
        (self.inside if self._depth else self.at_top).update(found)


def import_graph() -> tuple[dict[str, list[str]], dict[str, set[str]], dict[str, set[str]]]:
    """Return the modules of each box, the boxes it imports at the top of a module, and those it imports when called."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py")
    }
    modules: dict[str, list[str]] = {}
    at_top: dict[str, set[str]] = {}
    inside: dict[str, set[str]] = {}
    for module, path in paths.items():
        box = box_of(module)
        if box in EVERYWHERE:
            continue
        names = modules.setdefault(box, [])
        if path.name != "__init__.py":
            names.append(module.rpartition(".")[2])
        imports = Imports(frozenset(paths))
        imports.visit(ast.parse(path.read_text(encoding="utf-8")))
        hidden = {box, *EVERYWHERE}
        at_top.setdefault(box, set()).update({box_of(name) for name in imports.at_top} - hidden)
        inside.setdefault(box, set()).update({box_of(name) for name in imports.inside} - hidden)
    merge_cycles(modules, at_top, inside)
    return modules, at_top, {box: inside[box] - at_top[box] for box in inside}


def merge_cycles(modules: dict[str, list[str]], *graphs: dict[str, set[str]]) -> None:
    """Make one box of boxes that import each other at the top of their modules, in place."""
    at_top = graphs[0]
    pairs = ((box, other) for box in at_top for other in reachable(at_top, box) if box != other)
    cycle = next(((box, other) for box, other in pairs if box in reachable(at_top, other)), None)
    if cycle is None:
        return
    first, second = sorted(cycle)
    merged = f"{first}, {second}"
    modules[merged] = modules.pop(first) + modules.pop(second)
    for graph in graphs:
        graph[merged] = graph.pop(first) | graph.pop(second)
        for box, below in graph.items():
            names = {merged if name in (first, second) else name for name in below}
            graph[box] = names - {box}
    merge_cycles(modules, *graphs)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the boxes that `start` imports, directly or not."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        box = waiting.pop()
        if box not in found:
            found.add(box)
            waiting += graph[box]
    return found


def levels_of(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the height of each box above the ones that import nothing; boxes that import each other share one."""
    below = {box: reachable(graph, box) for box in graph}
    strictly = {box: {other for other in others if box not in below[other]} for box, others in below.items()}

    def height(box: str) -> int:
        return max((height(other) + 1 for other in strictly[box]), default=0)

    return {box: height(box) for box in graph}


def with_lazy_imports(graph: dict[str, set[str]], when_called: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph with those imports made inside functions that close no circle."""
    full = {box: set(below) for box, below in graph.items()}
    for box in sorted(when_called):
        for other in sorted(when_called[box]):
            if box not in reachable(full, other):
                full[box].add(other)
    return full


def drawn_edges(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that no longer path implies."""
    edges = []
    for box, below in graph.items():
        for other in sorted(below):
            implied = any(other in reachable(graph, between) for between in below - {other} if between not in (box,))
            if not implied or box in reachable(graph, other):
                edges.append((box, other))
    return edges


def draw_architecture(path: Path) -> None:
    """Draw boxes by height; arrows point from the importing box to the imported, dashed where only functions import."""
    from matplotlib.figure import Figure

    modules, graph, when_called = import_graph()
    levels = levels_of(with_lazy_imports(graph, when_called))
    n_levels = max(levels.values()) + 1
    n_widest = max(sum(level == at for level in levels.values()) for at in range(n_levels))
    figure = Figure(figsize=(max(7.0, 1.8 * n_widest), 1.25 * n_levels), layout="constrained")
    axis = figure.subplots()
    place: dict[str, tuple[float, int]] = {}
    edges = drawn_edges(graph)
    for at in reversed(range(n_levels)):
        # below the boxes that import it, as far as the order in a row can bring it there
        above = {box: [place[start][0] for start, end in edges if end == box and start in place] for box in levels}
        row = [box for box, level in levels.items() if level == at]
        row.sort(key=lambda box: (sum(above[box]) / len(above[box]) if above[box] else 0.5, box))
        for i, box in enumerate(row):
            place[box] = ((i + 0.5) / len(row) + (0.04 if at % 2 else -0.04), at)
    for box, other in edges:
        draw_arrow(axis, place[box], place[other], color="#555555", linestyle="-")
    for box, below in when_called.items():
        for other in sorted(below - reachable(graph, box)):
            draw_arrow(axis, place[box], place[other], color="#999999", linestyle="--")
    for box, (x, y) in place.items():
        names = modules[box]
        is_package = (PACKAGE / box).is_dir()
        title = f"{box}/" if is_package else box
        detail = f"{len(names)} modules" if len(names) > 1 else ("" if is_package else f"{names[0]}.py")
        color = {"_core": "#D9F0E3", "_torch": "#FDE9CF"}.get(box, "#DCEBF7")
        style = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "#555555"}
        axis.text(x, y, f"{title}\n{detail}".strip(), ha="center", va="center", fontsize=10.5, bbox=style, zorder=3)
    axis.set_xlim(-0.06, 1.06)
    axis.set_ylim(-0.45, n_levels - 0.55)
    axis.set_axis_off()
    figure.savefig(path)


def draw_arrow(axis: Any, start: tuple[float, int], end: tuple[float, int], *, color: str, linestyle: str) -> None:
    """Draw an arrow from the lower edge of a box to the upper edge of another, around it where it leads upwards."""
    is_down = start[1] > end[1]
    shape = {"arrowstyle": "-|>", "color": color, "linestyle": linestyle, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    if not is_down:
        shape["connectionstyle"] = "arc3,rad=0.35"
    elif start[1] - end[1] > 1:
        # around the boxes in between, which a straight line would touch
        bend = min(0.4, 0.065 * (start[1] - end[1]))
        shape["connectionstyle"] = f"arc3,rad={bend if start[0] < 0.5 else -bend}"
    gap = 0.22 if is_down else -0.22
    axis.annotate("", xy=(end[0], end[1] + gap), xytext=(start[0], start[1] - gap), arrowprops=shape)
