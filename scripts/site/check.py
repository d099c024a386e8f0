"""Check a built site: every internal link and anchor has its target, and no page loads anything from another host.

python scripts/site/check.py site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
NOT_LOADED = {"canonical", "alternate", "next", "prev", "author", "license"}  # rel of a <link>


class Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes that name something."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        for name in ("href", "src"):
            if name not in given:
                continue
            self.links.append(given[name])
            if (tag, name) in LOADS and given.get("rel") not in NOT_LOADED:
                self.loaded.append(given[name])


def faults(site: Path) -> list[str]:
    """Return one line for each broken link and for each file of another host."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are those of the root
        where = path.relative_to(site)
        found += [f"{where}: loads {link}" for link in page.loaded if urlsplit(link).netloc]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{where}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{where}: {link} names no place on that page")
    return sorted(set(found))


def main() -> None:
    """Print the faults; the exit status is 1 if there are any."""
    site = Path(sys.argv[1]).resolve()
    pages = len(list(site.rglob("*.html")))
    if not pages:
        sys.exit(f"{site} has no pages; build it first: make docs")
    found = faults(site)
    print("\n".join(found) or f"{pages} pages, no broken link, nothing loaded from other hosts")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
