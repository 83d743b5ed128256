"""Sheet: a picture of images in rows, labelled, as PNG or as a small WebP."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont

_GAP, _LINE, _MARGIN, _SIDE = 6, 13, 150, 72  # in pixels; the shorter side of an image is at least that
_FONT = ImageFont.load_default(size=11)


class Row(NamedTuple):
    """One row of a sheet.

    Attributes:
        title: What stands to its left.
        images: (height, width, 3) uint8 each, all of one size.
        captions: What stands below each of them, of one or more lines.
    """

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str]


def as_png(heads: Sequence[str], rows: Sequence[Row]) -> bytes:
    """The sheet as it is. heads: what stands above each column."""
    file = io.BytesIO()
    _drawn(heads, rows, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def as_webp(heads: Sequence[str], rows: Sequence[Row], most_bytes: int, comment: str) -> bytes:
    """The same in at most so many bytes, of lower quality where that is needed, and smaller in the end."""
    sheet = _drawn(heads, rows, Image.Resampling.BICUBIC)  # edges of large pixels would take most of the bytes
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = comment
    while True:
        for quality in (80, 60, 45, 30):
            file = io.BytesIO()
            sheet.save(file, "WEBP", quality=quality, exif=exif)
            if file.tell() <= most_bytes or sheet.width < 100:
                return file.getvalue()
        sheet = sheet.resize((sheet.width * 5 // 6, sheet.height * 5 // 6), Image.Resampling.LANCZOS)


def comment_of(webp: bytes) -> str:
    """The comment in a sheet, or "" where there is none."""
    try:
        return str(Image.open(io.BytesIO(webp)).getexif().get(ExifTags.Base.ImageDescription, ""))
    except OSError:
        return ""


def _drawn(heads: Sequence[str], rows: Sequence[Row], enlarge: Image.Resampling) -> Image.Image:
    height, width = rows[0].images[0].shape[:2]
    times = -(-_SIDE // min(height, width))  # by whole numbers, so that pixels stay what they are
    height, width = height * times, width * times
    lines = max(caption.count("\n") + 1 if caption else 0 for row in rows for caption in row.captions)
    step_x, step_y = width + _GAP, height + _GAP + lines * _LINE
    margin = min(_MARGIN, 2 * _GAP + max(int(_FONT.getlength(row.title)) for row in rows))
    size = margin + len(heads) * step_x, _LINE + _GAP + len(rows) * step_y
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str) -> None:
        pen.text((x, y), text, fill="black", font=_FONT, spacing=2)

    for i, head in enumerate(heads):
        write(margin + i * step_x, 2, head)
    for j, row in enumerate(rows):
        y = _LINE + _GAP + j * step_y
        write(4, y, "\n".join(textwrap.wrap(row.title, _MARGIN // 6)[: height // _LINE]))
        for i, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            x = margin + i * step_x
            sheet.paste(Image.fromarray(image).resize((width, height), enlarge), (x, y))
            write(x, y + height, caption)
    return sheet
