"""The documentation pages (README.md, CONTRIBUTING.md, CHANGELOG.md, tests/README.md, docs/): their blocks,
commands and links.
"""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")
COMMENT = re.compile(r"(^|\s{2,})# .*")
INLINE = re.compile(r"`(python (?:jobs/|-m |docs/|benchmarks/)[^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # relative to the repository
    line: int  # of its first line
    language: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A line `python PROGRAM ARGS` and what precedes it; `program` is jobs/x.py or `-m package.module`."""

    line: str
    submit: tuple[str, ...]  # `ray job submit ...` before `--`; empty for a command that is typed by itself
    program: str
    args: tuple[str, ...]


def pages() -> list[Path]:
    """All pages, README.md first, without the credits of pictures."""
    return [REPOSITORY / name for name in TOP] + sorted(
        path for path in (REPOSITORY / "docs").rglob("*.md") if not path.name.endswith(".credits.md")
    )


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page, including those in lists."""
    found, fence = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = re.match(r"\s*```(\w*)$", line)
        if mark and fence is None:
            fence, first, indent, lines = mark[1], number + 1, len(line) - len(line.lstrip()), []
        elif mark:
            found.append(Block(name(page), first, fence, tuple(lines)))
            fence = None
        elif fence is not None:
            lines.append(line[indent:])
    assert fence is None, f"{name(page)}: a block is not closed"
    return tuple(found)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """All shell lines of all pages in reading order, without comments and duplicates."""
    lines = [
        COMMENT.sub("", line).strip()
        for page in pages()
        for block in blocks(page)
        if block.language == "sh"
        for line in block.lines
    ]
    return list(dict.fromkeys(filter(None, lines)))


def command(line: str) -> Command | None:
    """The Python program that a line starts, or None."""
    words = shlex.split(line)
    submit = tuple(words[: words.index("--")]) if words[:3] == ["ray", "job", "submit"] else ()
    words = words[len(submit) + 1 :] if submit else words
    if words[:1] != ["python"] or len(words) < 2:
        return None
    count = 3 if words[1] == "-m" else 2
    return Command(line, submit, " ".join(words[1:count]), tuple(words[count:]))


def commands() -> list[Command]:
    """All commands that start a Python program, from blocks and, if flags or paths follow, from sentences;
    no duplicates.
    """
    inline = [found for page in pages() for found in INLINE.findall(prose(page)) if len(found.split()) > 3]
    found = [command(line) for line in dict.fromkeys([*shell_lines(), *inline])]
    return [one for one in found if one is not None]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures."""
    text = prose(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
