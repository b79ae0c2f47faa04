"""The HTML parts of a report: tables, objects to turn, links, and the page around them.

How: markupsafe's `Markup.format` escapes its arguments, so text of data (captions, ids, errors) never becomes markup.
The page is one file that makes no requests: style, viewer and three.js (only if there is something to turn) are
embedded, and its content security policy forbids the network.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

ASSETS = Path(__file__).with_name("assets")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:; base-uri "
    "'none'; form-action 'none'"
)
LINK_LETTERS = 36
LICENCES_WITH_PAGES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC-BY-NC-SA-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
}


@dataclass
class Page:
    """Collects the content of a page.

    `objects` are for the viewer, `tiles` are the numbers at the top, `sections` are (id, title, body). `credits` maps
    an object's id to its author, licence and links. `environments` maps an environment's canonical text to (Source,
    names of what was made there).
    """

    root: Path
    title: str = ""
    kind: str = ""
    objects: list[dict[str, Any]] = field(default_factory=list)
    tiles: list[Markup] = field(default_factory=list)
    sections: list[tuple[str, str, Markup]] = field(default_factory=list)
    credits: dict[str, dict[str, str]] = field(default_factory=dict)
    environments: dict[str, Any] = field(default_factory=dict)

    def add(self, title: str, *body: Markup) -> None:
        """Add a section."""
        self.sections.append((f"s{len(self.sections) + 1}", title, join(body)))

    def tile(self, value: Markup, label: str, note: Markup | str = "") -> None:
        """Add a number at the top."""
        self.tiles.append(
            Markup(
                '<div class="tile"><div class="value">{}</div><div class="label">{}</div><div '
                'class="note">{}</div></div>'
            ).format(value, label, note)
        )

    def heading(self, name: str, path: Path) -> str:
        """A section's title, with the folder's name if another section has the same title."""
        taken = any(title == name for _, title, _ in self.sections)
        return f"{name}: {path.name}" if taken else name

    def credit(self, row: dict[str, Any]) -> None:
        """Record the credits of an object that is shown."""
        names = ("caption", "license", "author", "attribution_url", "source_url")
        self.credits[str(row["id"])] = {name: str(row.get(name) or "") for name in names}

    def view(self, shape: dict[str, Any] | None, label: str, group: str = "", why_not: str = "no mesh") -> Markup:
        """A canvas with an object to turn, or an empty frame with the reason `why_not`.

        Canvases of one group turn together.
        """
        if shape is None:
            return Markup('<div class="empty"><span>{}</span></div>').format(why_not)
        self.objects.append(shape)
        number = len(self.objects) - 1
        return Markup(
            '<canvas tabindex="0" role="img" aria-roledescription="3D view" aria-label="{}. Arrow keys turn it, plus '
            'and minus zoom." data-object="{}" data-group="{}"></canvas>'
        ).format(label, number, group or f"alone-{number}")


# -------------------------------------------------------------------------------------------------------------- pieces


def join(parts: Iterable[Markup]) -> Markup:
    """The parts one after another."""
    return Markup("\n").join(parts)


def text(words: Any, css: str = "") -> Markup:
    """Text of data, of any length and direction."""
    return Markup('<span class="text {}" dir="auto" title="{}">{}</span>').format(css, words, words)


def caption(words: Any) -> Markup:
    """A caption below a figure, clamped to three lines, with the whole text as tooltip."""
    return text(words, "caption")


def paragraph(words: Any, css: str = "") -> Markup:
    """A paragraph."""
    return Markup('<p class="{}">{}</p>').format(css, words)


def warning(words: Any) -> Markup:
    """A one-line warning."""
    return Markup('<p class="warning" dir="auto">{}</p>').format(words)


def command(line: str) -> Markup:
    """A command to type."""
    return Markup('<pre class="command">{}</pre>').format(line)


def table(heads: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str = "") -> Markup:
    """A table whose first column contains row headings. Wide tables scroll."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(cell) for cell in heads)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup('<th scope="row">{}</th>').format(row[0])
            + Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
        )
        for row in rows
    )
    top = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    first = Markup("<thead><tr>{}</tr></thead>").format(head) if heads else Markup("")
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table>{}{}<tbody>{}</tbody></table></div>'
    ).format(caption or "table", top, first, body)


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values as a definition list."""
    return Markup('<dl class="facts">{}</dl>').format(
        Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in pairs)
    )


def folded(summary: str, body: Markup) -> Markup:
    """A part to be opened by a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def cards(items: Iterable[Markup], css: str = "") -> Markup:
    """A grid of figures."""
    return Markup('<div class="cards {}">{}</div>').format(css, join(items))


def card(view: Markup, *lines: Markup, css: str = "") -> Markup:
    """A figure with lines of text below."""
    return Markup('<figure class="card {}">{}<figcaption>{}</figcaption></figure>').format(
        css, view, join(Markup("<div>{}</div>").format(line) for line in lines)
    )


def columns(*parts: Markup) -> Markup:
    """Parts beside each other if there is room."""
    return Markup('<div class="columns">{}</div>').format(join(parts))


def side_by_side(*parts: Markup) -> Markup:
    """Parts with their natural widths, beside each other if they fit."""
    return Markup('<div class="side">{}</div>').format(join(parts))


def packed(parts: Iterable[Markup]) -> Markup:
    """Parts of different heights in newspaper columns."""
    return Markup('<div class="packed">{}</div>').format(join(parts))


def bar(value: Markup, share: float, label: str) -> tuple[Markup, Markup]:
    """A row of a bar chart, for `table`."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}"
    drawn = Markup('<span class="bar"><span class="fill" style="width:{}%"></span></span>').format(width)
    return text(label), Markup('<span class="together">{}{}</span>').format(drawn, value)


def link(address: str, words: str | None = None) -> Markup:
    """A link for an http(s) address; plain text otherwise."""
    try:
        parts = urllib.parse.urlsplit(address.strip())
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return text(address)
    place = (parts.netloc + parts.path).rstrip("/")
    words = words or (place if len(place) <= LINK_LETTERS else place[: LINK_LETTERS - 1] + "…")
    return Markup('<a href="{0}" title="{0}" rel="noopener noreferrer" target="_blank">{1}</a>').format(
        address.strip(), words
    )


def licence(name: str) -> Markup:
    """A licence's name, with a link to its text if it is well known."""
    return link(LICENCES_WITH_PAGES[name], name) if name in LICENCES_WITH_PAGES else text(name or "not stated")


# ---------------------------------------------------------------------------------------------------------------- page


def render(page: Page, made: str) -> str:
    """The whole page as HTML."""
    navigation = Markup("").join(Markup('<a href="#{}">{}</a>').format(key, title) for key, title, _ in page.sections)
    body = join(
        Markup('<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}</section>').format(
            key, title, part
        )
        for key, title, part in page.sections
    )
    values = {
        "policy": POLICY,
        "title": page.title,
        "kind": page.kind,
        "style": Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        "navigation": navigation,
        "tiles": join(page.tiles),
        "body": body,
        "made": made,
        "viewer": _viewer(page.objects),
        "notice": _notice() if page.objects else Markup(""),
    }
    return str(Markup((ASSETS / "page.html").read_text(encoding="utf-8")).format(**values))


def _viewer(objects: list[dict[str, Any]]) -> Markup:
    """The objects, three.js (as an import map of data: URLs) and the viewer; empty without objects."""
    if not objects:
        return Markup("")
    core = (ASSETS / "three.core.min.js").read_text(encoding="utf-8")
    module = (
        (ASSETS / "three.module.min.js").read_text(encoding="utf-8").replace('"./three.core.min.js"', '"three-core"')
    )
    imports = json.dumps({"imports": {"three": _address(module), "three-core": _address(core)}})
    data = json.dumps(objects, separators=(",", ":")).replace("<", "\\u003c")
    viewer = (ASSETS / "viewer.js").read_text(encoding="utf-8")
    return Markup(
        '<script type="importmap">{}</script>\n<script type="application/json" id="objects">{}</script>\n'
        '<script type="module">\n{}</script>'
    ).format(Markup(imports), Markup(data), Markup(viewer))


def _address(script: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script.encode("utf-8")).decode("ascii")


def _notice() -> Markup:
    return Markup(
        '<details class="notice"><summary>This page contains three.js 0.185.1 (MIT '
        "licence)</summary><pre>{}</pre></details>"
    ).format((ASSETS / "LICENSE.three").read_text(encoding="utf-8"))
