"""A picture of an object becomes what the image encoder reads: the object alone, in the middle of a small square.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)  # what DINOv2 was trained with
IMAGE_STD = (0.229, 0.224, 0.225)
BORDER_TOLERANCE = 12  # of 255: a border this even is taken for a background
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # of those PIL knows, EPS would start Ghostscript
MAX_PIXELS = 2**26  # of a picture: more would take gigabytes while it is cut out


def prepare_image(image: Any, size: int, margin: float = 0.05) -> Tensor:
    """Any PIL image, encoded bytes or path to normalised pixels float32 (3, size, size).

    The object (alpha, else what differs from an even border, else everything) is cut out as a square with `margin` of its
    side around it and laid on the mean colour, so that the background is zero: on white a small encoder trained from
    scratch learnt nothing (LOG.md). A ValueError or OSError tells what is wrong with a picture that cannot be used: not one of
    IMAGE_FORMATS, broken, above MAX_PIXELS, or nothing visible in it.
    """
    from PIL import Image

    picture = _open(image)
    left, top, right, bottom = _visible_box(picture)
    side = max(right - left, bottom - top)
    side += 2 * round(margin * side)
    canvas = Image.new("RGBA", (side, side), (*(round(255 * mean) for mean in IMAGE_MEAN), 255))
    cut = picture.crop((left, top, right, bottom))
    canvas.alpha_composite(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    small = canvas.convert("RGB").resize((size, size), Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC)
    pixels_HW3 = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(size, size, 3).float() / 255
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    return ((pixels_HW3 - mean) / std).permute(2, 0, 1).contiguous()


def _open(image: Any) -> Any:
    """A PIL image in RGBA, upright."""
    from PIL import ImageOps

    if isinstance(image, (bytes, bytearray, memoryview)):
        image = _read(io.BytesIO(bytes(image)))
    elif isinstance(image, (str, Path)):
        image = _read(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("RGBA")


def _read(file: str | Path | io.BytesIO) -> Any:
    """A picture of a known format, decoded; PIL's readers raise many kinds of errors, here they become ValueErrors."""
    from PIL import Image

    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"image of {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
        image.load()
    except (Image.DecompressionBombError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error) as error:
        raise ValueError(f"image cannot be read: {error}") from error
    return image


def _to_8_bits(image: Any) -> Any:
    """16-bit, integer and float greyscale, stretched to 8 bits (PIL's own conversion clips)."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))


def _visible_box(picture: Any) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the object in an RGBA picture."""
    import numpy as np

    pixels = np.asarray(picture).astype(np.int16)
    visible = pixels[..., 3] > 8
    if not visible.any():
        raise ValueError("image is fully transparent")
    if visible.all():
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])[:, :3]
        background = np.median(border, axis=0)
        if np.abs(border - background).max() <= BORDER_TOLERANCE:
            different = np.abs(pixels[..., :3] - background).max(axis=-1) > BORDER_TOLERANCE
            visible = different if different.any() else visible
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
