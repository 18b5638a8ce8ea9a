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

__all__ = ["PictureRow", "choose_positions", "picture_row", "plot_reconstructions"]

_SIZE = 10.0  # of the labels, in points


@dataclass(frozen=True)
class PictureRow:
    """One row of the picture: what one attack made of the victims behind one defense.

    Attributes:
        defense: its name.
        attack: its name as shown, for example ``"LTI"``.
        images: (n, 3, height, width) in [0, 1], matched to the victims.
        psnr: mean PSNR in dB over all n victims.
    """

    defense: str
    attack: str
    images: npt.NDArray[Any]
    psnr: float


def picture_row(
    victims: Mapping[str, npt.NDArray[Any]],
    reconstructions: Mapping[str, npt.NDArray[Any]],
    *,
    defense: str,
    attack: str,
    variant: str = "",
) -> PictureRow:
    """Match the reconstructions of one run to its victims and measure them.

    Args:
        victims: see :func:`lti.metrics.matching.match_victims`.
        reconstructions: likewise.
        defense: name of the defense.
        attack: name of the attack.
        variant: shown in parentheses unless empty or the attack's name.
    """
    truth, matched = match_victims(victims, reconstructions)
    return PictureRow(
        defense=defense,
        attack=attack_label(attack, {"variant": variant}),
        images=matched,
        psnr=float(METRICS["psnr"]()(truth, matched).mean()),
    )


def choose_positions(n: int, count: int, *, seed: int) -> list[int]:
    """Return ``count`` of n victims (all, if there are fewer), by chance alone, ascending."""
    drawn = numpy_generator(seed, "figure", "victims").permutation(n)[:count]
    return sorted(int(position) for position in drawn)


def plot_reconstructions(
    path: Path | str,
    truth: npt.NDArray[Any],
    rows: Sequence[PictureRow],
    *,
    positions: Sequence[int] | None = None,
    count: int = 12,
    seed: int = 0,
    scale: int = 3,
) -> list[int]:
    """Draw victims above their reconstructions: the same victims in every row.

    Args:
        path: output, ``.png`` or ``.pdf``.
        truth: (n, 3, height, width), uint8 or in [0, 1].
        rows: in the order given; rows of one defense should follow one another.
        positions: which victims; by default ``count`` that every row covers, drawn by
            ``seed`` and not by how well they came out.
        count: victims shown.
        seed: of the draw.
        scale: pixels per pixel, nearest neighbour. At 3, 12 victims of 32 x 32 pixels give a
            picture about 1550 pixels wide.

    Returns:
        The positions shown.

    Raises:
        LTIError: no rows, a position that a row does not cover, or another suffix.
    """
    import numpy as np

    check_suffix(path)
    if not rows:
        raise LTIError("no reconstructions to draw; expected at least one row. Run an attack.")
    covered = min(len(truth), *(len(row.images) for row in rows))
    shown = list(choose_positions(covered, count, seed=seed) if positions is None else positions)
    if not shown or not all(0 <= position < covered for position in shown):
        raise LTIError(
            f"victims {shown} cannot be drawn: every row covers only the first {covered}. "
            f"Choose positions from 0 to {covered - 1}."
        )
    if truth.dtype == np.uint8:
        truth = truth / np.float32(255)
    height, width = (size * scale for size in truth.shape[2:])
    gap, group_gap, margin = 6, 24, 12
    # Tops of the rows in pixels; the victims are row 0, a wider gap opens each defense.
    tops, bottom = [], margin
    for before, row in zip([None, None, *rows], [None, *rows], strict=False):
        if row is not None:
            bottom += group_gap if before is None or before.defense != row.defense else gap
        tops.append(bottom)
        bottom += height
    names = ["original", *(f"{defense_label(row.defense)} / {row.attack}" for row in rows)]
    with drawing_style():
        left = margin + max(_text_width(name) for name in names) + 16
        size = (left + len(shown) * (width + gap) - gap + margin, bottom + margin)
        mosaic = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
        for top, images in zip(tops, [truth, *(row.images for row in rows)], strict=True):
            for column, position in enumerate(shown):
                x = left + column * (width + gap)
                image = np.rint(np.clip(images[position], 0, 1) * 255).astype(np.uint8)
                block = image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
                mosaic[top : top + height, x : x + width] = block
        figure, axes = _canvas(size)
        axes.imshow(mosaic, interpolation="none", aspect="auto", extent=(0, size[0], size[1], 0))
        right = left - 16
        axes.text(right, tops[0] + height / 2, names[0], ha="right", va="center", size=_SIZE)
        for top, name, row in zip(tops[1:], names[1:], rows, strict=True):
            middle = top + height / 2
            axes.text(right, middle - 4, name, ha="right", va="bottom", size=_SIZE)
            psnr = f"{row.psnr:.1f} dB"
            axes.text(right, middle + 6, psnr, ha="right", va="top", size=_SIZE - 0.5, color=FAINT)
        save_figure(figure, path)
    return shown


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
