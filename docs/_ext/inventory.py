"""A local inventory of the few outside names that our pages refer to, so that the build fetches nothing."""

from __future__ import annotations

import zlib
from pathlib import Path

SKLEARN = "https://scikit-learn.org/stable/"
# name: (role, path below SKLEARN); a $ stands for the name
SKLEARN_NAMES = {
    "sklearn.base.clone": ("py:function", "modules/generated/$.html"),
    "sklearn.decomposition.MiniBatchDictionaryLearning": ("py:class", "modules/generated/$.html"),
    "sklearn.decomposition.PCA": ("py:class", "modules/generated/$.html"),
    "sklearn.exceptions.NotFittedError": ("py:exception", "modules/generated/$.html"),
    "sklearn.frozen.FrozenEstimator": ("py:class", "modules/generated/$.html"),
    "sklearn.inspection.DecisionBoundaryDisplay": ("py:class", "modules/generated/$.html"),
    "sklearn.model_selection.GridSearchCV": ("py:class", "modules/generated/$.html"),
    "sklearn.neighbors.KNeighborsTransformer": ("py:class", "modules/generated/$.html"),
    "sklearn.neighbors.NearestNeighbors": ("py:class", "modules/generated/$.html"),
    "sklearn.pipeline.Pipeline": ("py:class", "modules/generated/$.html"),
    "df_output_transform": ("std:label", "auto_examples/miscellaneous/plot_set_output.html"),
    "metadata_routing": ("std:label", "metadata_routing.html"),
    "set_output": ("std:label", "auto_examples/miscellaneous/plot_set_output.html"),
    "sphx_glr_auto_examples_miscellaneous_plot_set_output.py": (
        "std:label",
        "auto_examples/miscellaneous/plot_set_output.html",
    ),
}  # fmt: skip


def write_inventory(path: Path, project: str, names: dict[str, tuple[str, str]]) -> None:
    """Write names in Sphinx's inventory format, version 2."""
    header = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: stable\n"
    header += "# The remainder of this file is compressed using zlib.\n"
    lines = [f"{name} {role} 1 {place.replace('$', name)} -\n" for name, (role, place) in sorted(names.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + zlib.compress("".join(lines).encode()))
