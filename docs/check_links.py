"""Check every link of the built site: inside, that page and anchor exist; outside, that the address is well formed."""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# what a browser fetches, as opposed to what a reader clicks
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
NOT_FETCHED = {"canonical", "prev", "next", "index", "search", "author"}


class Page(HTMLParser):
    """The links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids and addresses."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        for name in ("href", "src"):
            if name in values:
                is_loaded = (tag, name) in LOADED and values.get("rel") not in NOT_FETCHED
                self.links.append((values[name], is_loaded))


def outside_error(link: str) -> str | None:
    """Return what is wrong with an address outside the site."""
    parts = urlsplit(link)
    if parts.scheme == "mailto":
        return None if "@" in parts.path else "no address"
    if parts.scheme not in ("http", "https"):
        return f"unknown scheme {parts.scheme!r}"
    if not parts.hostname or "." not in parts.hostname or any(letter.isspace() for letter in link):
        return "no well-formed address"
    return None


def html_pages(folder: Path) -> list[Path]:
    """Return the pages of a site; what its theme brings along is none."""
    return [path for path in sorted(folder.rglob("*.html")) if path.relative_to(folder).parts[0] != "_static"]


def check_site(folder: Path) -> tuple[int, list[str]]:
    """Return how many links there are, and one line for each that is wrong."""
    folder = folder.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in html_pages(folder)}
    n_links, errors = 0, []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for link, is_loaded in page.links:
            n_links += 1
            if link.startswith(("data:", "javascript:")):
                continue
            if urlsplit(link).scheme or link.startswith("//"):
                if is_loaded:
                    errors.append(f"{where}: {link} is loaded from outside")
                error = outside_error(link)
                if error:
                    errors.append(f"{where}: {link}: {error}")
                continue
            target, _, anchor = link.partition("#")
            target = unquote(target.partition("?")[0])
            goal = (path.parent / target).resolve() if target else path
            if goal.is_dir():
                goal /= "index.html"
            if not goal.exists():
                errors.append(f"{where}: {link}: no such page")
            elif anchor and goal in pages and unquote(anchor) not in pages[goal].anchors:
                errors.append(f"{where}: {link}: no such anchor")
    return n_links, errors


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the built site")
    options = parser.parse_args(arguments)
    n_links, errors = check_site(options.folder)
    if not n_links:
        errors = [f"{options.folder} holds no links: build the site first"]
    print("\n".join(errors) if errors else f"{n_links} links are right")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
