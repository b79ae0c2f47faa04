import io
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.data.pictures import FEW_TRANSPARENT, ONE_COLOUR, WHOLE, check_header, cut_out, prepare_image

Image = pytest.importorskip("PIL.Image")


def square(
    mode: str = "RGBA",
    size: Any = (80, 60),
    box: tuple[int, int, int, int] = (10, 20, 40, 40),
    background: Any = (0, 0, 0, 0),
    colour: Any = (255, 0, 0, 255),
) -> Any:
    """A coloured rectangle on a background."""
    image = Image.new("RGBA", size, background)
    image.paste(colour, box)
    return image.convert(mode)


def test_transparency_is_background_and_the_object_is_centred_with_a_margin() -> None:
    pixels = prepare_image(square(), 40, margin=0.1)
    red = pixels[1] < -0.5  # green is absent only where the object is
    rows, columns = torch.where(red.any(1))[0], torch.where(red.any(0))[0]
    assert pixels[:, 0, 0].abs().max() < 0.02  # the mean colour, to the nearest of 256 values
    assert abs(rows.float().mean() - 19.5) < 1 and abs(columns.float().mean() - 19.5) < 1
    assert 31 <= len(columns) <= 35 and 20 <= len(rows) <= 24  # 30 x 20 pixels in a square of 36


def test_hidden_colour_behind_full_transparency_does_not_leak() -> None:
    loud, quiet = square(background=(0, 255, 0, 0)), square(background=(0, 0, 0, 0))
    assert torch.equal(prepare_image(loud, 28), prepare_image(quiet, 28))


def drawing(background: Any, size: Any = (90, 70)) -> Any:
    """A red ring with a blue bar through it: what is inside the ring is not the edge's background."""
    from PIL import ImageDraw

    image = Image.new("RGBA", size, background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 10, 60, 50), outline=(220, 20, 20, 255), width=6)
    draw.rectangle((30, 26, 80, 34), fill=(20, 20, 200, 255))
    return image


@pytest.mark.parametrize(
    ("colour", "kind"), [((255, 255, 255), "PNG"), ((90, 90, 90), "PNG"), ((255, 255, 255), "JPEG"), ((0, 0, 0), "GIF")]
)
def test_an_even_background_is_as_good_as_alpha(colour: Any, kind: str) -> None:
    from PIL import ImageDraw

    by_alpha = drawing((0, 0, 0, 0))
    for place in ((40, 20), (40, 40)):  # the ring's hole keeps its colour
        ImageDraw.floodfill(by_alpha, place, (*colour, 255))
    buffer, large = (
        io.BytesIO(),
        drawing((*colour, 255)).resize((720, 560), Image.Resampling.NEAREST),
    )  # JPEG's noise reaches 8 pixels
    large.convert("RGB").save(buffer, kind)
    got, warning = cut_out(buffer.getvalue(), 28)
    assert warning == "" and (
        got - cut_out(by_alpha.resize(large.size, Image.Resampling.NEAREST), 28)[0]
    ).abs().mean() < (0.15 if kind == "JPEG" else 0.01)


def test_an_object_that_touches_the_edge_is_cut_out_of_its_background() -> None:
    image = square("RGB", box=(30, 40, 50, 60), background=(255, 255, 255, 255))  # 20 of 280 pixels of the edge are red
    pixels, warning = cut_out(image, 20, margin=0.0)
    assert warning == "" and (pixels[1] < 0).all(), "nothing but red"


def test_a_picture_without_alpha_and_even_background_is_used_whole_and_says_so() -> None:
    import numpy as np

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert cut_out(noise, 28)[1] == WHOLE and cut_out(square(), 28)[1] == ""
    with pytest.warns(UserWarning, match="no background that is transparent or of one colour: used whole"):
        assert torch.equal(prepare_image(noise, 28), cut_out(noise, 28)[0])
    assert cut_out(Image.new("RGB", (9, 9), (5, 200, 5)), 28)[1] == ONE_COLOUR


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (300, 2), (260, 260)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1"])
def test_tiny_huge_and_thin_pictures_fit(size: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.data.pictures.MAX_SIDE", 100)
    pixels, _ = cut_out(Image.new(mode, size, 1 if mode == "1" else (200, 10, 10, 255)[: len(mode)]), 28)
    assert pixels.shape == (3, 28, 28) and torch.isfinite(pixels).all()


def test_a_thin_picture_needs_no_square_of_its_length() -> None:
    buffer = io.BytesIO()
    Image.new("L", (65_000, 1), 9).save(buffer, "JPEG")  # its square would take 17 GB
    assert cut_out(buffer.getvalue(), 28)[0].shape == (3, 28, 28)


def test_a_huge_picture_shows_what_a_small_one_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.data.pictures.MAX_SIDE", 100)
    small = drawing((0, 255, 0, 0))
    huge = small.resize((90 * 8, 70 * 8), Image.Resampling.NEAREST)
    assert (cut_out(huge, 28)[0] - cut_out(small, 28)[0]).abs().mean() < 0.05


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_alpha_counts_in_every_mode_that_has_it(mode: str) -> None:
    buffer = io.BytesIO()
    square(mode).save(buffer, "PNG")
    pixels, warning = cut_out(buffer.getvalue(), 28, margin=0.1)
    assert warning == "" and pixels[:, 0, 0].abs().max() < 0.02 and pixels[:, 14, 14].abs().max() > 0.3


def test_a_picture_is_turned_as_its_exif_says_and_used_where_that_is_garbage() -> None:
    upright, exif = square(box=(10, 20, 40, 30)), Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned, broken = io.BytesIO(), io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    upright.save(broken, "PNG", exif=b"Exif\0\0garbage")
    want = prepare_image(upright, 28)
    assert torch.equal(prepare_image(turned.getvalue(), 28), want) and torch.equal(
        prepare_image(broken.getvalue(), 28), want
    )


def test_numbers_that_are_none_are_black() -> None:
    import numpy as np

    values = np.full((20, 20), np.nan, dtype=np.float32)
    values[5:15, 5:15] = np.linspace(1, 2, 10)
    assert torch.isfinite(cut_out(Image.fromarray(values), 28)[0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_gives_finite_pixels(mode: str) -> None:
    source = square("RGB", background=(255, 255, 255, 255))
    image = source.convert("I").convert(mode) if mode == "I;16" else source.convert("RGB").convert(mode)
    pixels = prepare_image(image, 28)
    assert pixels.shape == (3, 28, 28) and torch.isfinite(pixels).all() and pixels.std() > 0.01


def test_sixteen_bit_grey_keeps_its_range() -> None:
    import numpy as np

    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels, _ = cut_out(Image.fromarray(ramp), 28)
    assert pixels[0, -3, 14] - pixels[0, 3, 14] > 2


def test_bytes_and_paths_equal_the_image(tmp_path: Path) -> None:
    image, buffer = square(), io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    want = prepare_image(image, 28)
    assert torch.equal(prepare_image(buffer.getvalue(), 28), want)
    assert torch.equal(prepare_image(tmp_path / "a.png", 28), want)


def test_an_invisible_image_is_refused() -> None:
    with pytest.raises(ValueError, match="fully transparent"):
        prepare_image(Image.new("RGBA", (8, 8), (1, 2, 3, 0)), 28)


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    square("RGB").save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="image is none of PNG, JPEG"):
        prepare_image(tmp_path / "a.eps", 28)


def test_a_huge_or_broken_picture_is_a_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    square().save(buffer, "PNG")
    header = bytearray(buffer.getvalue())
    header[16:24] = (20_000).to_bytes(4, "big") * 2  # 400 million pixels, as the header says
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="exceeds limit|decompression bomb"):
        prepare_image(bytes(header), 28)
    monkeypatch.setattr("g3pt.data.pictures.MAX_PIXELS", 80 * 60 - 1)
    with pytest.raises(ValueError, match="80 x 60 pixels"):
        prepare_image(buffer.getvalue(), 28)
    monkeypatch.undo()
    broken = bytearray(buffer.getvalue())
    broken[broken.index(b"IDAT") + 6] ^= 0xFF
    for content in (bytes(broken), buffer.getvalue()[:-40]):
        with pytest.raises(ValueError, match="image cannot be read: "):
            prepare_image(content, 28)
    check_header(buffer.getvalue()[:-40])


def test_a_few_transparent_pixels_are_no_background() -> None:
    """A photograph with rounded corners, a stray pixel in a drawing on white, and an object that fills its picture."""
    import numpy as np
    from PIL import ImageDraw

    white = drawing((255, 255, 255, 255), (900, 700))
    want, warning = cut_out(white, 28)
    assert warning == ""
    rounded = Image.new("RGBA", white.size, (0, 255, 0, 0))
    mask = Image.new("L", white.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 899, 699), 60, fill=255)
    rounded.paste(white, mask=mask)
    stray = white.copy()
    stray.putpixel((800, 600), (255, 0, 0, 0))
    for picture in (rounded, stray):
        got, warning = cut_out(picture, 28)
        assert warning == FEW_TRANSPARENT and torch.equal(got, want)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8) | 128)
    noise.putpixel((3, 3), (0, 0, 0, 0))
    assert cut_out(noise, 28)[1] == f"{FEW_TRANSPARENT}; {WHOLE}"
    margin = Image.new("RGBA", (500, 500))
    margin.paste((255, 0, 0, 255), (1, 1, 499, 499))  # .8 % of the picture, all of its border
    assert cut_out(margin, 28, 0.0)[1] == "" and (cut_out(margin, 28, 0.0)[0][1] < 0).all()


def test_of_an_animation_the_first_picture_is_used() -> None:
    buffer, frames = io.BytesIO(), [square(colour=colour).convert("P") for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    single = io.BytesIO()
    frames[0].save(single, "GIF")
    assert torch.equal(cut_out(buffer.getvalue(), 28)[0], cut_out(single.getvalue(), 28)[0])
