"""What the pages say runs, and what was built asks nobody for anything: make docs."""

import doctest
import html
import importlib
import pkgutil
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ntkfast as nf

DOCS = Path(__file__).parent
BUILT = DOCS.parent / "build" / "docs"
sys.path.insert(0, str(DOCS / "ext"))

# These have tests of their own, with the data that they speak of.
ELSEWHERE = {"large-pools", "evidence"}
PAGES = [path.stem for path in sorted(DOCS.glob("*.md")) if path.stem not in ELSEWHERE]


def modules():
    yield from (f"ext/{path.stem}" for path in sorted((DOCS / "ext").glob("*.py")))
    yield from (module.name for module in pkgutil.walk_packages(nf.__path__, "ntkfast."))


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    if name.endswith("__main__"):
        return
    try:
        module = importlib.import_module(name.removeprefix("ext/"))
    except ImportError as error:
        if (error.name or "").startswith("ntkfast"):
            raise
        pytest.skip(str(error))  # a framework or a GPU library that is not there
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def run(page, names):
    """Run the code of a page in the order of the page; return how many blocks there were."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|pycon)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, page, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, page, page, 0)
            result = doctest.DocTestRunner().run(test, clear_globs=False)
            assert result.failed == 0
            names |= test.globs
    return len(blocks)


def test_pages():
    names = {}
    assert run("quickstart", names) >= 8
    for page in set(PAGES) - {"quickstart"}:
        run(page, dict(names))  # a reader comes from the quickstart


class Resources(HTMLParser):
    """Addresses that a browser fetches by itself; links that a reader clicks are none."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag != "a":
            fetched = ("src", "srcset", "href", "poster", "data", "action", "xlink:href")
            self.found += [attrs[name] for name in fetched if attrs.get(name)]
        self.found += re.findall(r"url\(([^)]*)\)", attrs.get("style") or "")


def addresses(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return re.findall(r"url\(([^)]*)\)|@import\s*([^;]*)", text)
    if path.suffix == ".js":
        return re.findall(r"""(?:fetch|import|open|sendBeacon)\(\s*["'`]([^"'`]*)""", text)
    parser = Resources()
    parser.feed(text)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    return parser.found + re.findall(r"""["'](https?:)?(?=//)""", "".join(scripts))


def test_no_request_leaves():
    files = [path for path in BUILT.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"}]
    assert len([path for path in files if path.suffix == ".html"]) >= 15, "make docs builds them"
    outside = {
        (path.name, address)
        for path in files
        for found in addresses(path)
        for address in ([found] if isinstance(found, str) else found)
        if re.match(r"\s*[\"']?(\w+:)?//", address)
    }
    assert outside == set()


def test_requests_are_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link href="https://a.example/a.css"><script src="//b.example/b.js"></script>'
        '<img style="background: url(http://c.example/c)"><a href="https://d.example">d</a>'
        '<script>load("https://e.example")</script>'
    )
    assert len(addresses(page)) == 4
    style = tmp_path / "page.css"
    style.write_text('@import "https://a.example"; a { b: url("https://c.example/font") }')
    assert len(addresses(style)) == 2


def test_every_criterion_and_name_has_its_place():
    page = (BUILT / "criteria.html").read_text(encoding="utf-8")
    assert [
        row.name for row in nf.criteria() if f'id="{row.name}"' not in page.replace("-", "_")
    ] == []
    assert [
        name for name in nf.__all__ if not (BUILT / f"generated/api/{name}.html").exists()
    ] == []


def test_signs_are_explained_to_the_end():
    page = (BUILT / "criteria.html").read_text(encoding="utf-8")
    shown = html.unescape(" ".join(re.sub("<[^>]*>", " ", page).split()))
    legend = " ".join(repr(nf.criteria()).rpartition("\n\n")[2].split())
    meanings = re.split(r"(?:^|[,;] )\S{1,9}: ", legend.removesuffix("."))[1:]
    assert len(meanings) >= 12
    assert [meaning for meaning in meanings if meaning not in shown] == []


def test_formulas_are_drawn():
    page = (BUILT / "criteria.html").read_text(encoding="utf-8")
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= len(
        nf.criteria()
    )
    text = "".join(path.read_text(encoding="utf-8") for path in BUILT.rglob("*.html"))
    assert "$$" not in text


def test_every_example_has_a_page():
    examples = {path.stem for path in (DOCS.parent / "examples").glob("*.py")}
    pages = {path.stem: path for path in (BUILT / "generated/examples").glob("*/*.html")}
    assert examples == set(pages)
    for name in sorted(examples):
        page = pages[name].read_text(encoding="utf-8")
        drawn = re.findall(r'<img alt="[^"]+" class="only-(light|dark)"', page)
        assert drawn == (["light", "dark"] if name.startswith("plot_") else [])
