"""Reads the built pages for what Sphinx does not look at, without a browser.

    python -m tools.check_html

Dead links and anchors, images without a text of their own, anything loaded from another host,
TeX that reached the page unprocessed, descriptions of the API that Python wrote instead of us, and
launch buttons that lead to no source file.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

# Elements that make a browser fetch something, and the attributes that name it.
LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "prefetch"}
# A script or style that fetches from elsewhere: import("https://..."), from "//...", url(//...).
FETCHES = re.compile(
    r"""(?:import\s*\(?\s*["']|from\s*["']|(?:fetch|importScripts)\s*\(\s*["'`]"""
    r"""|url\s*\(\s*["']?|@import\s*["']|\.src\s*=\s*["'])((?:https?:)?//[^"'`\s)]+)"""
)
# A library's address in a constant, such as sphinx-thebe's, is fetched when a button is pressed.
CODE_HOSTS = re.compile(r"https?://(?:unpkg\.com|cdn\.[\w.]+|cdnjs\.[\w.]+|esm\.sh)[^\s\"']*")
RAW_TEX = re.compile(r"\\(?:begin\{|frac\{|mathbf\{|mathrm\{|eqref\{|cite\{|label\{)|\$\$")
# In a docstring a formula between dollars has lost its backslashes by now.
OF_NO_USE = re.compile(r"Alias for field number|\$[^$\n]+\$|<\w[^>]* at 0x")


def problems(html: Path, root: Path) -> list[str]:
    """Complaints about every page under `html`, the book of the repository `root`."""
    pages = sorted(path for path in html.rglob("*.html") if "_static" not in path.parts)
    if not pages:
        return [f"{html}: no pages"]
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    found = []
    for page in pages:
        soup = _soup(page)
        complaints = [*_dead_links(soup, page, html), *_images(soup), *_outside(soup)]
        complaints += [*_raw_tex(soup), *_api(soup), *_launch_buttons(soup, config, root)]
        found += [f"{page.relative_to(html).as_posix()}: {text}" for text in complaints]
    for sheet in sorted(html.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8"), flags=re.DOTALL)
        for match in FETCHES.finditer(text):
            found.append(f"{sheet.relative_to(html).as_posix()}: loads {match[1]}")
    return found


def _dead_links(soup: BeautifulSoup, page: Path, html: Path) -> list[str]:
    complaints = []
    for element, attribute in ((e, a) for a in ("href", "src") for e in soup.select(f"[{a}]")):
        link = str(element[attribute])
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or link in {"", "#"}:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if target.is_dir():
            target /= "index.html"
        if not target.is_relative_to(html.resolve()) or not target.exists():
            complaints.append(f"dead link {link!r}")
        elif (
            element.name == "a"
            and parts.fragment
            and target.suffix == ".html"
            and unquote(parts.fragment) not in _anchors(target)
        ):
            complaints.append(f"dead anchor {link!r}")
    return complaints


def _images(soup: BeautifulSoup) -> list[str]:
    complaints = []
    for image in soup.find_all("img"):
        alt, source = str(image.get("alt", "")).strip(), str(image.get("src", ""))
        # MyST-NB falls back to the path of the file.
        if not alt or Path(alt).name == Path(source).name:
            complaints.append(f"image {source!r} has no alternative text")
    return complaints


def _outside(soup: BeautifulSoup) -> list[str]:
    complaints = []
    for name, attributes in LOADS.items():
        for element in soup.find_all(name):
            if name == "link" and not LOADING_RELATIONS & set(element.get("rel") or []):
                continue
            for attribute in attributes:
                value = str(element.get(attribute, ""))
                if re.match(r"(https?:)?//", value):
                    complaints.append(f"<{name}> loads {value}")
    for element in soup.find_all(["script", "style"]):
        # Structured data names addresses, it does not load them.
        if element.get("type") == "application/ld+json":
            continue
        text = element.string or ""
        fetched = {match[1] for match in FETCHES.finditer(text)}
        fetched |= {match[0] for match in CODE_HOSTS.finditer(text)}
        complaints += [f"<{element.name}> loads {address}" for address in sorted(fetched)]
    for element in soup.select("[style]"):
        for match in FETCHES.finditer(str(element["style"])):
            complaints.append(f"a style loads {match[1]}")
    return complaints


def _raw_tex(soup: BeautifulSoup) -> list[str]:
    """TeX outside of what MathJax will typeset and outside of code."""
    article = soup.select_one("article.bd-article")
    if article is None:
        return []
    complaints = []
    for text in article.find_all(string=RAW_TEX):
        parents = list(text.parents)
        in_code = any(parent.name in {"pre", "code", "script", "style"} for parent in parents)
        in_math = any("math" in (parent.get("class") or []) for parent in parents)
        if not in_code and not in_math:
            complaints.append(f"unprocessed TeX: {' '.join(text.split())[:80]}")
    return complaints


def _api(soup: BeautifulSoup) -> list[str]:
    """Descriptions that autodoc made up, or could not read."""
    complaints = []
    for text in soup.find_all(string=OF_NO_USE):
        parents = list(text.parents)
        described = any(parent.name == "dl" and "py" in (parent.get("class") or []) for parent in parents)
        in_code = any(parent.name in {"pre", "code"} for parent in parents)
        if described and not in_code:
            complaints.append(f"of no use in the API: {' '.join(text.split())[:80]}")
    return complaints


def _launch_buttons(soup: BeautifulSoup, config: dict, root: Path) -> list[str]:
    """Links into the repository must name files that are in it."""
    repository = config["repository"]
    url, branch = repository["url"].rstrip("/"), repository.get("branch", "main")
    slug = url.removeprefix("https://github.com/")
    places = (
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/",
        f"{url}/blob/{branch}/",
        f"{url}/edit/{branch}/",
    )
    complaints = []
    for link in _links(soup):
        address = str(link["href"]).split("?")[0].split("#")[0]
        for place in places:
            if address.startswith(place):
                path = unquote(address.removeprefix(place))
                if not (root / path).exists():
                    complaints.append(f"button to {path!r}, which is not in the repository")
    return complaints


def _links(soup: BeautifulSoup) -> list[Tag]:
    return list(soup.select("a[href]"))


def _soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def _anchors(page: Path) -> frozenset[str]:
    soup = _soup(page)
    named = [element.get("id") or element.get("name") for element in soup.select("[id], a[name]")]
    return frozenset(str(name) for name in named)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    found = problems(root / "_build" / "html", root)
    print("\n".join(found) or "The pages have no problem.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
