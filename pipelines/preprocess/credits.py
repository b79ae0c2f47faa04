"""Credits for objects of the data, as Markdown: beside every picture of them, and with released weights.

How: `write_credits` writes PICTURE.credits.md beside PICTURE.png, one line per object: id, title, author, licence,
address. Text of the data is escaped, so a name cannot become markup; only http(s) addresses become links. Rows come
from datasets and exports: `id`, `license`, `author`, `url` (or `attribution_url`, `source_url`), and a title as `name`
(or `caption`), all strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g3pt.data.storage import write_atomic

Row = Mapping[str, Any]
CREDITED = (
    "name",
    "license",
    "author",
    "attribution_url",
    "source_url",
)  # columns of a dataset that a credit is made of
LICENCE_PAGES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "MIT": "https://opensource.org/license/mit",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "BSD-3-Clause": "https://opensource.org/license/bsd-3-clause",
}


def credits_file(picture: Path) -> Path:
    """`reconstructions.credits.md` of `reconstructions.png`."""
    return picture.with_suffix(".credits.md")


def write_credits(picture: Path, rows: Sequence[Row], shows: str = "them and a model's reconstructions") -> Path:
    """Write the credits of the objects in a picture, in the picture's order, to a file beside it; return that file.

    `shows` completes the sentence "the picture shows".
    """
    lines = [
        f"# Objects in {plain(picture.name)}",
        "",
        f"From left to right, top to bottom. The objects keep their own licences; the picture shows {shows}.",
        "",
        "| | object | title | author | licence | source |",
        "|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows, start=1):
        cells = (
            str(number),
            plain(row["id"]),
            plain(row.get("name") or row.get("caption", "")),
            author(row),
            licence(row),
            link(address(row)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    file = credits_file(picture)
    write_atomic(file, ("\n".join(lines) + "\n").encode("utf-8"))
    return file


def by_author(rows: Iterable[Row]) -> list[str]:
    """One Markdown list item per licence and author: number of objects, and their addresses."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["license"], row["author"]), []).append(row)
    items = []
    for _, group in sorted(groups.items()):
        links = [link(url) for url in sorted({address(row) for row in group} - {""})]
        count = f"{len(group)} object{'s' * (len(group) > 1)}"
        items.append(
            f"- {licence(group[0])}, {author(group[0])}: {count}"
            + (f" ({', '.join(links[:8])}{', ...' if len(links) > 8 else ''})" if links else "")
        )
    return items


def author(row: Row) -> str:
    """The author's name, escaped."""
    return plain(row.get("author", "")) or "author not stated"


def licence(row: Row) -> str:
    """The licence's name, with a link to its text if known."""
    name = str(row.get("license") or "none stated")
    return f"[{plain(name)}]({LICENCE_PAGES[name]})" if name in LICENCE_PAGES else plain(name)


def address(row: Row) -> str:
    """The object's web address; empty if unknown."""
    return str(row.get("url") or row.get("attribution_url") or row.get("source_url") or "")


def link(url: str) -> str:
    """A link to a web address; anything else becomes plain text."""
    return f"<{url}>" if re.fullmatch(r"https?://[^\s<>|`]+", url) else plain(url)


def plain(text: Any) -> str:
    """Text of the data on one line of Markdown, with markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(str(text).split()))
