"""Procedural objects: determinism, closed parts, captions checked by a ruler, and enough variety within each family."""

import numpy as np
import pytest

from g3pt import shapes
from g3pt.shapes import families, measure, primitives


def _of(family: str, count: int, seed: int = 0) -> list[shapes.Shape]:
    return [shapes.make_shape(f"shapes/{family}-{index:05d}", seed) for index in range(count)]


def test_the_universe_of_ids() -> None:
    ids = shapes.shape_ids()
    assert len(ids) == len(set(ids)) == shapes.NUM_SHAPES
    assert len(shapes.FAMILIES) >= 12
    assert {shapes.parse_id(shape_id)[0] for shape_id in ids} == set(shapes.FAMILIES)


@pytest.mark.parametrize(
    "bad", ["chair-00001", "shapes/dragon-00001", "shapes/chair-1", "shapes/chair-0000x", "shapes/chair", ""]
)
def test_other_ids_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="not a shape id"):
        shapes.make_shape(bad)


def test_an_id_and_seed_fix_the_object() -> None:
    first, again = shapes.make_shape("shapes/lamp-00007"), shapes.make_shape("shapes/lamp-00007")
    assert first.caption == again.caption and first.attributes == again.attributes
    np.testing.assert_array_equal(first.vertices, again.vertices)
    other = shapes.make_shape("shapes/lamp-00007", seed=1)
    assert other.attributes != first.attributes


def test_an_id_may_name_its_seed() -> None:
    assert shapes.seeded_id("shapes/lamp-00007", 0) == "shapes/lamp-00007"
    assert shapes.seeded_id("shapes/lamp-00007", 12) == "s12/shapes/lamp-00007"
    named, given = shapes.make_shape("s12/shapes/lamp-00007"), shapes.make_shape("shapes/lamp-00007", seed=12)
    assert named.id == "s12/shapes/lamp-00007" and named.caption == given.caption
    np.testing.assert_array_equal(named.vertices, given.vertices)
    np.testing.assert_array_equal(shapes.make_shape(named.id, seed=3).vertices, named.vertices)
    for bad in ("s0/shapes/lamp-00007", "s01/shapes/lamp-00007", "s1/s2/shapes/lamp-00007", "s1/lamp-00007", "s1/"):
        with pytest.raises(ValueError, match="not a shape id"):
            shapes.make_shape(bad)


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_parts_are_closed_outward_and_thick(family: str) -> None:
    import trimesh

    for shape in _of(family, 12):
        assert np.abs(shape.vertices).max() == pytest.approx(shapes.BOX)
        np.testing.assert_allclose(shape.vertices.min(axis=0), -shape.vertices.max(axis=0), atol=1e-9)
        for part in trimesh.Trimesh(shape.vertices, shape.faces, process=False).split(only_watertight=False):
            assert part.is_watertight and part.is_winding_consistent and part.volume > 0, shape.id
            assert part.extents.min() >= 0.075 * 2 * shapes.BOX, (shape.id, part.extents)


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_every_attribute_changes_the_geometry(family: str) -> None:
    spec = families.ALL[family]
    assert len(spec.ranges) >= 5 and len(spec.slots) >= 2
    moved = set()
    for index in range(24):
        if moved == set(spec.ranges):
            break
        base = spec.draw(np.random.default_rng(index))
        occupied = _occupied(family, base)
        for name, span in spec.ranges.items():
            low, high = span.pick(base) if hasattr(span, "pick") else span
            if name in moved:
                continue
            far = high if base[name] < (low + high) / 2 else low
            if (occupied != _occupied(family, base | {name: far})).mean() > 0.001:
                moved.add(name)
    assert len(moved) >= 5 and moved == set(spec.ranges), set(spec.ranges) - moved


def _occupied(family: str, attributes: dict) -> np.ndarray:
    """Occupancy on a fixed grid in [-1, 1]^3, by the ruler's counting with two far cubes that fix the bounding box."""
    vertices, faces = shapes.build(family, attributes)
    corners = [primitives.box(tuple(np.full(3, s)), (0.01, 0.01, 0.01)) for s in (-1.0, 1.0)]
    return measure.occupancy(*primitives.join([(vertices, faces), *corners]), cells=40).grid


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_the_caption_tells_what_a_ruler_finds(family: str) -> None:
    seen: dict[str, set[str]] = {}
    for shape in _of(family, 24, seed=3):
        stated = shapes.caption_attributes(shape.caption)
        assert measure.measure(family, shape.vertices, shape.faces) == stated, shape.id
        assert family in shape.caption.split() and shapes.caption_family(shape.caption) == family
        for slot, word in stated.items():
            assert set(word.split()) <= set(shape.caption.split())
            seen.setdefault(slot, set()).add(word)
    assert seen == {slot: set(words) for slot, words in families.ALL[family].slots.items()}, (
        "every value must be met, and measured"
    )


def test_a_ruler_on_shapes_made_by_hand() -> None:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    ruler = measure.occupancy(ball.vertices, ball.faces, 64)
    assert ruler.grid.mean() == pytest.approx(np.pi / 6, rel=0.02)
    top = trimesh.creation.box((1.0, 0.1, 1.0)).apply_translation((0, 0.95, 0))
    legs = [
        trimesh.creation.box((0.15, 0.95, 0.15)).apply_translation((x, 0.475, z))
        for x in (-0.4, 0.4)
        for z in (-0.4, 0.4)
    ]
    stand = trimesh.util.concatenate([top, *legs])
    found = measure.measure("table", stand.vertices, stand.faces)
    assert found == {"size": "tall", "shape": "square", "top": "a thin top", "base": "four legs"}


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_a_ruler_reads_solids_too(family: str) -> None:
    """Solids of 64 cells are a voxel thicker on every side, and that is what a tokenizer learns to give back."""
    from g3pt.geometry.watertight import watertight

    for shape in _of(family, 3, seed=1):
        solid = watertight(shape.vertices, shape.faces, 64)
        assert measure.measure(family, solid.vertices, solid.faces) == shapes.caption_attributes(shape.caption), (
            shape.id
        )


def test_a_ruler_never_trips_over_what_is_no_object_of_its_family() -> None:
    vertices, faces = shapes.make_shape("shapes/boat-00003").vertices, shapes.make_shape("shapes/boat-00003").faces
    for family in shapes.FAMILIES:
        for part in (faces, faces[:40], faces[:1], faces[:0]):
            found = measure.measure_any(family, vertices, part)
            assert set(found) <= set(families.ALL[family].slots)
    with pytest.raises(ValueError, match="unknown family"):
        measure.measure_any("dragon", vertices, faces)


def test_captions_are_one_closed_vocabulary_and_unambiguous() -> None:
    captions = shapes.all_captions()
    assert len(captions) == sum(len(f.combinations()) for f in families.ALL.values()), (
        "two combinations share a caption"
    )
    assert {word for caption in captions for word in caption.split()} == set(shapes.caption_vocabulary())
    assert max(map(len, captions)) <= 80
    assert shapes.caption_family("a red dragon") is None and shapes.caption_family("my chair and a table") is None
    assert shapes.caption_family("a very old chair.") == "chair"
    with pytest.raises(ValueError, match="not a caption"):
        shapes.caption_attributes("a chair")


def test_a_training_split_of_400_leaves_combinations_out_but_shows_every_value() -> None:
    random = np.random.default_rng(0)
    ids = shapes.shape_ids()
    train = [shapes.make_shape(ids[k]).caption for k in random.choice(len(ids), 400, replace=False)]
    values = {
        (family, slot, word) for family, slots in map(shapes.all_captions().get, train) for slot, word in slots.items()
    }
    assert values == {
        (f.name, slot, word) for f in families.ALL.values() for slot, words in f.slots.items() for word in words
    }
    unseen = shapes.unseen_captions(train, 100, seed=5)
    assert len(set(unseen)) == 100 and not set(unseen) & set(train)
    assert unseen == shapes.unseen_captions(reversed(train), 100, seed=5), (
        "the order of the training captions must not matter"
    )
    counts = [sum(shapes.caption_family(c) == family for c in unseen) for family in shapes.FAMILIES]
    assert min(counts) >= 5 and max(counts) - min(counts) <= 2
    with pytest.raises(ValueError, match="no unseen caption"):
        shapes.unseen_captions(shapes.all_captions(), 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_within_a_family_objects_differ(family: str) -> None:
    """Median nearest-neighbour Chamfer >= 0.02 between final solids, whose noise (two samples
    of one solid) is taken out.
    """
    assert nearest_neighbour_chamfer(family) >= 0.02


def nearest_neighbour_chamfer(family: str, count: int = 40) -> float:
    """Median over objects of the distance to the nearest other one: 500 points per side, each to 20,000 of the other.

    Directed distance to a dense sample: sqrt(d^2 + noise^2) at most, so sqrt(d^2 - noise^2) is what the geometry adds.
    """
    from g3pt.geometry.surface import sample_surface
    from g3pt.geometry.watertight import watertight
    from g3pt.metrics.pairwise import nearest_objects

    clouds, again = [], []
    for index, shape in enumerate(_of(family, count)):
        solid = watertight(shape.vertices, shape.faces, 64)
        for seed, kept in enumerate((clouds, again) if index < 8 else (clouds,)):
            rng = np.random.default_rng([index, seed])
            kept.append(sample_surface(solid.vertices, solid.faces, 20_000, rng)[:, :3])
    _, distances = nearest_objects(clouds, clouds, num_queries=500, exclude=range(count), keep=6)
    _, noise = nearest_objects(again, clouds, num_queries=500, keep=1)
    return float(np.sqrt(np.median(distances) ** 2 - np.median(noise) ** 2))


def test_the_demo_prompts_with_captions_of_the_grammar() -> None:
    """The text encoder that the demo trains knows nothing else: a caption
    with an attribute left out gives another family.
    """
    from pipelines.demo.quickstart import PROMPTS

    assert set(PROMPTS) <= set(shapes.all_captions())
    assert len({shapes.caption_family(text) for text in PROMPTS}) == len(PROMPTS)
