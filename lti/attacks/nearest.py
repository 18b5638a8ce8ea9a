"""Nearest neighbour: the auxiliary sample whose gradient is closest, and nothing learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import ATTACKS, Attack, Observations, Reconstruction
from lti.attacks.parts import WHOLE, Part
from lti.errors import LTIError
from lti.fl_models import network_digest

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.data.samples import Samples
    from lti.data.selection import Selection
    from lti.defenses import Defense
    from lti.gradients.store_reader import GradientStore
    from lti.progress import Progress

__all__ = ["AuxiliaryGradients", "NearestNeighbour"]

BLOCK_BYTES = 256 * 2**20  # of float32 rows at a time; fewer would gather observations too often


@dataclass(frozen=True)
class AuxiliaryGradients:
    """The auxiliary set with its stored gradients."""

    store: GradientStore
    selection: Selection

    @property
    def samples(self) -> Samples:
        """The auxiliary set, of which the store may hold more behind it."""
        return self.selection.samples

    def __post_init__(self) -> None:
        """Check that they belong together.

        Raises:
            LTIError: the store is of another auxiliary set.
        """
        digest, size = self.selection.stored
        expected = (self.store.attributes.get("auxiliary_digest"), self.store.n_rows)
        if (digest, self.views * size) != expected:
            raise LTIError(
                f"{self.store.path} holds {expected[1]} gradients of auxiliary set {expected[0]}; "
                f"got auxiliary set {digest} of {size} samples. Delete the store and "
                f"its manifest and run the same command again."
            )

    @property
    def views(self) -> int:
        """Consecutive rows of a sample: 2 where its mirror image follows it."""
        return int(self.store.attributes["views"])


@ATTACKS.register("nearest", source="This project: what is learned beyond recall")
class NearestNeighbour(Attack):
    """Return the auxiliary sample whose defended gradient is closest to the observation.

    It shows what an inverter learns beyond recall. Labels are given to every attack, so a
    victim's candidates are the auxiliary samples of its label, mirror images included; one
    sample is given at most once per batch. In a batch with k equal labels these are the k
    nearest samples.

    Closeness is the cosine similarity of the projected gradients, the stored ones with all of
    the defense but noise. For signs, ``a . b = p - 2 h(a, b)`` over p
    coordinates with Hamming distance h, and all rows have norm ``sqrt(p)``: the cosine
    orders them by Hamming distance (hashed signs: by the hash's estimate of it). Gaussian
    noise of one variance adds to ``o . r / |r|`` the same distribution for every stored row
    r, of mean 0, so no candidate is preferred; auxiliary gradients therefore need no noise.
    Where the defense acts on a batch's mean, the stored gradients are undefended and whole,
    and each is defended and projected here, as if it were such a mean.
    """

    needs = ("gradients",)

    projection: str = Field("identity", description="A key of `projections`.")

    def load(self, files: Mapping[str, Path], *, compute: Compute) -> AuxiliaryGradients:
        """Open the auxiliary set's gradients."""
        from lti.data.selection import read_selection
        from lti.gradients.store_reader import GradientStore

        return AuxiliaryGradients(
            GradientStore.open(files["gradients"], files["manifest"]),
            read_selection(files["auxiliary"]),
        )

    def reconstruct(
        self,
        observations: Observations,
        *,
        compute: Compute,
        seed: int,
        progress: Progress,
        checkpoints: Path,
        knowledge: Any = None,
        part: Part = WHOLE,
    ) -> Reconstruction:
        """Return the nearest samples (see :class:`lti.attacks.Attack`).

        Every stored row is read once, for all victims, whose observations are in memory.

        Raises:
            LTIError: labels unknown, more victims of a label in one batch than auxiliary
                samples have it, or gradients of another FL model, defense or projection.
        """
        import torch

        from lti.data.samples import to_float
        from lti.seeding import derive_seed

        data: AuxiliaryGradients = knowledge
        _check(data, observations)
        assert observations.label is not None
        label = observations.label
        observed = observations.gradient[:].to(compute.device)
        defense, projection = observations.defense, observations.projection
        waits = defense.waits_for_mean(observations.batch_size)
        searches = {
            value: _Search(label, value, data, device=compute.device)
            for value in label.unique().tolist()
        }
        row_label = torch.from_numpy(data.samples.label)
        progress.start(total=len(data.samples) * data.views, unit="rows")
        for start, stop in _blocks(data.store, data.views, len(data.samples)):
            rows = data.store.rows(start, stop).to(compute.device)
            if waits:
                seeds = [derive_seed(seed, "nearest", row) for row in range(start, stop)]
                rows = defense.before_projection(rows, seeds=seeds)
                rows = projection.project(rows, layout=observations.layout)
            norm = torch.linalg.vector_norm(rows, dim=1).clamp_min_(1e-30)
            # (samples, views): a view never leaves its sample, so that one sample counts once.
            grid = torch.arange(start, stop).view(-1, data.views)
            for value, search in searches.items():
                kept = grid[row_label[start // data.views : stop // data.views] == value]
                if len(kept):
                    search.update(observed, rows, norm, kept.to(compute.device), start)
            progress.advance(stop - start)

        row = torch.empty_like(label)
        for search in searches.values():
            search.write(row)
        sample = torch.from_numpy(data.samples.value[(row // data.views).numpy()])
        if data.samples.modality == "text":
            return Reconstruction(sample)
        sample = to_float(sample)
        mirrored = (row % data.views == 1)[..., None, None, None]
        return Reconstruction(torch.where(mirrored, sample.flip(-1), sample))


class _Search:
    """The running best rows, of one label, for the batches in which it occurs."""

    def __init__(
        self, label: torch.Tensor, value: int, data: AuxiliaryGradients, *, device: torch.device
    ) -> None:
        import torch

        self.member = label == value  # (n, B)
        count = self.member.sum(dim=1)
        self.batch = count.nonzero()[:, 0].to(device)
        self.k = int(count.max())
        there = int((data.samples.label == value).sum())
        if there < self.k:
            raise LTIError(
                f"a batch has {self.k} victims of label {value} and the auxiliary set "
                f"{there} samples of it; expected at least as many. Use a larger auxiliary set."
            )
        self.similarity = torch.full((len(self.batch), self.k), -torch.inf, device=device)
        self.row = torch.zeros_like(self.similarity, dtype=torch.int64)

    def update(
        self,
        observed: torch.Tensor,
        rows: torch.Tensor,
        norm: torch.Tensor,
        grid: torch.Tensor,
        start: int,
    ) -> None:
        """Take part of the samples into account.

        Args:
            observed: ``(n, d)``; its rows' lengths do not change an order, and stay.
            rows: ``(r, d)``, the block that begins with row ``start`` of the store.
            norm: ``(r,)``.
            grid: ``(s, views)`` rows of the store, one sample a row, ascending.
            start: see ``rows``.
        """
        import torch

        local = grid.flatten() - start
        product = observed.index_select(0, self.batch) @ rows.index_select(0, local).T
        product /= norm.index_select(0, local)
        best, view = product.view(len(self.batch), *grid.shape).max(dim=2)
        similarity = torch.cat([self.similarity, best], dim=1)
        row = torch.cat([self.row, grid[:, 0] + view], dim=1)
        # `max` takes the first of equal values, `topk` any: ties go to the earliest sample.
        for rank in range(self.k):
            self.similarity[:, rank], index = similarity.max(dim=1)
            self.row[:, rank] = row.gather(1, index[:, None])[:, 0]
            similarity.scatter_(1, index[:, None], -torch.inf)

    def write(self, row: torch.Tensor) -> None:
        """Give each victim of the label its row of the store, in ``row`` int64 ``(n, B)``."""
        rank = self.member.cumsum(dim=1) - 1
        batch, position = self.member.nonzero(as_tuple=True)
        place = self.member.any(dim=1).cumsum(dim=0) - 1  # of a batch in `self.batch`
        row[batch, position] = self.row.cpu()[place[batch], rank[batch, position]]


def _check(data: AuxiliaryGradients, observations: Observations) -> None:
    from lti.defenses import DEFENSES

    if observations.label is None:
        raise LTIError("attack nearest got no labels; expected known labels. Use another attack.")
    facts = data.store.attributes
    stored = DEFENSES.parse_stored(facts["defense"], where=str(data.store.path))
    digest = network_digest(observations.network)
    if not _fits(stored, facts, observations) or facts["fl_model_digest"] != digest:
        raise LTIError(
            f"{data.store.path} holds gradients under {stored.canonical()} and "
            f"{facts['projection']} of FL model {facts['fl_model_digest']}; the observations are "
            f"of {observations.defense.canonical()}, {observations.projection.canonical()} and "
            f"{digest}. Compute gradients for them."
        )


def _fits(stored: Defense, facts: Mapping[str, Any], observations: Observations) -> bool:
    """Whether a store's rows went through what the observations did, as far as a store has it."""
    observed = observations.defense
    if observed.waits_for_mean(observations.batch_size):
        return stored.is_deterministic_identity and facts["projection"]["use"] == "identity"
    expected = (observations.projection.canonical(), observations.projection_digest)
    if (facts["projection"], facts.get("projection_digest")) != expected:
        return False
    if observed.is_deterministic_identity:
        return stored.is_deterministic_identity
    return stored == observed


def _blocks(store: GradientStore, views: int, samples: int) -> Iterator[tuple[int, int]]:
    """Cut the samples' rows at chunks, so that each is read once, and between samples."""
    chunks = BLOCK_BYTES // (store.geometry.chunk_rows * store.dim * 4)
    step = store.geometry.chunk_rows * views * max(1, chunks // views)
    for start in range(0, samples * views, step):
        yield start, min(start + step, samples * views)
