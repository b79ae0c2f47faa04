import io
import zlib

import pytest
import torch

from g3pt.pictures import prepare_image

Image = pytest.importorskip("PIL.Image")


def square(mode="RGBA", size=(80, 60), box=(10, 20, 40, 40), background=(0, 0, 0, 0), colour=(255, 0, 0, 255)):
    """A coloured rectangle on a background."""
    image = Image.new("RGBA", size, background)
    image.paste(colour, box)
    return image.convert(mode)


def test_transparency_is_background_and_the_object_is_centred_with_a_margin():
    pixels = prepare_image(square(), 40, margin=0.1)
    red = pixels[1] < -0.5  # green is absent only where the object is
    rows, columns = torch.where(red.any(1))[0], torch.where(red.any(0))[0]
    assert pixels[:, 0, 0].abs().max() < 0.02  # the mean colour, to the nearest of 256 values
    assert abs(rows.float().mean() - 19.5) < 1 and abs(columns.float().mean() - 19.5) < 1
    assert 31 <= len(columns) <= 35 and 20 <= len(rows) <= 24  # 30 x 20 pixels in a square of 36


def test_hidden_colour_behind_full_transparency_does_not_leak():
    loud, quiet = square(background=(0, 255, 0, 0)), square(background=(0, 0, 0, 0))
    assert torch.equal(prepare_image(loud, 28), prepare_image(quiet, 28))


def test_an_even_border_counts_as_background():
    on_grey = square("RGB", background=(90, 90, 90, 255))
    cut = prepare_image(on_grey, 40, margin=0.0)
    assert torch.allclose(cut[:, 20, 0], cut[:, 20, 39], atol=1e-3) and cut[1, 20, 20] < 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_gives_finite_pixels(mode):
    source = square("RGB", background=(255, 255, 255, 255))
    image = source.convert("I").convert(mode) if mode == "I;16" else source.convert("RGB").convert(mode)
    pixels = prepare_image(image, 28)
    assert pixels.shape == (3, 28, 28) and torch.isfinite(pixels).all() and pixels.std() > 0.01


def test_sixteen_bit_grey_keeps_its_range():
    import numpy as np

    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = prepare_image(Image.fromarray(ramp), 28)
    assert pixels[0, -3, 14] - pixels[0, 3, 14] > 2


def test_bytes_and_paths_equal_the_image(tmp_path):
    image, buffer = square(), io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    want = prepare_image(image, 28)
    assert torch.equal(prepare_image(buffer.getvalue(), 28), want)
    assert torch.equal(prepare_image(tmp_path / "a.png", 28), want)


def test_an_invisible_image_is_refused():
    with pytest.raises(ValueError, match="fully transparent"):
        prepare_image(Image.new("RGBA", (8, 8), (1, 2, 3, 0)), 28)


def test_formats_that_start_programs_are_not_opened(tmp_path):
    square("RGB").save(tmp_path / "a.eps")
    with pytest.raises(OSError, match="cannot identify"):
        prepare_image(tmp_path / "a.eps", 28)


def test_a_huge_or_broken_picture_is_a_value_error(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    square().save(buffer, "PNG")
    header = bytearray(buffer.getvalue())
    header[16:24] = (20_000).to_bytes(4, "big") * 2  # 400 million pixels, as the header says
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="exceeds limit|decompression bomb"):
        prepare_image(bytes(header), 28)
    monkeypatch.setattr("g3pt.pictures.MAX_PIXELS", 80 * 60 - 1)
    with pytest.raises(ValueError, match="80 x 60 pixels"):
        prepare_image(buffer.getvalue(), 28)
    monkeypatch.undo()
    broken = bytearray(buffer.getvalue())
    broken[broken.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises((ValueError, OSError)):
        prepare_image(bytes(broken), 28)
