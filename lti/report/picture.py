"""The picture: victims above what each attack makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.metrics.base import METRICS
from lti.metrics.matching import match_victims
from lti.report.labels import attack_label, defense_label
from lti.report.style import DPI, FAINT, check_suffix, drawing_style, save_figure
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PictureBlock",
    "PictureRow",
    "choose_positions",
    "picture_row",
    "plot_reconstructions",
]

_SIZE = 10.0  # of the labels, in points
# In pixels: around the picture, between images, and above each defense, title and block.
_MARGIN, _GAP, _DEFENSE_GAP, _TITLE_HEIGHT, _BLOCK_GAP = 12, 6, 24, 48, 48


@dataclass(frozen=True)
class PictureRow:
    """One row of the picture: what one attack made of the victims behind one defense.

    Attributes:
        defense: its name.
        attack: its name as shown, for example ``"LTI"``.
        images: (k, 3, height, width) in [0, 1], those of the victims shown.
        psnr: mean PSNR in dB over all victims that the attack covered.
    """

    defense: str
    attack: str
    images: npt.NDArray[Any]
    psnr: float


@dataclass(frozen=True)
class PictureBlock:
    """The rows of one setting, which stand below a copy of the victims.

    Attributes:
        title: the setting; shown where the picture has several blocks.
        rows: those of one defense should follow one another.
    """

    title: str
    rows: Sequence[PictureRow]


def picture_row(
    victims: Mapping[str, npt.NDArray[Any]],
    reconstructions: Mapping[str, npt.NDArray[Any]],
    *,
    positions: Sequence[int],
    defense: str,
    attack: str,
    variant: str = "",
) -> PictureRow:
    """Match the reconstructions of one run to its victims, inside each batch, and measure them.

    Args:
        victims: see :func:`lti.metrics.matching.match_victims`.
        reconstructions: likewise.
        positions: of the victims shown.
        defense: name of the defense.
        attack: name of the attack.
        variant: shown in parentheses unless empty or the attack's name.

    Raises:
        LTIError: a position that the attack did not cover.
    """
    truth, matched = match_victims(victims, reconstructions)
    outside = [position for position in positions if not 0 <= position < len(matched)]
    if outside:
        raise LTIError(
            f"victim {outside[0]} cannot be drawn: {attack} on {defense} covers only the first "
            f"{len(matched)}. Choose positions from 0 to {len(matched) - 1}."
        )
    return PictureRow(
        defense=defense,
        attack=attack_label(attack, {"variant": variant}),
        images=matched[list(positions)],
        psnr=float(METRICS["psnr"]()(truth, matched).mean()),
    )


def choose_positions(n: int, count: int, *, seed: int) -> list[int]:
    """Return ``count`` of n victims (all, if there are fewer), by chance alone, ascending."""
    drawn = numpy_generator(seed, "figure", "victims").permutation(n)[:count]
    return sorted(int(position) for position in drawn)


def plot_reconstructions(
    path: Path | str,
    truth: npt.NDArray[Any],
    blocks: Sequence[PictureBlock],
    *,
    scale: int = 3,
) -> None:
    """Draw victims above their reconstructions: the same victims in every row.

    Args:
        path: output, ``.png`` or ``.pdf``.
        truth: (k, 3, height, width) in [0, 1].
        blocks: in the order given, from top to bottom; each has the victims as its first row.
        scale: pixels per pixel, nearest neighbour. At 3, 12 victims of 32 x 32 pixels give a
            picture about 1550 pixels wide.

    Raises:
        LTIError: no rows, a row with other than k images, or another suffix.
    """
    check_suffix(path)
    if not any(block.rows for block in blocks):
        raise LTIError("no reconstructions to draw; expected at least one row. Run an attack.")
    for given in (row for block in blocks for row in block.rows):
        if given.images.shape != truth.shape:
            raise LTIError(
                f"the row {_name(given)} has images of shape {given.images.shape}; expected that "
                f"of the victims, {truth.shape}. Choose the same positions for both."
            )
    height, width = (size * scale for size in truth.shape[2:])
    with drawing_style():
        places, titles, bottom = _places(blocks, height)
        left = _MARGIN + 16 + max(_text_width(_name(row)) for _, row in places)
        right = left + len(truth) * (width + _GAP) - _GAP + _MARGIN
        figure, axes = _canvas((right, bottom))
        mosaic = _mosaic(truth, places, left=left, size=(right, bottom), scale=scale)
        axes.imshow(mosaic, interpolation="none", aspect="auto", extent=(0, right, bottom, 0))
        for top, title in titles:
            middle = top + _TITLE_HEIGHT / 2 - 6
            axes.text(left, middle, title, va="center", size=_SIZE, weight="bold")
        for top, row in places:
            middle = top + height / 2
            if row is None:
                axes.text(left - 16, middle, _name(row), ha="right", va="center", size=_SIZE)
                continue
            axes.text(left - 16, middle - 4, _name(row), ha="right", va="bottom", size=_SIZE)
            psnr, small = f"{row.psnr:.1f} dB", _SIZE - 0.5
            axes.text(left - 16, middle + 6, psnr, ha="right", va="top", size=small, color=FAINT)
        save_figure(figure, path)


def _name(row: PictureRow | None) -> str:
    return "original" if row is None else f"{defense_label(row.defense)} / {row.attack}"


def _places(
    blocks: Sequence[PictureBlock], height: int
) -> tuple[list[tuple[int, PictureRow | None]], list[tuple[int, str]], int]:
    """Return the tops of the rows (None: the victims) and of the titles, and the bottom."""
    places: list[tuple[int, PictureRow | None]] = []
    titles: list[tuple[int, str]] = []
    bottom = _MARGIN
    for index, block in enumerate(blocks):
        if index:
            bottom += _BLOCK_GAP
        if len(blocks) > 1:
            titles.append((bottom, block.title))
            bottom += _TITLE_HEIGHT
        places.append((bottom, None))
        bottom += height
        defense = None
        for row in block.rows:
            bottom += _GAP if row.defense == defense else _DEFENSE_GAP
            places.append((bottom, row))
            bottom += height
            defense = row.defense
    return places, titles, bottom + _MARGIN


def _mosaic(
    truth: npt.NDArray[Any],
    places: Sequence[tuple[int, PictureRow | None]],
    *,
    left: int,
    size: tuple[int, int],
    scale: int,
) -> npt.NDArray[Any]:
    """Return all images in their places, uint8 (height, width, 3)."""
    import numpy as np

    mosaic = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    for top, row in places:
        for column, image in enumerate(truth if row is None else row.images):
            levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
            block = levels.repeat(scale, axis=0).repeat(scale, axis=1)
            x = left + column * (block.shape[1] + _GAP)
            mosaic[top : top + block.shape[0], x : x + block.shape[1]] = block
    return mosaic


def _text_width(text: str) -> int:
    """Return the width of a label in pixels, rounded up."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), text, size=_SIZE, prop=FontProperties())
    # Hinting draws glyphs a little wider than their outlines.
    return math.ceil(1.03 * path.get_extents().x1 * DPI / 72)


def _canvas(size: tuple[int, int]) -> tuple[Figure, Axes]:
    """Return a figure of exactly this many pixels whose axes count them from the top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A thousandth of a pixel more: savefig truncates, and 1607.9999 would lose a column.
    figure = Figure(figsize=((size[0] + 1e-3) / DPI, (size[1] + 1e-3) / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    return figure, axes
