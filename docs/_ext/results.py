"""Tables and pictures of the guide, made from the committed results at every build, so that new results appear."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from files import ROOT, write_if_changed

sys.path.insert(0, str(ROOT / "benchmarks"))

from _report import summarize, write_figure

RESULTS = ROOT / "benchmarks" / "results"
BUDGETS = (32, 64, 128, 256, 512)
MEASURED_FIELDS = {"method", "params", "mode", "size_bytes", "recall_at_10", "recall_at_100", "seed"}
# What the study's names mean; one that is not here is shown as it stands in the file.
METHODS = {
    "ours": "sparse autoencoder, default recipe",
    "ours_once": "the same, one model for every k",
    "paper": "sparse autoencoder, the paper's recipe",
    "pq": "PQ",
    "opq": "OPQ",
    "pca": "PCA, float32",
    "pca_int8": "PCA, int8",
    "truncation_int8": "first dimensions, int8",
    "sq8": "scalar quantiser, 8 bits (int8)",
    "sq6": "scalar quantiser, 6 bits",
    "sq4": "scalar quantiser, 4 bits",
    "rabitq": "RaBitQ",
    "signs": "signs of a random rotation",
}
MODES = {
    "asymmetric": "asymmetric",
    "asymmetric_4bit": "asymmetric, packed words of 4-bit values",
    "asymmetric_dot": "asymmetric, dot product with stored projections",
    "reconstructed": "reconstructed",
    "sparse": "sparse",
    "sparse_query128": "sparse engine, query expanded to 128 nonzeros",
}
SPEEDS = {
    "training_speed": {
        "plain_pytorch_step_s": "plain PyTorch",
        "our_step_float32_s": "skcompressae, float32",
        "our_step_bfloat16_s": "skcompressae, bfloat16",
    },
    "encoding_speed": {
        "plain_pytorch_s": "plain PyTorch",
        "transform_activations_float32_s": '`coding="activations"`',
        "transform_least_squares_float32_s": '`coding="least_squares"` (default)',
        "transform_pursuit_float32_s": '`coding="pursuit"`',
        "transform_least_squares_bfloat16_s": '`coding="least_squares"`, `precision="bfloat16"`',
    },
}


def is_quality_study(content: Any) -> bool:
    """Return whether a result file holds recall against bytes on a data set."""
    if not isinstance(content, dict) or not {"data", "environment", "results"} <= set(content):
        return False
    rows = content["results"]
    return isinstance(rows, list) and bool(rows) and all(set(row) >= MEASURED_FIELDS for row in rows)


def load_studies(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return one content per data set, the largest first, with the rows of all files that measured it."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not is_quality_study(content):
            continue
        data = content["data"]
        key = (data["name"], data.get("sha256", ""))
        entry = merged.setdefault(key, {"data": data, "results": [], "sources": []})
        entry["results"] += content["results"]
        entry["sources"].append((path.name, content["environment"]))
    return sorted(merged.values(), key=lambda entry: -entry["data"]["n_documents"])


def describe(study: dict[str, Any]) -> str:
    """Return one paragraph that says what was measured, on what, and where the numbers lie."""
    data = study["data"]
    seeds = sorted({row["seed"] for row in study["results"]})
    seeds_text = f"Seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    machines = sorted({f"{record['cpu']}, {record['n_threads']} threads" for _, record in study["sources"]})
    dates = sorted({record["date"] for _, record in study["sources"]})
    files = ", ".join(f"`benchmarks/results/{name}`" for name, _ in study["sources"])
    return (
        f"Data `{data['name']}`: {data['n_documents']:,} documents, {data['n_queries']:,} held-out queries, "
        f"{data['n_features']} dimensions ({4 * data['n_features']:,} bytes a vector in float32). {seeds_text}. "
        f"{'; '.join(machines)}; {', '.join(dates)}. Made by `benchmarks/quality.py`; source: {files}."
    )


def budget_table(study: dict[str, Any]) -> str:
    """Return the best recall of each method within each budget of bytes, best of the largest budget first."""
    best: dict[str, dict[int, tuple[float, float]]] = {}
    for (method, _, _, size_bytes), entry in summarize(study).items():
        for budget in BUDGETS:
            if size_bytes <= budget:
                found = (entry["recall_at_100"], size_bytes)
                cells = best.setdefault(method, {})
                cells[budget] = max(cells.get(budget, (0.0, 0.0)), found)
    lines = [
        "| recall@100 within | " + " | ".join(f"{budget} bytes" for budget in BUDGETS) + " |",
        "|---|" + "---:|" * len(BUDGETS),
    ]
    for method, cells in sorted(best.items(), key=lambda item: -max(recall for recall, _ in item[1].values())):
        texts = [f"{cells[b][0]:.3f} ({cells[b][1]:.0f})" if b in cells else "" for b in BUDGETS]
        lines.append(f"| {METHODS.get(method, method)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def full_table(study: dict[str, Any]) -> str:
    """Return every point, smallest vectors first."""
    lines = [
        "| bytes | method | mode | setting | recall@10 | recall@100 | fit, s |",
        "|---:|---|---|---|---:|---:|---:|",
    ]
    ordered = sorted(summarize(study).items(), key=lambda item: (item[0][3], -item[1]["recall_at_100"]))
    for (method, setting, mode, size_bytes), entry in ordered:
        spread = entry["recall_at_100_std"]
        recall = f"{entry['recall_at_100']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        fit_s = entry.get("fit_s")
        lines.append(
            f"| {size_bytes:.0f} | {METHODS.get(method, method)} | {MODES.get(mode, mode)} | {setting} "
            f"| {entry['recall_at_10']:.3f} | {recall} | {'' if fit_s is None else f'{fit_s:.0f}'} |"
        )
    return "\n".join(lines)


def modes_table(study: dict[str, Any]) -> str:
    """Return recall@100 of each search mode at each k that the default recipe was fitted at."""
    cells: dict[str, dict[int, float]] = {}
    for (method, setting, mode, _), entry in summarize(study).items():
        if method == "ours" and setting.removeprefix("k=").isdigit():
            cells.setdefault(mode, {})[int(setting.removeprefix("k="))] = entry["recall_at_100"]
    ks = sorted({k for row in cells.values() for k in row})
    lines = ["| mode | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---|" + "---:|" * len(ks)]
    for mode, row in sorted(cells.items(), key=lambda item: max(item[1].values())):
        lines.append(
            f"| {MODES.get(mode, mode)} | " + " | ".join(f"{row[k]:.3f}" if k in row else "" for k in ks) + " |"
        )
    return "\n".join(lines)


def missing_methods(study: dict[str, Any]) -> str:
    """Return a sentence that names the methods of the study without a result, if there are any."""
    present = {row["method"] for row in study["results"]}
    missing = [label for name, label in METHODS.items() if name not in present]
    return f"Not measured on this data: {'; '.join(missing)}." if missing else ""


def speed_tables() -> dict[str, str]:
    """Return the tables of training and encoding speed, if their results are there."""
    tables = {}
    for name, steps in SPEEDS.items():
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        rows, settings, record = content["rows"], content["settings"], content["environment"]
        header = "| seconds | " + " | ".join(f"{row['n_threads']} thread(s)" for row in rows) + " |"
        lines = [header, "|---|" + "---:|" * len(rows)]
        for key, label in steps.items():
            if all(key in row for row in rows):
                lines.append(f"| {label} | " + " | ".join(f"{row[key]:.2f}" for row in rows) + " |")
        what = ", ".join(f"`{key}={value}`" for key, value in settings.items() if key not in ("threads", "n_repeats"))
        lines += ["", f"{what}; {record['cpu']}; {record['date']}; `benchmarks/results/{name}.json`."]
        tables[name] = "\n".join(lines)
    return tables


def write_results(folder: Path) -> None:
    """Write the fragments that the pages include, and a picture for each data set."""
    studies = load_studies()
    if not studies:
        raise FileNotFoundError(f"no result of the quality study in {RESULTS.relative_to(ROOT)}")
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    main, full = studies[0], []
    for study in studies:
        name = study["data"]["name"]
        path = pictures / f"quality-{name}.svg"
        write_figure([study], path)
        alt = f"Recall at 100 against bytes per vector, {name}"
        full += [
            f"## {name}",
            "",
            describe(study),
            "",
            f"![{alt}](/generated/figures/{path.name})",
            "",
            full_table(study),
            "",
        ]
    best = [budget_table(main), "", describe(main), missing_methods(main)]
    write_if_changed(folder / "quality_budget.md", "\n".join(best) + "\n")
    write_if_changed(folder / "quality_full.md", "\n".join(full))
    write_if_changed(folder / "quality_modes.md", modes_table(main) + "\n\n" + describe(main) + "\n")
    picture = f"quality-{main['data']['name']}.svg"
    text = f"```{{figure}} /generated/figures/{picture}\n:alt: Recall at 100 against bytes per vector\n:width: 100%\n\n"
    write_if_changed(folder / "quality_picture.md", text + f"Neighbours kept against size. {describe(main)}\n```\n")
    for name, table in speed_tables().items():
        write_if_changed(folder / f"{name}.md", table + "\n")
