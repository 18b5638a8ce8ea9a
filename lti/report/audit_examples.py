"""Victims beside what came back of them, as the audit's page shows or hides them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lti.errors import LTIError
from lti.report.pieces import visible

if TYPE_CHECKING:
    from PIL.Image import Image

    from lti.auditing.result import Example

__all__ = ["BLUR_SIDE", "ExampleView", "Examples", "Picture", "Word", "example_view"]

Examples = Literal["show", "blur", "omit"]
"""What becomes of private data: in the page, in it beyond recognition, or not in it."""

BLUR_SIDE = 4
"""Pixels of the longer side of a blurred image: each is the mean over its part of the image."""

_SIDE = 96  # CSS pixels that a small image is enlarged to, by a whole factor
_MASK = "\N{FULL BLOCK}" * 3  # for every token, so that not even its length is told


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        source: a ``data:`` URI of a PNG.
        width: in CSS pixels.
        height: likewise.
    """

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Word:
    """A token: the space before it, how it reads, and whether it is the true one."""

    space: str
    text: str
    right: bool


@dataclass(frozen=True)
class ExampleView:
    """One victim beside what came back, either as pictures or as words.

    Attributes:
        victim: its position among the victims, from 0.
        recovered: the share that came back.
        pictures: original and reconstruction; None for text.
        words: likewise; None for images.
        right: number of right tokens.
    """

    victim: int
    recovered: float
    pictures: tuple[Picture, Picture] | None = None
    words: tuple[tuple[Word, ...], tuple[Word, ...]] | None = None
    right: int = 0


def example_view(example: Example, *, blur: bool) -> ExampleView:
    """Return an example as the page has it.

    Args:
        example: of images or of text.
        blur: leave of each image :data:`BLUR_SIDE` pixels a side, and of each token only
            whether it came back: nothing else of them is in what is returned.

    Raises:
        LTIError: an image is not a PNG; original and reconstruction differ in kind or length.
    """
    original, reconstruction = example.original, example.reconstruction
    if isinstance(original, bytes) and isinstance(reconstruction, bytes):
        pictures = _picture(original, blur), _picture(reconstruction, blur)
        return ExampleView(example.victim, example.recovered, pictures=pictures)
    if isinstance(original, bytes) or isinstance(reconstruction, bytes):
        raise LTIError(
            f"victim {example.victim}: an image beside text; expected two of a kind. Fix the audit."
        )
    if len(original) != len(reconstruction):
        raise LTIError(
            f"victim {example.victim}: {len(original)} tokens and {len(reconstruction)} of its "
            "reconstruction; expected as many. Fix the audit."
        )
    rights = [a == b for a, b in zip(original, reconstruction, strict=True)]
    truth = tuple(_word(token, True, blur) for token in original)
    found = tuple(_word(t, right, blur) for t, right in zip(reconstruction, rights, strict=True))
    return ExampleView(example.victim, example.recovered, words=(truth, found), right=sum(rights))


def _word(token: str, right: bool, blur: bool) -> Word:
    if blur:
        return Word(" ", _MASK, right)
    text = visible(token)
    space = " " if text.startswith(" ") else ""
    return Word(space, text.removeprefix(" "), right)


def _picture(png: bytes, blur: bool) -> Picture:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LTIError(
            f"an example of {len(png)} bytes cannot be read as a PNG ({error}). Fix the audit."
        ) from None
    width, height = image.size
    factor = max(1, _SIDE // max(width, height))
    # Drawn anew: what a file carries beside its pixels does not get into the page.
    data = base64.b64encode(_encoded(_blurred(image) if blur else image)).decode("ascii")
    return Picture(f"data:image/png;base64,{data}", factor * width, factor * height)


def _blurred(image: Image) -> Image:
    from PIL.Image import Resampling

    width, height = image.size
    longer = max(width, height)
    side = min(BLUR_SIDE, max(1, longer // 4))
    size = (max(1, width * side // longer), max(1, height * side // longer))
    return image.resize(size, Resampling.BOX)


def _encoded(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
