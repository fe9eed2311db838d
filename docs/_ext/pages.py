"""Everything that is written before Sphinx reads: tables, pictures, lists of messages."""

from __future__ import annotations

from pathlib import Path

import architecture
import figures
import messages
import results
from files import ROOT, write_if_changed

# pages that have their place elsewhere; every other page of the folder is listed below the guide
PLACED = ("index", "notes", "measured", "recipes", "changelog", "research_notes")


def write_pages(folder: Path) -> None:
    """Write the generated fragments below `folder`; the picture that trains a model only when its script changed."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "skcompressae"
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    results.write_results(folder)
    messages.write_messages(folder)
    names = [path.stem for path in sorted((ROOT / "docs").glob("*.md")) if not path.stem.startswith(PLACED)]
    listed = "\n".join(f"../{name}" for name in names)
    toctree = f"```{{toctree}}\n:caption: In detail\n:maxdepth: 1\n\n{listed}\n```\n" if names else ""
    write_if_changed(folder / "more_pages.md", toctree)
    architecture.draw_architecture(pictures / "architecture.svg")
    code = pictures / "code.svg"
    if not code.exists() or code.stat().st_mtime < Path(figures.__file__).stat().st_mtime:
        figures.draw_code(code)
