"""A picture of an object becomes the image encoder's input: the object alone, in the middle of a small square.

How: transparent pixels are the background if they are at least MASK_SHARE of the picture or half of its border. If they
are fewer (the rounded corners of a photograph, stray pixels) a warning says so, and the picture is treated as one
without transparency: if nine tenths of its opaque border have one colour, the pixels of that colour connected to the
border are background; otherwise the picture is used whole, with a warning. The square around the object is filled with
the mean colour, which normalises to zero: on white a small encoder trained from scratch learnt nothing (LOG.md). Of an
animation or a file of several pages the first picture is used.

Ours: all of it.
Shapes: H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)  # what DINOv2 was trained with
IMAGE_STD = (0.229, 0.224, 0.225)
BORDER_TOLERANCE = 12  # of 255: largest distance of a background pixel from the background's colour
BORDER_SHARE = 0.9  # share of the border that a background covers; the object may touch the border
VISIBLE = 8  # alpha, of 255, above which a pixel is visible
MASK_SHARE = 0.01  # share of transparent pixels from which on they are the background
MASK_BORDER = 0.5  # the same of the border: an object that fills its picture leaves few
MAX_SIDE = 2048  # pixels; larger pictures are scaled down first: a long thin one would need a square of its length
WHOLE = "image has no background that is transparent or of one colour: used whole"
ONE_COLOUR = "image has one colour: used whole"
FEW_TRANSPARENT = f"image has less than {MASK_SHARE:.0%} transparent pixels: not used as background"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # of those that PIL knows; EPS would start Ghostscript
MAX_PIXELS = 2**26  # of a picture; more would take gigabytes while it is cut out


def prepare_image(image: Any, size: int, margin: float = 0.05) -> Tensor:
    """Normalised pixels float32 (3, size, size) of a PIL image, encoded bytes or a path.

    The object is cut out as a square with a margin of `margin` times its side. Warns (UserWarning) if background can't
    be told from object. ValueError for a picture that can't be used: not one of IMAGE_FORMATS, broken, above
    MAX_PIXELS, or empty.
    """
    pixels, warning = cut_out(image, size, margin)
    if warning:
        warnings.warn(warning, stacklevel=2)
    return pixels


def cut_out(image: Any, size: int, margin: float = 0.05) -> tuple[Tensor, str]:
    """`prepare_image`, and its warning as text; "" if there is none."""
    pixels_HW3, warning = cut_pixels(image, size, margin)
    return normalised(pixels_HW3), warning


def cut_pixels(image: Any, size: int, margin: float = 0.05) -> tuple[Tensor, str]:
    """The same before it is normalised: RGB uint8 (size, size, 3), which `normalised` makes the encoder's input."""
    from PIL import Image

    picture, warning = _without_background(_open(image))
    left, top, right, bottom = _visible_box(picture)
    side = max(right - left, bottom - top)
    side += 2 * round(margin * side)
    canvas = Image.new("RGBA", (side, side), (*(round(255 * mean) for mean in IMAGE_MEAN), 255))
    cut = picture.crop((left, top, right, bottom))
    canvas.alpha_composite(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    small = canvas.convert("RGB").resize(
        (size, size), Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
    )
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(size, size, 3), warning


def normalised(pixels_HW3: Tensor) -> Tensor:
    """Pixels uint8 (H, W, 3) as the encoder's input, float32 (3, H, W)."""
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    return ((pixels_HW3.float() / 255 - mean) / std).permute(2, 0, 1).contiguous()


def _open(image: Any) -> Any:
    """A PIL image in RGBA, upright, at most MAX_SIDE long."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = _read(io.BytesIO(bytes(image)))
    elif isinstance(image, (str, Path)):
        image = _read(image)
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return _shrunk(image.convert("RGBA"))


def check_header(content: bytes) -> None:
    """ValueError for an encoded picture of another format than IMAGE_FORMATS or above MAX_PIXELS. Decodes nothing."""
    with _as_value_errors():
        _opened(io.BytesIO(content))


def _read(file: str | Path | io.BytesIO) -> Any:
    """A decoded picture of a known format."""
    with _as_value_errors():
        image = _opened(file)
        image.load()
    return image


def _opened(file: str | Path | io.BytesIO) -> Any:
    from PIL import Image

    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except Image.UnidentifiedImageError:  # its message names an object in memory
        raise ValueError(f"image is none of {', '.join(IMAGE_FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image of {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    """Turns the many kinds of errors of PIL's readers into ValueErrors; a missing file stays an OSError."""
    from PIL import Image

    try:
        yield
    except (
        Image.DecompressionBombError,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        ArithmeticError,
        struct.error,
        zlib.error,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise ValueError(f"image cannot be read: {error}") from error


def _upright(image: Any) -> Any:
    """The image rotated as its EXIF says; unchanged if that is unreadable."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, EOFError, LookupError, TypeError, ValueError, struct.error):
        return image


def _shrunk(picture: Any) -> Any:
    """The image scaled to at most MAX_SIDE. Colours of transparent pixels do not leak into their neighbours."""
    from PIL import Image

    scale = MAX_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    small = tuple(max(1, round(scale * length)) for length in picture.size)
    return picture.convert("RGBa").resize(small, Image.Resampling.BOX).convert("RGBA")


def _to_8_bits(image: Any) -> Any:
    """16-bit, integer and float greyscale stretched to 8 bits (PIL's own conversion clips);
    non-finite pixels are black.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    scaled = (np.where(finite, values, low) - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def _without_background(picture: Any) -> tuple[Any, str]:
    """An RGBA picture with its background made transparent if its transparent pixels are not that already;
    and a warning, or "".
    """
    import numpy as np
    from PIL import Image

    pixels_HW4 = np.array(picture)
    clear_HW = pixels_HW4[..., 3] <= VISIBLE
    if clear_HW.mean() >= MASK_SHARE or _border(clear_HW).mean() >= MASK_BORDER:
        return picture, ""
    few = [FEW_TRANSPARENT] if clear_HW.any() else []
    background_HW = _even_background(pixels_HW4[..., :3].astype(np.int16), clear_HW)
    if not background_HW.any():
        return picture, "; ".join([*few, WHOLE])
    if (background_HW | clear_HW).all():
        return picture, "; ".join([*few, ONE_COLOUR])
    pixels_HW4[background_HW, 3] = 0
    return Image.fromarray(pixels_HW4), "".join(few)


def _border(values_HW: Any) -> Any:
    import numpy as np

    return np.concatenate([values_HW[0], values_HW[-1], values_HW[:, 0], values_HW[:, -1]])


def _even_background(pixels_HW3: Any, clear_HW: Any) -> Any:
    """The pixels of the border's colour that are connected to the border, bool (H, W); none
    if the border has several colours.

    The transparent pixels `clear_HW` have any colour.
    """
    import numpy as np
    from scipy import ndimage

    opaque = ~_border(clear_HW)
    colour = np.median(_border(pixels_HW3)[opaque], axis=0)
    near_HW = (np.abs(pixels_HW3 - colour).max(axis=-1) <= BORDER_TOLERANCE) | clear_HW
    if _border(near_HW)[opaque].mean() < BORDER_SHARE:
        return np.zeros_like(near_HW)
    labels_HW, count = ndimage.label(near_HW)
    reaches = np.zeros(count + 1, dtype=bool)
    reaches[_border(labels_HW)] = True
    reaches[0] = False
    return reaches[labels_HW]


def _visible_box(picture: Any) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the object in an RGBA picture without background."""
    import numpy as np

    visible = np.asarray(picture)[..., 3] > VISIBLE
    if not visible.any():
        raise ValueError("image is fully transparent")
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
