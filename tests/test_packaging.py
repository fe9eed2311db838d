"""What pyproject.toml promises about versions is what `make lowest` tries."""

import re

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python reads TOML from 3.11 on")


def lower_bounds(requirements):
    """Return {name: lower bound} of requirements such as "numpy>=1.24"; others, extras among them, are left out."""
    found = (re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match}


def test_lowest_versions_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", constraints, re.MULTILINE))
    needed = lower_bounds(project["dependencies"])
    assert len(needed) == len(project["dependencies"])
    beside = lower_bounds(project["optional-dependencies"]["test"])
    tested = {name: bound for name, bound in beside.items() if name in pinned}
    for name, bound in {**tested, **needed}.items():
        assert f"{pinned[name]}.".startswith(f"{bound}."), name
    assert set(pinned) == {*needed, *tested, "pyparsing"}
    assert project["requires-python"] == ">=3.10", "the Python that `make lowest` takes"
