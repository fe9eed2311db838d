"""Write the README's measured figures and its picture from the committed results, so that the two cannot drift apart.

    python benchmarks/readme_section.py

Replaces what stands between the two ``measured`` markers of README.md and draws docs/_static/recall_against_bytes.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from _common import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
README = REPOSITORY / "README.md"
PICTURE = REPOSITORY / "docs" / "_static" / "recall_against_bytes.png"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
# The data set of the tables, and what a reader should be told it is.
NAME, DESCRIPTION = "text-minilm-384", "sentence embeddings (all-MiniLM-L6-v2, d = 384) of short texts"
DATA = {
    "text-minilm-384": "short texts, all-MiniLM-L6-v2, d = 384",
    "docstring_lsa": "docstrings, LSA, d = 256",
    "identifiers": "names used together, factorised, d = 256",
    "words-glove-100": "words, GloVe, d = 100",
    "images-efficientnet-1280": "images, EfficientNet-Lite0, d = 1,280",
}
MODES = {
    "sparse": "sparse",
    "sparse_query128": "sparse, query of 128 nonzeros",
    "reconstructed": "reconstructed",
    "asymmetric": "asymmetric",
    "asymmetric_dot": "asymmetric, dot with projections",
}
BUDGETS = (16, 32, 64, 128, 256)
# Parameters of ours that rows name where they are not the default.
OTHERS = ("recipe", "usage_power", "neighborhood_weight", "flattening", "kind")
# Okabe and Ito's colours; ours stand out by weight.
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("skcompressae (packed, by split_bytes)", {"color": "#0072B2", "marker": "o", "lw": 3}),
    "dense": ('the same, recipe="dense"', {"color": "#56B4E9", "marker": "o", "lw": 2}),
    "opq": ("OPQ", {"color": "#D55E00", "marker": "D"}),
    "pq": ("PQ", {"color": "#E69F00", "marker": "s"}),
    "rq": ("residual quantisers", {"color": "#B2182B", "marker": "<"}),
    "rabitq": ("RaBitQ", {"color": "#CC79A7", "marker": "v"}),
    "pca_int8": ("PCA + int8", {"color": "#8C6D1F", "marker": "x"}),
    "paper": ("the paper's recipe (CSR, reconstructed)", {"color": "#777777", "marker": "^", "linestyle": "--"}),
}


def read(name: str) -> dict[str, Any]:
    """Return a committed result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def mean_recall(rows: list[dict[str, Any]], **wanted: Any) -> float | None:
    """Return the mean recall@100 over the seeds of the rows that have these values, None where there is none."""
    found = [
        row["recall_at_100"]
        for row in shown_rows(rows)
        if all((row["params"] if key == "k" else row).get(key) == value for key, value in wanted.items())
    ]
    return float(np.mean(found)) if found else None


def shown_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows of other than the default settings, which say so."""
    return [row for row in rows if not set(OTHERS) & set(row["params"])]


def budget_curves() -> dict[str, dict[float, float]]:
    """Return recall@100 by bytes per vector of every method of the picture."""
    hybrid = read(f"hybrid-{NAME}")["results"]
    quality = read(f"quality-{NAME}")["results"] + read(f"additive-{NAME}")["results"]
    curves: dict[str, dict[float, float]] = {name: {} for name in CURVES}
    for ours, rows in (("ours", hybrid), ("dense", read(f"hybrid-dense-{NAME}")["results"])):
        for row in rows:
            name = ours if row["method"] in ("sparse", "hybrid") else row["method"]
            curves[name][row["budget_bytes"]] = row["recall_at_100"]
    for row in quality:
        if row["method"] == "pca_int8":
            curves["pca_int8"][row["size_bytes"]] = row["recall_at_100"]
        elif row["method"] == "paper" and row["mode"] == "reconstructed":
            mean = mean_recall(quality, method="paper", mode="reconstructed", k=row["params"]["k"])
            curves["paper"][row["size_bytes"]] = mean
        elif row["method"] in ("pq", "opq", "rq", "rabitq"):
            # at the least budget that holds it; several seeds or settings there count as the best of them
            budget = min((budget for budget in BUDGETS if budget >= row["size_bytes"]), default=row["size_bytes"])
            best = curves[row["method"]].get(budget, 0.0)
            curves[row["method"]][budget] = max(best, row["recall_at_100"])
    return curves


def draw(curves: dict[str, dict[float, float]], path: Path = PICTURE, *, is_narrow: bool = False) -> None:
    """Draw recall against bytes; narrow for the width of a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6) if is_narrow else (8, 4.8), layout="constrained")
    axis = figure.subplots()
    for name, (label, style) in CURVES.items():
        points = sorted(curves[name].items())
        axis.plot(*zip(*points, strict=True), label=label, markersize=6, **style)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    data = read(f"quality-{NAME}")["data"]
    separator = ":\n" if is_narrow else ": "
    axis.set_title(f"{DESCRIPTION}{separator}{data['n_documents']:,} documents", fontsize=10)
    axis.set_xlabel(f"bytes per vector (float32: {4 * data['n_features']:,})")
    axis.set_ylabel("recall@100 of the true neighbours")
    if is_narrow:
        figure.legend(loc="outside lower center", fontsize=10)
    else:
        axis.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=150)


def modes_table() -> list[str]:
    """Return recall by search mode and data set, the paper's recipe in parentheses."""
    contents = [read(f"quality-{name}") for name in DATA]
    options, record = contents[1]["options"], contents[0]["environment"]
    rows_of = [shown_rows([row for row in content["results"] if row["params"].get("k") == 32]) for content in contents]
    seeds_of = [{row["seed"] for row in rows if row["method"] == "ours"} for rows in rows_of]
    n_seeds = max(map(len, seeds_of))
    seeds = "one seed" if n_seeds == 1 else f"means of up to {n_seeds} seeds"
    lines = [
        f"Recall@100 of the true neighbours of 2,000 held-out queries at k = 32, {seeds}. In parentheses the paper's "
        f"recipe in plain PyTorch, at a constant learning rate of {options['learning_rate']:g} (chosen among five on "
        f"development rows), batches of {options['batch_size']:,} rows, given as many CPU seconds to fit as ours "
        f"({options['n_components']:,} latents, one thread of an {record['cpu'].split(' (')[0]}).",
        "",
        "| mode | " + " | ".join(DATA.values()) + " |",
        "|---|" + "---:|" * len(DATA),
    ]
    for mode, label in MODES.items():
        cells = []
        for found, chosen in zip(rows_of, seeds_of, strict=True):
            rows = [row for row in found if row["seed"] in chosen]
            ours, paper = (mean_recall(rows, method=m, mode=mode, k=32) for m in ("ours", "paper"))
            cells.append(f"**{ours:.3f}** ({paper:.3f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for mode in ("reconstructed", "asymmetric"):
        found = [dense_recall(name, mode) for name in DATA]
        lines.append(
            f'| {MODES[mode]}, `recipe="dense"` | ' + " | ".join(f"**{recall:.3f}**" for recall in found) + " |"
        )
    lines += [
        "",
        'Figures of `recipe="dense"`, for rows that only dense queries search, are of one seed; encoding takes three '
        "times as long, and less is found code to code ([recipes](docs/recipes.md#the-dense-recipe)).",
    ]
    return lines


def dense_recall(name: str, mode: str) -> float:
    """Return recall@100 of the dense recipe at k = 32."""
    rows = read(f"dense-{name}")["results"]
    (found,) = (r["recall_at_100"] for r in rows if (r["params"]["k"], r["mode"]) == (32, mode))
    return float(found)


def bytes_table(curves: dict[str, dict[float, float]]) -> list[str]:
    """Return recall by bytes per vector."""
    lines = [
        "On the first set at equal bytes per vector (codes of projections packed with 4-bit values, and what they "
        'leave by a product quantiser; `split_bytes(..., kind="best")` finds how many bytes go to which and whether a '
        'scale per row pays, and all documents are scored by both, with `metric="geometric"`):',
        "",
        "| | " + " | ".join(f"{budget} B" for budget in BUDGETS) + " |",
        "|---|" + "---:|" * len(BUDGETS),
    ]
    labels = {name: label for name, (label, _) in CURVES.items()} | {
        "ours": "**skcompressae**",
        "dense": '**skcompressae**, `recipe="dense"`',
    }
    for name in ("ours", "dense", "pq", "opq", "rq", "rabitq", "pca_int8"):
        curve, label = curves[name], labels[name]
        cells = [f"{curve[b]:.3f}" if b in curve else "not run" for b in BUDGETS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def speed_lines() -> list[str]:
    """Return the figures of speed in words."""
    training, encoding = read("training_speed"), read("encoding_speed")
    step = max(training["rows"], key=lambda row: row["n_threads"])
    encode = max(encoding["rows"], key=lambda row: row["n_threads"])
    shape, n_samples = training["settings"], encoding["settings"]["n_samples"]
    of_steps, of_codes = (content["environment"]["cpu"].split(" (")[0] for content in (training, encoding))
    return [
        f"One training step of {shape['batch_size']:,} rows (d = {shape['n_features']}, {shape['n_components']:,} "
        f"latents, k = {shape['k']}) takes {step['our_step_float32_s']:.2f} s where plain PyTorch takes "
        f"{step['plain_pytorch_step_s']:.2f} s ({of_steps}); `transform` of {n_samples:,} rows "
        f"{encode['transform_pursuit_float32_s']:.2f} s against {encode['plain_pytorch_s']:.2f} s, of a single "
        f"row {1e3 * encode['single_row_pursuit_float32_s']:.1f} ms against "
        f"{1e3 * encode['plain_pytorch_single_row_s']:.1f} ms ({of_codes}). Either with "
        f"{step['n_threads']} threads, float32, no GPU. {gpu_sentence()}",
        "",
        *search_lines(),
    ]


def gpu_sentence() -> str:
    """Return the figures of a GPU in words."""
    training, encoding = read("gpu_training"), read("gpu_encoding")
    (fit,) = (row for row in training["fits"] if (row["recipe"], row["precision"]) == ("paper", "bfloat16"))
    steps = {row["precision"]: row["step_s"] for row in training["steps"] if row["who"] == "plain"}
    rates = {
        row["coding"]: row["rows_per_s"] / 1e6
        for row in encoding["on_device"]
        if row["who"] == "ours" and row["kernels"] and row["precision"] == "bfloat16"
    }
    settings = training["settings"]
    return (
        f"On one {training['device']['name'].removeprefix('NVIDIA ')}, {fit['n_steps']} steps of "
        f"{settings['batch_size']:,} rows take {fit['fit_s']:.1f} s in bfloat16 (plain PyTorch's steps: "
        f"{fit['n_steps'] * steps['bfloat16']:.0f} s, in float32 {fit['n_steps'] * steps['float32']:.0f} s), and "
        f"{rates['pursuit']:.1f} million rows a second are encoded there ({rates['activations']:.1f} million without "
        "fitted values)."
    )


def search_lines() -> list[str]:
    """Return the time of a query by batch size, ours beside the peers."""
    content = read("search_speed")
    n_docs = min(row["n_docs"] for row in content["results"])
    rows = [row for row in content["results"] if (row["n_docs"], row["n_threads"]) == (n_docs, 1)]
    batches = sorted({row["batch"] for row in rows})
    settings = content["settings"]
    lines = [
        f"Search, ms per query for the top {settings['top']} of {n_docs:,} codes (k = {settings['k']}, "
        f"{settings['n_components']:,} latents; originals of {settings['n_features']} dimensions; one thread):",
        "",
        "| | bytes a document in the index | "
        + " | ".join(f"batch of {batch:,}" if batch > 1 else "one query" for batch in batches)
        + " |",
        "|---|" + "---:|" * (1 + len(batches)),
    ]
    names = sorted(dict.fromkeys(row["name"] for row in rows), key=lambda name: not name.startswith("skcompressae"))
    for name in names:
        times = {row["batch"]: row["per_query_ms"] for row in rows if row["name"] == name}
        size = next(row.get("bytes_per_document", 0) for row in rows if row["name"] == name)
        cells = [f"{size:,.0f}" if size else "", *(f"{times[b]:.2f}" if b in times else "" for b in batches)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def section(curves: dict[str, dict[float, float]]) -> str:
    """Return the Markdown between the markers."""
    blocks = [modes_table(), bytes_table(curves), speed_lines()]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main() -> None:
    curves = budget_curves()
    draw(curves)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    README.write_text(before + BEGIN + section(curves) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
