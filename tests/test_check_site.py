"""Which links of a site lead nowhere."""

import logging
import re
from pathlib import Path

import pytest

from check_site import broken_links, on_post_build


@pytest.fixture
def site(tmp_path):
    """A site of two pages whose links all lead somewhere."""
    (tmp_path / "guide").mkdir()
    (tmp_path / "style.css").write_text("")
    (tmp_path / "index.html").write_text(
        '<link href="style.css"><h1 id="start"><a href="guide/a%20page.html#part">a</a></h1>'
        '<a href="#start">b</a><a href="https://example.org/no/page">c</a><img src="data:,">'
    )
    (tmp_path / "guide" / "a page.html").write_text(
        '<a name="part"></a><a href="../index.html">a</a>'
    )
    return tmp_path


def add(site, html):
    page = site / "guide" / "a page.html"
    page.write_text(page.read_text() + html)


def test_a_site_without_broken_links(site):
    assert broken_links(site) == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="../guide.md">', "the link ../guide.md leads to no file of the site"),
        ('<a href="index.html">', "the link index.html leads to no file of the site"),
        ('<img src="figure.png">', "the link figure.png leads to no file of the site"),
        ('<a href="../index.html#end">', "the link ../index.html#end leads to no place on that"),
        ('<a href="#end">', "the link #end leads to no place on that page"),
        (
            '<script src="https://example.org/a.js"></script>',
            "<script> loads https://example.org/a.js from outside",
        ),
        ('<link href="//example.org/a.css">', "<link> loads //example.org/a.css from outside"),
    ],
)
def test_what_is_wrong_is_told_with_the_page(site, html, problem):
    add(site, html)
    (found,) = broken_links(site)
    assert found.startswith(f"guide/a page.html: {problem}")


def test_the_page_for_what_is_absent_is_not_looked_at(site):
    (site / "404.html").write_text('<a href="/index.html">')
    assert broken_links(site) == []


def test_each_is_a_warning_of_mkdocs(site, caplog):
    add(site, '<a href="nowhere.html">')
    on_post_build({"site_dir": str(site)})
    ((logger, level, _),) = caplog.record_tuples
    assert logger.startswith("mkdocs.")
    assert level == logging.WARNING


def test_the_build_counts_its_warnings():
    """MkDocs drops them before it counts them if it is told to be quiet."""
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\t.*mkdocs build(.*)$", makefile, re.MULTILINE)
    assert "-q" not in command
    settings = (Path(__file__).parents[1] / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^strict: true\b", settings, re.MULTILINE)
