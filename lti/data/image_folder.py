"""Images of a user's own in a folder, a subfolder a class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field

from lti.data.dataset import DATASETS, Part
from lti.data.division import Label
from lti.data.own import OwnImages
from lti.data.rows import Refusals, Rows, Use, files_digest, files_of
from lti.errors import LTIError

__all__ = ["ImageFolder"]


@DATASETS.register("image-folder", source="image files of your own, docs/your-data.md")
class ImageFolder(OwnImages):
    """Image files, a subfolder a class, cropped to squares and reduced to 32 x 32 pixels.

    Classes are the subfolders of ``folder``, sorted by name. All files in them and below, but
    for those whose names begin with a dot, are images; their order is that of their relative
    paths, and ``index`` counts them. Files beside the subfolders are not read. A subfolder can
    be a link, and so can files.
    """

    folder: Path = Field(
        description="Folder with a subfolder of images for each class; relative to the working "
        "folder."
    )
    victims_folder: Path | None = Field(
        None,
        description="Another one, of the same classes, whose images are the victims; null: a share "
        "of each class of `folder`.",
    )

    def own_rows(self, part: Part) -> Rows | None:
        """Return the files of a folder."""
        folder = self.folder if part == "auxiliary" else self.victims_folder
        return None if folder is None else FolderRows(folder)

    def places(self) -> set[str]:
        """Return the folders."""
        return {os.path.abspath(folder) for folder in (self.folder, self.victims_folder) if folder}


class FolderRows(Rows):
    """Image files in the subfolders of a folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder

    @cached_property
    def _files(self) -> list[tuple[str, str]]:
        """Relative names and paths, sorted by name."""
        try:
            found = [entry.name for entry in os.scandir(self._folder) if entry.is_dir()]
        except (OSError, ValueError) as error:
            raise LTIError(
                f"{self._folder}: cannot be read ({getattr(error, 'strerror', error)}; looked for "
                f"in {Path.cwd()}). Expected a folder with a subfolder of images for each class. "
                f"Correct the path."
            ) from None
        classes = sorted(name for name in found if not name.startswith("."))
        if not classes:
            raise LTIError(
                f"{self._folder}: no subfolder; expected one of images for each class. Sort the "
                f"images into subfolders."
            )
        files = []
        for name in classes:
            mine = [(f"{name}/{inner}", path) for inner, path in files_of(self._folder / name)]
            if not mine:
                raise LTIError(
                    f"{self._folder / name}: no image; expected some in the folder of a class. Add "
                    f"images or remove the folder."
                )
            files += mine
        return sorted(files)

    def labels(self) -> tuple[list[Label], tuple[str, ...] | None]:
        """Return the names of the subfolders, a file each."""
        return [name.partition("/")[0] for name, _ in self._files], None

    def visit(self, rows: np.ndarray, use: Use) -> None:
        """Call ``use`` with paths."""
        refusals = Refusals(self.where)
        for number, row in enumerate(rows):
            name, path = self._files[row]
            refusals.call(use, number, Path(path), name)
        refusals.end()

    def content(self) -> str:
        """Return a digest over the files' relative names, sizes and times."""
        return files_digest(self._files)
