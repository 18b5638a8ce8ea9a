"""How figures look and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lti.errors import LTIError
from lti.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DPI", "FAINT", "INK", "WRONG", "check_suffix", "drawing_style", "save_figure"]

DPI = 200
INK, FAINT, WRONG = "#222222", "#6B6B6B", "#B3261E"
# No time stamps and no versions: equal figures give equal bytes.
_METADATA: Mapping[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and these, whatever the user's configuration says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": "DejaVu Sans",  # comes with matplotlib
                "font.size": 9,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": "#999999",
                "axes.linewidth": 0.8,
                "xtick.color": INK,
                "ytick.color": INK,
                "pdf.fonttype": 42,
            }
        )
        yield


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure, atomically; its suffix says as what."""
    suffix = Path(path).suffix.lower()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata=dict(_METADATA[suffix]))


def check_suffix(path: Path | str) -> None:
    """Refuse a suffix that figures are not written as, before any work is done."""
    if Path(path).suffix.lower() not in _METADATA:
        raise LTIError(
            f"{path}: figures are written as {' or '.join(_METADATA)}; got the suffix "
            f"{Path(path).suffix!r}. Rename the output."
        )
