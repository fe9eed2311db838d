"""Tables and pictures of the guide, made from the committed results at every build, so that new results appear."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from files import ROOT, write_if_changed

sys.path.insert(0, str(ROOT / "benchmarks"))

from _report import summarize, write_figure
from readme_section import NAME, OTHERS, budget_curves, draw

RESULTS = ROOT / "benchmarks" / "results"
BUDGETS = (16, 32, 64, 128, 256, 512)
MEASURED_FIELDS = {"method", "params", "mode", "size_bytes", "recall_at_10", "recall_at_100", "seed"}
# What the study's names mean; one that is not here is shown as it stands in the file.
METHODS = {
    "ours": "skcompressae",
    "ours_once": "skcompressae, one model",
    "hybrid": "skcompressae, hybrid",
    "paper": "the paper's recipe",
    "pq": "PQ",
    "opq": "OPQ",
    "rq": "residual quantisers",
    "rabitq": "RaBitQ",
    "pca": "PCA, float32",
    "pca_int8": "PCA, int8",
    "truncation_int8": "first dimensions, int8",
    "sq8": "scalar quantiser, 8 bits",
    "sq6": "scalar quantiser, 6 bits",
    "sq4": "scalar quantiser, 4 bits",
    "signs": "signs of a random rotation",
}
# Rows of the table of budgets: sparse codes count as one method, whichever way they were trained and searched.
FAMILIES = {
    "ours": "skcompressae, sparse codes alone",
    "ours_once": "skcompressae, sparse codes alone",
    "hybrid": "skcompressae, sparse codes and a PQ of the rest",
}
MODES = {
    "asymmetric": "asymmetric",
    "asymmetric_4bit": "asymmetric, packed",
    "asymmetric_dot": "asymmetric, dot product",
    "asymmetric_dot_4bit": "asymmetric, dot product, packed",
    "asymmetric_geometric_4bit": "asymmetric, geometric mean, packed",
    "reconstructed": "reconstructed",
    "reranked": "reranked, packed",
    "sparse": "sparse",
    "sparse_query128": "sparse, query of 128 nonzeros",
}
# A mode of ours, and the mode of the paper's recipe that its margin is over.
MARGINS = (
    ("sparse", "sparse", "sparse"),
    ("sparse, query of 128 nonzeros, over sparse", "sparse_query128", "sparse"),
    ("reconstructed", "reconstructed", "reconstructed"),
    ("asymmetric, over reconstructed", "asymmetric", "reconstructed"),
    ("asymmetric, dot product, over reconstructed", "asymmetric_dot", "reconstructed"),
)
LEGEND = (
    "*One model* is trained at the k after `k_fit` and serves smaller k; *hybrid* codes carry a product quantisation "
    "of what the sparse code leaves, which puts `rerank` candidates in order, or all documents; *the paper's recipe* "
    "is plain PyTorch. *Packed* codes have values of 4 bits, the others are CSR in float32. *Dot product* is "
    "that of the query with the stored projection (`norm=None`), *geometric mean* that of dot product and cosine."
)
SPEEDS = {
    "training_speed": {
        "plain_pytorch_step_s": "plain PyTorch",
        "our_step_float32_s": "skcompressae, float32",
        "our_step_bfloat16_s": "skcompressae, bfloat16",
    },
    "encoding_speed": {
        "plain_pytorch_s": "plain PyTorch",
        "transform_activations_float32_s": '`coding="activations"`',
        "transform_least_squares_float32_s": '`coding="least_squares"`',
        "transform_pursuit_float32_s": '`coding="pursuit"` (default)',
        "transform_refined_pursuit_float32_s": '`coding="refined_pursuit"`',
        "transform_least_squares_bfloat16_s": '`coding="least_squares"`, `precision="bfloat16"`',
        "transform_pursuit_bfloat16_s": '`coding="pursuit"`, `precision="bfloat16"`',
    },
}


def is_quality_study(content: Any) -> bool:
    """Return whether a result file holds recall against bytes on a data set."""
    if not isinstance(content, dict) or not {"data", "environment", "results"} <= set(content):
        return False
    rows = content["results"]
    return isinstance(rows, list) and bool(rows) and all(set(row) >= MEASURED_FIELDS for row in rows)


def hybrid_rows(content: Any, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `benchmarks/hybrid.py` as the quality study writes them, without points that it has too."""
    known = {(row["method"], str(row["params"]), row["seed"]) for row in measured}
    k_fit = content["options"]["k"]
    rows = []
    for row in content["results"]:
        new = {"cosine": None, "fit_s": None, "encode_s": None, **row, "mode": "asymmetric"}
        if row["method"] == "sparse":
            others = {key: value for key, value in row["params"].items() if key in OTHERS}
            params = {"k": row["params"]["k"], "k_fit": k_fit, **others}
            new |= {"method": "ours_once", "mode": "asymmetric_geometric_4bit", "params": params}
        elif row["method"] == "hybrid":
            new["mode"] = "reranked"
        if (new["method"], str(new["params"]), new["seed"]) not in known:
            rows.append(new)
    return rows


def last_measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per method, setting, mode and seed: the latest, where several files measured it."""
    by_point = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        by_point[row["method"], str(row["params"]), row["mode"], row["seed"]] = row
    return list(by_point.values())


def load_studies(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return one content per data set and number of documents, with the rows of all files that measured it.

    What was measured again counts once, as it was measured last: a mean is over seeds, not over states of the code.
    Those with the most methods come first. Each has a title of its own: where data of one name were measured in several
    states, all but the first say which.
    """
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not is_quality_study(content):
            continue
        data = content["data"]
        key = (data["name"], data.get("sha256", ""), data["n_documents"])
        entry = merged.setdefault(key, {"data": data, "results": [], "sources": []})
        entry["results"] += [{"date": content["environment"]["date"], **row} for row in content["results"]]
        entry["sources"].append((path.name, content["environment"]))
    for entry in merged.values():
        entry["results"] = last_measured(entry["results"])
    for path in sorted(folder.glob("hybrid-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        key = (content["data"]["name"], content["data"].get("sha256", ""), content["data"]["n_documents"])
        if key in merged:
            merged[key]["results"] += hybrid_rows(content, merged[key]["results"])
            merged[key]["sources"].append((path.name, content["environment"]))
    studies = sorted(merged.values(), key=lambda entry: (-n_methods(entry), -entry["data"]["n_documents"]))
    titled: dict[str, dict[str, Any]] = {}
    for study in studies:
        data = study["data"]
        first = titled.get(data["name"], study)
        state = (
            f"{data['n_documents']:,} documents"
            if data["n_documents"] != first["data"]["n_documents"]
            else first_date(study)
        )
        study["title"] = data["name"] if first is study else f"{data['name']}, {state}"
        if study["title"] in titled:
            raise ValueError(f"two studies would be called {study['title']!r}: {study['sources'][0][0]} is one of them")
        titled[study["title"]] = study
    return studies


def n_methods(study: dict[str, Any]) -> int:
    """Return how many methods were measured."""
    return len({row["method"] for row in study["results"]})


def first_date(study: dict[str, Any]) -> str:
    """Return the day of the first measurement."""
    return min(environment["date"] for _, environment in study["sources"])


def describe(study: dict[str, Any]) -> str:
    """Return one paragraph that says what was measured, on what, and where the numbers lie."""
    data = study["data"]
    seeds = sorted({row["seed"] for row in study["results"]})
    seeds_text = f"Seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    threads = sorted({record["n_threads"] for _, record in study["sources"]})
    machines = sorted({record["cpu"] for _, record in study["sources"]})
    dates = sorted({record["date"] for _, record in study["sources"]})
    files = ", ".join(f"`benchmarks/results/{name}`" for name, _ in study["sources"])
    has_hybrid = any(name.startswith("hybrid-") for name, _ in study["sources"])
    scripts = ["`benchmarks/quality.py`", *(["`benchmarks/hybrid.py`"] if has_hybrid else [])]
    return (
        f"Data `{data['name']}`: {data['n_documents']:,} documents, {data['n_queries']:,} held-out queries, "
        f"{data['n_features']} dimensions ({4 * data['n_features']:,} bytes a vector in float32). {seeds_text}. "
        f"{'; '.join(machines)}, {' or '.join(map(str, threads))} thread(s); {', '.join(dates)}. "
        f"Made by {' and '.join(scripts)}; source: {files}."
    )


def budget_table(study: dict[str, Any]) -> str:
    """Return the best recall of each method within each budget of bytes, best method first.

    A cell is left out where nothing was measured between the budget before and its own.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for (method, setting, _, size_bytes), entry in summarize(study).items():
        label = FAMILIES.get(method, METHODS.get(method, method))
        if "recipe=dense" in setting:
            label += ", dense recipe"
        if "kind=fixed" in setting:
            label += ", no scale per row"
        points.setdefault(label, []).append((entry["recall_at_100"], size_bytes))
    best: dict[str, dict[int, tuple[float, float]]] = {}
    for before, budget in zip((0, *BUDGETS), BUDGETS, strict=False):
        for label, measured in points.items():
            if any(before < size <= budget for _, size in measured):
                best.setdefault(label, {})[budget] = max(point for point in measured if point[1] <= budget)
    lines = [
        "| recall@100 within | " + " | ".join(f"{budget} bytes" for budget in BUDGETS) + " |",
        "|---|" + "---:|" * len(BUDGETS),
    ]
    for label, cells in sorted(best.items(), key=lambda item: -max(recall for recall, _ in item[1].values())):
        texts = [f"{cells[b][0]:.3f} ({cells[b][1]:.0f})" if b in cells else "" for b in BUDGETS]
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def full_table(study: dict[str, Any]) -> str:
    """Return every point, smallest vectors first."""
    lines = [
        "| bytes | method | mode | setting | recall@10 | recall@100 | fit, CPU s |",
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


def margins_table(studies: list[dict[str, Any]]) -> str:
    """Return how far ours is above the paper's recipe at equal k and time to fit, by data set, k and mode."""
    lines = [
        "| data | k | seeds | " + " | ".join(label for label, _, _ in MARGINS) + " | dead latents |",
        "|---|---:|---:|" + "---:|" * (len(MARGINS) + 1),
    ]
    for study in studies:
        # recall by k, ours also by what is not the default; then by mode and seed
        ours_of: dict[tuple[int, str], dict[str, dict[int, float]]] = {}
        paper_of: dict[int, dict[str, dict[int, float]]] = {}
        dead: dict[tuple[int, str], list[float]] = {}
        for row in study["results"]:
            k = row["params"].get("k")
            if row["method"] == "paper":
                paper_of.setdefault(k, {}).setdefault(row["mode"], {})[row["seed"]] = row["recall_at_100"]
            elif row["method"] == "ours":
                given = {name: row["params"][name] for name in OTHERS if name in row["params"]}
                others = (f", {name}={v if isinstance(v, str) else format(v, 'g')}" for name, v in given.items())
                setting = k, "".join(others)
                ours_of.setdefault(setting, {}).setdefault(row["mode"], {})[row["seed"]] = row["recall_at_100"]
                dead.setdefault(setting, []).append(row["dead_fraction"])
        measured = (setting for setting in ours_of if setting[0] in paper_of)
        for k, others in sorted(measured):
            of = ours_of[k, others]
            cells = []
            for _, mode, against in MARGINS:
                ours, paper = of[mode], paper_of[k][against]
                margins = [ours[seed] - paper[seed] for seed in sorted(ours.keys() & paper.keys())]
                spread = f" ± {stdev(margins):.3f}" if len(margins) > 1 else ""
                cells.append(f"{fmean(ours.values()):.3f} ({fmean(margins):+.3f}{spread})")
            n_seeds = len(of["sparse"].keys() & paper_of[k]["sparse"].keys())
            dead_share = max(dead[k, others])
            lines.append(
                f"| {study['title']} | {k}{others} | {n_seeds} | " + " | ".join(cells) + f" | {dead_share:.1%} |"
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
    # The set of the README and of what the pages say about their tables, which is not the largest one.
    (main,) = (study for study in studies if study["title"] == NAME)
    full = [LEGEND, ""]
    for study in studies:
        title = study["title"]
        path = pictures / f"quality-{title.replace(', ', '-').replace(',', '').replace(' ', '-')}.svg"
        write_figure([study], path)
        alt = f"Recall at 100 against bytes per vector, {title}"
        full += [
            f"## {title}",
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
    write_if_changed(folder / "quality_margins.md", margins_table(studies) + "\n")
    write_if_changed(folder / "quality_modes.md", modes_table(main) + "\n\n" + describe(main) + "\n")
    draw(budget_curves(), pictures / "recall_against_bytes.svg", is_narrow=True)
    text = "```{figure} /generated/figures/recall_against_bytes.svg\n:alt: Recall at 100 against bytes per vector\n"
    data = main["data"]
    text += f":width: 100%\n:class: narrow-figure\n\nNeighbours kept against size: {data['n_documents']:,} documents, "
    text += f"{data['n_queries']:,} held-out queries. [Every point, its seeds and its source](measured.md).\n```\n"
    write_if_changed(folder / "quality_picture.md", text)
    for name, table in speed_tables().items():
        write_if_changed(folder / f"{name}.md", table + "\n")
