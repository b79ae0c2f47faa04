import numpy as np
import pytest

from g3pt import shapes
from g3pt.data.captions import shorten, split_caption


def every(caption: str, draws: int = 200) -> set[str]:
    random = np.random.default_rng(0)
    return {shorten(caption, random) for _ in range(draws)}


def test_every_subset_of_the_attributes_comes_out_as_english() -> None:
    assert every("a tall round axe with a knob and two legs") == {
        f"{head}{tail}"
        for head in ("a tall round axe", "a tall axe", "a round axe", "an axe")
        for tail in ("", " with a knob", " with two legs", " with a knob and two legs")
    }


@pytest.mark.parametrize(
    ("caption", "shortest"),
    [
        ("a long truck", "a truck"),
        ("an old oak chair with arms", "an oak chair"),
        ("a shirt with black and white stripes, a collar, and no sleeves", "a shirt"),
        ("a small red low poly barn with two doors", "a low poly barn"),
        ("a small model of a red barn with two doors", "a small model of a red barn"),
        ("an old wooden fishing boat", "a wooden fishing boat"),
        ("a tall really old wooden fishing boat", "a tall really old wooden fishing boat"),
        ("ice cream", "ice cream"),
        ("red", "red"),
        ("a red", "a red"),
        ("", ""),
        ("Tall tower with a flag", "Tall tower"),
        ("with love", "with love"),
    ],
)
def test_what_is_left_when_all_goes(caption: str, shortest: str) -> None:
    assert shorten(caption, None) == shortest
    assert shortest in every(caption, 400) and caption in every(caption, 400)


def test_phrases_are_cut_where_a_new_one_begins() -> None:
    assert split_caption("a shirt with black and white stripes, a collar, and no sleeves")[1] == [
        "black and white stripes",
        "a collar",
        "no sleeves",
    ]
    assert split_caption("a mug with a handle and two rings")[1] == ["a handle", "two rings"]


def test_captions_of_shapes_keep_their_family_whatever_is_left_out() -> None:
    random = np.random.default_rng(0)
    for caption, (family, _) in shapes.all_captions().items():
        short = shorten(caption, random)
        assert shapes.caption_family(shorten(caption, None)) == family and shapes.caption_family(short) == family, (
            caption,
            short,
        )
        assert len(shorten(caption, None)) < len(caption)


def test_the_draw_follows_from_the_generator() -> None:
    caption = "a tall wide chair with a solid back and four legs"
    assert [shorten(caption, np.random.default_rng(k)) for k in range(8)] == [
        shorten(caption, np.random.default_rng(k)) for k in range(8)
    ]
