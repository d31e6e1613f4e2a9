"""A hook of MkDocs: every link of the finished site leads to something that is in it.

MkDocs checks the links of Markdown alone. Those of tutorials, of the theme and of the reference are
looked at here, in the pages as they are written. A link that leads nowhere is a warning, with which
a strict build fails; so is anything that a page loads from outside.
"""

import logging
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

_LOG = logging.getLogger("mkdocs.hooks.check_site")
_TARGETS = {"href", "src"}
_EMBEDDED = {"data", "blob"}


class Page(NamedTuple):
    """What a page refers to, and what in it can be referred to.

    Attributes:
        links: Element and address of each reference.
        anchors: The names of places in it.
    """

    links: list[tuple[str, str]]
    anchors: set[str]


def on_post_build(config: Any) -> None:
    """Warn of every link that leads nowhere.

    Args:
        config: MkDocs' configuration.
    """
    for problem in broken_links(Path(config["site_dir"])):
        _LOG.warning(problem)


def broken_links(site: Path) -> list[str]:
    """Look for links that lead nowhere, and for what is loaded from outside.

    Args:
        site: The directory of the site.

    Returns:
        A line for each.
    """
    site = site.resolve()
    pages = {path: read_page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    return sorted(
        {
            f"{path.relative_to(site)}: {problem}"
            for path, page in pages.items()
            # Shown in place of whatever is absent: its own links count from the root of a server.
            if path.name != "404.html"
            for problem in _problems(path, page, pages)
        }
    )


def read_page(text: str) -> Page:
    """Find the links and the anchors of a page.

    Args:
        text: HTML.

    Returns:
        Both.
    """
    page = Page([], set())
    parser = _Parser(page)
    parser.feed(text)
    parser.close()
    return page


class _Parser(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self._page.anchors.add(value)
            elif name in _TARGETS:
                self._page.links.append((tag, value))


def _problems(path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for tag, link in page.links:
        address = urlsplit(link)
        if address.scheme in _EMBEDDED:
            continue
        if address.scheme or address.netloc:
            if tag != "a":
                yield f"<{tag}> loads {link} from outside"
            continue
        target = (path.parent / unquote(address.path)).resolve() if address.path else path
        if not target.is_file():
            yield f"the link {link} leads to no file of the site"
        elif (
            address.fragment
            and target in pages
            and unquote(address.fragment) not in pages[target].anchors
        ):
            yield f"the link {link} leads to no place on that page"
