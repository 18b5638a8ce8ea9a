"""Which artifacts an experiment needs, and the settings behind every identifier.

Paths are made of identifiers, so that experiments share what they have in common; this
module turns a configuration into those identifiers and back into settings. A rule's
``params`` hold only the settings that its stage uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lti.attacks import ATTACKS, Attack
from lti.auxiliary import AuxiliarySet, auxiliary_sets, population_id
from lti.config import Config, Experiment, Victims
from lti.data.dataset import DATASETS
from lti.data.synthetic import SyntheticDataset
from lti.data.text import TextDataset
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FL_MODELS
from lti.generators import GENERATORS
from lti.inverters import INVERTERS
from lti.metrics import METRICS
from lti.metrics.base import DEFAULT_METRICS
from lti.projections import PROJECTIONS
from lti.registry import Registry

if TYPE_CHECKING:
    from lti.data.samples import Modality

__all__ = ["Cell", "Plan"]

UNDEFENDED = "undefended"


@dataclass(frozen=True)
class Cell:
    """One attack on one defense; all fields are identifiers as they stand in paths."""

    dataset: str
    victims: str
    fl_model: str
    batch_size: int
    defense: str
    attack: str
    """``<attack>`` or, with auxiliary data, ``<attack>@<auxiliary set>``."""


class Plan:
    """A configuration, expanded.

    Args:
        config: a checked configuration.

    Raises:
        LTIError: two experiments give one identifier different settings, a defense has the
            identifier of the shared store, or a cell needs a projection that is not there.
    """

    def __init__(self, config: Config) -> None:
        if UNDEFENDED in config.defenses:
            raise LTIError(
                f"defenses.{UNDEFENDED}: got identifier {UNDEFENDED!r}, which is that of the store "
                f"that defenses without a deterministic part share. Rename it."
            )
        self.config = config
        self.datasets = _parse(DATASETS, config.datasets, "datasets")
        self.fl_models = _parse(FL_MODELS, config.fl_models, "fl_models")
        self.projections = _parse(PROJECTIONS, config.projections, "projections")
        self.defenses = _parse(DEFENSES, config.defenses, "defenses")
        self.inverters = _parse(INVERTERS, config.inverters, "inverters")
        self.generators = _parse(GENERATORS, config.generators, "generators")
        self.attacks = _parse(ATTACKS, config.attacks, "attacks")
        self.auxiliary: dict[str, AuxiliarySet] = {}
        self.victims: dict[str, tuple[str, Victims]] = {}
        self._shifts: dict[str, str | None] = {}  # of victims
        for experiment in config.experiments.values():
            for auxiliary in self._auxiliary_sets(experiment):
                self._add_auxiliary(auxiliary)
            victims = victims_id(experiment)
            self._shifts[victims] = experiment.auxiliary.shift
            chosen = (experiment.dataset, experiment.victims)
            if self.victims.setdefault(victims, chosen) != chosen:
                raise LTIError(
                    f"victims {victims} are asked for with and without some that are included; "
                    f"expected the same. Set `include` alike, or use another seed or size."
                )
        self._metrics: dict[Cell, list[str]] = {}
        self._batches: dict[tuple[str, str, int, str, str], int] = {}
        for name in config.experiments:
            for cell in self.cells(name):
                known = self._metrics.setdefault(cell, [])
                known += [m for m in self.metrics_of_experiment(name) if m not in known]
                self._add_observed(cell)
                if (start := self.start_of(cell)) is not None:
                    self._add_observed(start)

    def _auxiliary_sets(self, experiment: Experiment) -> list[AuxiliarySet]:
        # Text has no mirror image.
        is_text = self.datasets[experiment.dataset].modality == "text"
        return auxiliary_sets(experiment, mirrored=experiment.auxiliary.mirrored and not is_text)

    def _add_auxiliary(self, chosen: AuxiliarySet) -> None:
        for part in (replace(chosen, size=chosen.of), chosen):
            known = self.auxiliary.get(part.identifier, part)
            if known.mirrored != part.mirrored:
                raise LTIError(
                    f"auxiliary set {part.identifier} is asked for with and without mirrored "
                    f"images; expected one of them. Set `mirrored` alike, or use another seed."
                )
            self.auxiliary[part.identifier] = replace(part, of=max(part.of, known.of))

    def stored_auxiliary(self, auxiliary: str) -> str:
        """Return the auxiliary set whose gradient store a set reads, which begins with it."""
        chosen = self.auxiliary[auxiliary]
        return replace(chosen, size=chosen.of).identifier

    def _add_observed(self, cell: Cell) -> None:
        name, _, auxiliary = cell.attack.partition("@")
        attack = self.attack_on(
            name, fl_model=cell.fl_model, batch_size=cell.batch_size, defense=cell.defense
        )
        stored = self.stored_auxiliary(auxiliary) if auxiliary else ""
        projection = self.observed_projection(attack, stored)
        # That it is there.
        self.stored_projection(projection.partition("@")[0], cell.defense, cell.batch_size)
        whole = self.victims[cell.victims][1].size // cell.batch_size
        key = (cell.victims, cell.fl_model, cell.batch_size, projection, cell.defense)
        asked = min(attack.victims or whole, whole)
        self._batches[key] = max(asked, self._batches.get(key, 0))

    def start_of(self, cell: Cell) -> Cell | None:
        """Return the cell whose reconstructions an attack refines; None: it begins anew.

        Raises:
            LTIError: that one attacks fewer victims.
        """
        name, _, auxiliary = cell.attack.partition("@")
        attack = self.attack_on(
            name, fl_model=cell.fl_model, batch_size=cell.batch_size, defense=cell.defense
        )
        start: str | None = getattr(attack, "start", None)
        if start is None:
            return None
        first = self.attack_on(
            start, fl_model=cell.fl_model, batch_size=cell.batch_size, defense=cell.defense
        )
        whole = self.victims[cell.victims][1].size // cell.batch_size
        if (attack.victims or whole) > (first.victims or whole):
            raise LTIError(
                f"attacks.{name}.victims: got {attack.victims or 'all'}, where attacks.{start} "
                f"attacks {first.victims}; expected no more than that. Lower the one or raise the "
                f"other."
            )
        return replace(cell, attack=f"{start}@{auxiliary}")

    def cells(self, name: str) -> Iterator[Cell]:
        """Yield an experiment's cells, in the order of its lists."""
        experiment = self.experiment(name)
        sets = [f"@{auxiliary}" for auxiliary in self.auxiliary_of(name)]
        for fl_model in experiment.fl_models:
            for batch_size in experiment.batch_sizes:
                for defense in experiment.defenses:
                    for attack in experiment.attacks:
                        for suffix in sets if self.attacks[attack].needs else [""]:
                            yield Cell(
                                experiment.dataset,
                                victims_id(experiment),
                                fl_model,
                                batch_size,
                                defense,
                                attack + suffix,
                            )

    def experiment(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            LTIError: there is none of this name.
        """
        try:
            return self.config.experiments[name]
        except KeyError:
            raise LTIError(
                f"unknown experiment {name!r}; known: {', '.join(sorted(self.config.experiments))}"
            ) from None

    def stored_defense(self, defense: str, batch_size: int) -> str:
        """Return the defense whose gradient store a defense reads.

        Defenses whose deterministic part changes nothing share the store ``undefended``; so
        do those that wait for the mean of a batch.
        """
        settings = self.defenses[defense]
        undefended = settings.is_deterministic_identity or settings.waits_for_mean(batch_size)
        return UNDEFENDED if undefended else defense

    def stored_projection(self, projection: str, defense: str, batch_size: int) -> str:
        """Return the projection that the rows of a gradient store went through.

        The identity where a defense, which comes before the projection, still is to be
        applied; an identifier, as it stands in the configuration.

        Raises:
            LTIError: it needs the identity, and no entry of ``projections`` is one; or it is
                fitted to gradients of single samples.
        """
        if not self.defenses[defense].waits_for_mean(batch_size):
            return projection
        if self.projections[projection].is_fitted:
            raise LTIError(
                f"defenses.{defense}: got defense_at 'batch' and projection {projection!r}, which "
                f"is fitted to gradients of single samples; expected one that is not fitted. Use "
                f"another projection, or defense_at 'sample'."
            )
        return self._identity(
            f"defenses.{defense}: got defense_at 'batch', which needs unprojected gradients of "
            f"the auxiliary set"
        )

    def observed_projection(self, attack: Attack, auxiliary: str) -> str:
        """Return the projection of the observations that an attack reads, as paths have it.

        That of its setting ``projection``; an attack without one reads whole gradients. To a
        projection that is fitted belongs the auxiliary set: ``<projection>@<auxiliary set>``.

        Args:
            attack: with the settings that it uses on a cell.
            auxiliary: identifier of the auxiliary set whose gradients are stored for it.

        Raises:
            LTIError: it reads whole gradients, and no entry of ``projections`` is the identity.
        """
        projection: str | None = getattr(attack, "projection", None)
        if projection is None:
            return self._identity(f"attacks: got {attack.name!r}, which reads whole gradients")
        return f"{projection}@{auxiliary}" if self.projections[projection].is_fitted else projection

    def observed_batches(
        self, *, victims: str, fl_model: str, batch_size: int, projection: str, defense: str
    ) -> int:
        """Return how many victim batches to observe: the most that a cell on them asks for.

        Raises:
            LTIError: no experiment has a cell on these observations.
        """
        key = (victims, fl_model, batch_size, projection, defense)
        try:
            return self._batches[key]
        except KeyError:
            raise LTIError(
                f"no experiment reads the observations {'/'.join(map(str, key))}; expected those "
                f"of one. Ask for a path of one, or add it to an experiment."
            ) from None

    def _identity(self, reason: str) -> str:
        for key, entry in self.projections.items():
            if entry.name == "identity":
                return key
        raise LTIError(f"{reason}; expected an entry of `projections` that uses identity. Add one.")

    def stored_defense_settings(self, stored: str) -> str:
        """Return the settings, as JSON, of the defense that a store's rows went through."""
        if stored == UNDEFENDED:
            return canonical_json(DEFENSES["none"]().canonical())
        return self.settings("defenses", stored)

    def settings(self, section: str, identifier: str) -> str:
        """Return an entry's settings as canonical JSON, for the command line of a stage."""
        return canonical_json(getattr(self, section)[identifier].canonical())

    def stored_defense_names(self, stored: str) -> tuple[str, ...]:
        """Return the registered names of the defense that a store's rows went through."""
        if stored == UNDEFENDED:
            return ("none",)
        names: tuple[str, ...] = self.defenses[stored].registered_names()
        return names

    def attack_on(self, attack: str, *, fl_model: str, batch_size: int, defense: str) -> Attack:
        """Return an attack with the settings that it uses on a cell."""
        settings: Attack = self.attacks[attack].on(
            fl_model=fl_model, batch_size=batch_size, defense=defense
        )
        return settings

    def pools_of(self, auxiliary: str) -> list[tuple[str, list[int] | None]]:
        """Return the data sets and classes that an auxiliary set is drawn from.

        First what is like the victims, then what is shifted.
        """
        chosen = self.auxiliary[auxiliary]
        if chosen.shift is None:
            return [(chosen.dataset, None)]
        shift = self.config.shifts[chosen.shift]
        return [
            (chosen.dataset, shift.classes),
            *((pool.dataset or chosen.dataset, pool.classes) for pool in shift.shifted),
        ]

    def classes_of(self, victims: str) -> list[int] | None:
        """Return the classes that victims are drawn from; None: all."""
        shift = self._shifts[victims]
        return None if shift is None else self.config.shifts[shift].classes

    def imitated_by(self, dataset: str) -> str | None:
        """Return the data set that a synthetic one imitates; None: it is read."""
        settings = self.datasets[dataset]
        return settings.of if isinstance(settings, SyntheticDataset) else None

    def tokenizer_of(self, dataset: str) -> str | None:
        """Return the data set whose tokenizer one of text takes; None: it takes none.

        A synthetic one imitates samples of tokens, and images have none.
        """
        settings = self.datasets[dataset]
        return (settings.tokenizer or dataset) if isinstance(settings, TextDataset) else None

    def victims_of(self, experiment: str) -> str:
        """Return the identifier of an experiment's victims."""
        return victims_id(self.experiment(experiment))

    def auxiliary_of(self, experiment: str) -> list[str]:
        """Return the identifiers of an experiment's auxiliary sets, in order."""
        sets = self._auxiliary_sets(self.experiment(experiment))
        return list(dict.fromkeys(chosen.identifier for chosen in sets))

    def modality_of(self, experiment: str) -> Modality:
        """Return the modality of an experiment's data set."""
        modality: Modality = self.datasets[self.experiment(experiment).dataset].modality
        return modality

    def metrics_of_experiment(self, experiment: str) -> list[str]:
        """Return the metrics that an experiment reports, in the order of its tables."""
        named = self.experiment(experiment).metrics
        return list(DEFAULT_METRICS[self.modality_of(experiment)] if named is None else named)

    def backbones(self, metrics: Iterable[str]) -> list[str]:
        """Return the pretrained networks that metrics need."""
        return sorted({METRICS[name].backbone for name in metrics} - {""})

    def metrics_of(self, **cell: Any) -> list[str]:
        """Return every metric that some experiment asks for on a cell, which they share."""
        try:
            return self._metrics[Cell(**cell)]
        except KeyError:
            raise LTIError(
                f"no experiment has the cell {cell}; expected one of an experiment's. Ask for a "
                f"path of one, or add it to an experiment."
            ) from None


def victims_id(experiment: Experiment) -> str:
    """Return the identifier of an experiment's victims."""
    population = population_id(experiment.dataset, experiment.auxiliary.shift)
    return f"{population}-n{experiment.victims.size}-s{experiment.victims.seed}"


def _parse(registry: Registry[Any], entries: dict[str, Any], where: str) -> dict[str, Any]:
    return {key: registry.parse(value, where=f"{where}.{key}") for key, value in entries.items()}
