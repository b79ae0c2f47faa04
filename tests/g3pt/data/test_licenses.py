"""Which licences are open, which name what Objaverse says, and that a list lets in what it names and nothing else."""

import pytest

from g3pt.data import licenses
from g3pt.data.selection import Selection, choose

OPEN = ["CC0-1.0", "public-domain", "CC-BY-4.0", "CC-BY-3.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"]
CLOSED = [
    "",
    "CC-BY",
    "CC-BY-SA-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-SA-4.0",
    "GPL-3.0",
    "by",
    "open",
    "MIT-0",
]


def test_open_licences_ask_for_credit_at_most() -> None:
    assert [name for name in OPEN + CLOSED if licenses.is_open(name)] == OPEN
    assert [name for name in OPEN + CLOSED if licenses.allowed(name, ["open", "CC-BY-SA-4.0"])] == [
        *OPEN,
        "CC-BY-SA-4.0",
    ]


def test_a_list_is_compared_letter_by_letter_and_no_list_lets_all_in() -> None:
    assert [name for name in OPEN + CLOSED if licenses.allowed(name, ["CC-BY-4.0"])] == ["CC-BY-4.0"]
    assert all(licenses.allowed(name, []) for name in OPEN + CLOSED)
    assert licenses.unknown(["open", "MIT", "mit"], {"MIT"}) == ["mit"]


@pytest.mark.parametrize("name", ["mit", "Mit", "apache-2.0", "cc-by-4.0", "cc0-1.0", "Public-Domain"])
def test_case_counts_as_in_spdx_names(name: str) -> None:
    assert not licenses.is_open(name)
    assert not licenses.allowed(name, ["open"]) and not licenses.allowed(name, [name.upper(), "MIT", "CC-BY-4.0"])
    assert licenses.allowed(name, [name])


@pytest.mark.parametrize(("word", "name"), [("by", "CC-BY-4.0"), ("by-nc-sa", "CC-BY-NC-SA-4.0"), ("cc0", "CC0-1.0")])
def test_the_words_of_objaverse_have_names(word: str, name: str) -> None:
    assert licenses.of_objaverse(word) == name


def test_a_word_of_objaverse_that_is_not_known_is_not_open() -> None:
    assert licenses.of_objaverse("editorial") == "editorial" and not licenses.is_open("editorial")


def test_training_understands_open_too() -> None:
    rows = [{"id": name, "license": name} for name in ("MIT", "CC-BY-NC-4.0", "CC0-1.0")]
    selection = Selection(licenses=("open",))
    assert [row["id"] for row in rows if selection.keeps(row)] == ["MIT", "CC0-1.0"]
    assert choose(selection, rows, "data") == "leaves out 1 of 3 training objects: licence CC-BY-NC-4.0 1"
