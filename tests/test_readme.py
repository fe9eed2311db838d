"""Every Python snippet of the README runs, in order, in one namespace; every command it names exists."""

import re

from conftest import ROOT
from documented_examples import code_blocks

README = ROOT / "README.md"


def test_python_snippets_run(capsys):
    snippets = code_blocks(README, "python")
    assert len(snippets) >= 3
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["(4990, 256) 8 True", "True (10, 4990)"]


def test_make_targets_and_links_exist():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (README.parent / link).exists(), link


def test_measured_section_is_what_the_result_files_say(benchmark):
    readme_section = benchmark("readme_section")
    text = README.read_text(encoding="utf-8")
    written = text.split(readme_section.BEGIN)[1].split(readme_section.END)[0]
    assert written == readme_section.section(readme_section.budget_curves())


def test_rows_of_other_settings_are_no_part_of_the_defaults_figures(benchmark):
    mean_recall = benchmark("readme_section").mean_recall
    rows = [{"method": "ours", "params": {"k": 16}, "recall_at_100": 0.7}]
    for name in ("recipe", "usage_power", "neighborhood_weight", "flattening"):
        rows.append({"method": "ours", "params": {"k": 16, name: 1}, "recall_at_100": 0.9})
    assert mean_recall(rows, method="ours", k=16) == 0.7
