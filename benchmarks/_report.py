"""The picture and the table of the quality study."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

# Colour-blind safe (Okabe and Ito); ours stand out by weight, the sparse coders by filled markers
STYLES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("ours", "asymmetric_4bit"): (
        "skcompressae, asymmetric, packed",
        {"color": "#0072B2", "marker": "o", "linewidth": 2.5},
    ),
    ("hybrid", "reranked"): (
        "skcompressae, hybrid, packed",
        {"color": "#0072B2", "marker": "*", "linewidth": 2.5, "linestyle": "-."},
    ),
    ("ours", "asymmetric"): ("skcompressae, asymmetric, CSR", {"color": "#0072B2", "marker": "o", "linestyle": "--"}),
    ("ours", "reconstructed"): (
        "skcompressae, reconstructed, CSR",
        {"color": "#56B4E9", "marker": "s", "linestyle": "--"},
    ),
    ("ours", "sparse"): ("skcompressae, sparse, CSR", {"color": "#009E73", "marker": "^", "linestyle": "--"}),
    ("paper", "asymmetric_4bit"): ("paper's recipe, asymmetric, packed", {"color": "#999999", "marker": "o"}),
    ("paper", "reconstructed"): (
        "paper's recipe, reconstructed, CSR",
        {"color": "#999999", "marker": "s", "linestyle": "--"},
    ),
    ("paper", "sparse"): ("paper's recipe, sparse, CSR", {"color": "#999999", "marker": "^", "linestyle": "--"}),
    ("pq", "asymmetric"): ("PQ", {"color": "#E69F00", "marker": "D"}),
    ("opq", "asymmetric"): ("OPQ", {"color": "#D55E00", "marker": "D"}),
    ("rq", "asymmetric"): ("residual quantisers", {"color": "#B2182B", "marker": "<"}),
    ("rabitq", "asymmetric"): ("RaBitQ", {"color": "#CC79A7", "marker": "v"}),
    ("pca_int8", "asymmetric"): ("PCA + int8", {"color": "#8C6D1F", "marker": "x"}),
    ("pca", "asymmetric"): ("PCA", {"color": "#8C6D1F", "marker": "x", "linestyle": ":"}),
    ("truncation_int8", "asymmetric"): (
        "first dimensions, int8",
        {"color": "#444444", "marker": "+", "linestyle": ":"},
    ),
}

Summary = dict[tuple[str, str, str, float], dict[str, Any]]


def summarize(content: dict[str, Any]) -> Summary:
    """Return mean and spread over the seeds for each method, setting, mode and size of one data set."""
    groups: dict[tuple[str, str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in content["results"]:
        setting = ", ".join(f"{key}={value}" for key, value in row["params"].items())
        groups[row["method"], setting, row["mode"], row["size_bytes"]].append(row)
    summary: Summary = {}
    for key, rows in groups.items():
        entry: dict[str, Any] = {"n_seeds": len(rows)}
        for field in ("recall_at_10", "recall_at_100", "cosine", "fit_s", "encode_s"):
            values = [row[field] for row in rows if row[field] is not None]
            entry[field] = float(np.mean(values)) if values else None
            entry[f"{field}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[key] = entry
    return summary


def write_table(contents: list[dict[str, Any]], path: Path) -> None:
    """Write one Markdown table for each data set, smallest vectors first."""
    lines = ["# Recall against bytes", ""]
    for content in contents:
        data, record = content["data"], content["environment"]
        lines += [
            f"## {data['name']}",
            "",
            f"{data['n_documents']:,} documents, {data['n_queries']:,} queries, "
            f"{data['n_features']} dimensions. "
            f"{record['cpu']}, {record['n_threads']} thread(s), commit {record['commit']}. "
            "Mean over the seeds that were run, ± standard deviation where there are several.",
            "",
            "| bytes | method | mode | setting | recall@10 | recall@100 | cosine | fit CPU s | encode CPU s |",
            "|---:|---|---|---|---:|---:|---:|---:|---:|",
        ]
        ordered = sorted(summarize(content).items(), key=lambda item: (item[0][3], -item[1]["recall_at_100"]))
        for (method, setting, mode, size_bytes), entry in ordered:
            spread = entry["recall_at_100_std"]
            recall = f"{entry['recall_at_100']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
            cosine = "" if entry["cosine"] is None else f"{entry['cosine']:.3f}"
            lines.append(
                f"| {size_bytes:.0f} | {method} | {mode} | {setting} "
                f"| {entry['recall_at_10']:.3f} | {recall} | {cosine} "
                f"| {entry['fit_s']:.1f} | {entry['encode_s']:.1f} |"
            )
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def write_figure(contents: list[dict[str, Any]], path: Path) -> None:
    """Draw recall@100 against bytes per vector, one panel for each data set."""
    from matplotlib.figure import Figure

    n_columns = min(3, len(contents))
    n_rows = -(-len(contents) // n_columns)
    figure = Figure(figsize=(5.2 * n_columns, 4.2 * n_rows + 1.0), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axis, content in zip(axes.flat, contents, strict=False):
        summary = summarize(content)
        for (method, mode), (label, style) in STYLES.items():
            points = sorted(
                (size_bytes, entry["recall_at_100"], entry["recall_at_100_std"] or 0.0)
                for (of_method, _, of_mode, size_bytes), entry in summary.items()
                if (of_method, of_mode) == (method, mode)
            )
            if points:
                sizes, recalls, spreads = np.array(points).T
                handles[label] = axis.errorbar(sizes, recalls, yerr=spreads, markersize=5, capsize=2, **style)
        data = content["data"]
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.set_title(f"{data['name']} ({data['n_documents']:,} x {data['n_features']})")
        axis.set_xlabel("bytes per vector")
        axis.set_ylabel("recall@100 of the dense neighbours")
    for axis in axes.flat[len(contents) :]:
        axis.set_axis_off()
    place = {"loc": "outside lower center", "ncols": min(5, 2 * n_columns), "fontsize": "small"}
    figure.legend(handles.values(), handles.keys(), **place)
    figure.savefig(path, dpi=120)


def write_report(contents: list[dict[str, Any]], folder: Path) -> None:
    """Write quality.md and quality.png into a folder."""
    if not contents:
        raise ValueError("no result files to report: run the study first, or check --out and --prefix")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(contents, folder / "quality.md")
    write_figure(contents, folder / "quality.png")
