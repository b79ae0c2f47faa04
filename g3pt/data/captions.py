"""Captions with some attributes left out, so that a generator is also trained on prompts shorter than its captions.

How: "a tall round table with a thick top and four legs" has a head ("a tall round table") and phrases after "with".
Each phrase may be left out, and each plain adjective of size, shape or colour between the article and a noun of at most
three words. Any other text loses only what follows its "with"; a text without either is kept: no word is dropped by
guess ("ice cream" has no adjective). Phrases are separated at commas and at an "and" before a determiner ("black and
white stripes" is one phrase).

Ours: all of it. A text encoder trained on full captions alone gave a chair for "a long truck" (LOG.md).
"""

from __future__ import annotations

import re

import numpy as np

ADJECTIVES = {
    "big", "small", "large", "little", "tiny", "huge", "tall", "low", "high", "short", "long", "wide", "narrow",
    "broad", "thick", "thin",
    "slim", "deep", "shallow", "flat", "round", "square", "straight", "curved", "tapered", "flared", "conical", "open",
    "closed", "old", "new",
    "modern", "simple", "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey",
    "gray",
}  # fmt: skip
FIXED = (["low", "poly"], ["high", "poly"])  # the adjective belongs to the noun
DETERMINERS = (
    "a",
    "an",
    "the",
    "its",
    "no",
    "some",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "twelve",
    "many",
    "several",
)
NEXT_PHRASE = re.compile(rf",\s+(?:and\s+)?|\s+and\s+(?=(?:{'|'.join(DETERMINERS)})\b)")


def split_caption(caption: str) -> tuple[list[str], list[str]]:
    """The words before the first " with ", and the phrases after it."""
    head, _, tail = caption.partition(" with ")
    return head.split(), [phrase for phrase in NEXT_PHRASE.split(tail) if phrase]


def droppable(words: list[str]) -> list[int]:
    """Indices of the adjectives that may be dropped from a head "article adjectives noun"; none for heads
    of another form.
    """
    if not words or words[0] not in ("a", "an"):
        return []
    noun = next(
        (
            place
            for place in range(1, len(words))
            if words[place] not in ADJECTIVES or words[place : place + 2] in FIXED
        ),
        len(words),
    )
    return list(range(1, noun)) if 1 <= len(words) - noun <= 3 and "of" not in words else []


def shorten(caption: str, random: np.random.Generator | None) -> str:
    """The caption with each attribute kept with probability 1/2, or with none of them if `random` is None."""
    words, phrases = split_caption(caption)
    places = droppable(words)
    kept = (
        np.zeros(len(places) + len(phrases), bool)
        if random is None
        else random.random(len(places) + len(phrases)) < 0.5
    )
    if kept.all():
        return caption
    dropped = {place for place, keep in zip(places, kept[: len(places)], strict=True) if not keep}
    words = [word for place, word in enumerate(words) if place not in dropped]
    if dropped:
        words[0] = "an" if words[1][0] in "aeiou" else "a"
    tail = [phrase for phrase, keep in zip(phrases, kept[len(places) :], strict=True) if keep]
    return " ".join(words) + (" with " + _listed(tail) if tail else "")


def _listed(phrases: list[str]) -> str:
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)
