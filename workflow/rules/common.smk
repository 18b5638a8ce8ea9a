import shlex
import sys
from pathlib import Path

import lti
from lti.attacks import ATTACKS
from lti.config import parse_config
from lti.data.dataset import DATASETS
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FL_MODELS
from lti.inverters import INVERTERS
from lti.metrics import METRICS
from lti.modules import source_files
from lti.plan import Plan
from lti.projections import PROJECTIONS
from snakemake.exceptions import WorkflowError

try:
    PLAN = Plan(parse_config(config))
except LTIError as error:
    raise WorkflowError(f"The configuration cannot be used:\n{error}") from None

# Rules call `lti`: from this checkout, under Snakemake's own Python or a rule's conda one.
CHECKOUT = Path(lti.__file__).resolve().parent.parent
USES_CONDA = any(
    method.name == "CONDA" for method in workflow.deployment_settings.deployment_method
)
PYTHON = "python" if USES_CONDA else sys.executable
# Of the machine, not of the science: shell variables and no rule's `params`, so that a
# change runs nothing again.
STORE = shlex.quote(canonical_json(PLAN.config.store.model_dump()))
MEMORY_MIB = PLAN.config.store.memory_mib
# Doubled braces: Snakemake formats the prefix.
shell.prefix(
    "set -euo pipefail; "
    f"STORE={STORE.replace('{', '{{').replace('}', '}}')}; MEMORY_MIB={MEMORY_MIB}; "
    "lti() {{ "
    f'PYTHONPATH="{CHECKOUT}${{{{PYTHONPATH:+:$PYTHONPATH}}}}" "{PYTHON}" -m lti "$@"; }}}}; '
)

RESULTS = PLAN.config.results

# Artifacts. Each file has a small JSON card (a store: its manifest) that holds a digest of
# the content. Rules depend on the card's content and on the file's existence (`ancient`), so
# that touching a large file costs nothing.
PART = f"{RESULTS}/data/{{dataset}}/{{part}}"
AUXILIARY = f"{RESULTS}/data/auxiliary/{{auxiliary}}"
VICTIMS = f"{RESULTS}/data/victims/{{victims}}"
FL_MODEL = f"{RESULTS}/fl_models/{{dataset}}/{{fl_model}}"
GRADIENTS = f"{RESULTS}/gradients/{{auxiliary}}/{{fl_model}}/{{stored}}"
OBSERVATIONS = (
    f"{RESULTS}/observations/{{victims}}/{{fl_model}}/b{{batch_size}}/{{defense}}"
)
INVERTER = f"{RESULTS}/inverters/{{auxiliary}}/{{fl_model}}/b{{batch_size}}/{{defense}}/{{inverter}}"
ATTACKED = "{victims}/{fl_model}/b{batch_size}/{defense}/{attack}"
RECONSTRUCTIONS = f"{RESULTS}/reconstructions/{ATTACKED}"
METRIC_ROWS = f"{RESULTS}/metrics/{ATTACKED}"
EXPERIMENT = f"{RESULTS}/experiments/{{experiment}}"
CHECKPOINTS = f"{RESULTS}/checkpoints"

IDENTIFIER = r"[a-z0-9]+(?:[-._][a-z0-9]+)*"


wildcard_constraints:
    dataset=IDENTIFIER,
    part="auxiliary|victims",
    auxiliary=IDENTIFIER,
    victims=IDENTIFIER,
    fl_model=IDENTIFIER,
    stored=IDENTIFIER,
    batch_size=r"[0-9]+",
    defense=IDENTIFIER,
    inverter=IDENTIFIER,
    attack=rf"{IDENTIFIER}(?:@{IDENTIFIER})?",
    experiment=IDENTIFIER,


def heavy_threads() -> int:
    """A share of the cores: at least two heavy jobs, and one a GPU, run side by side."""
    cores = workflow.resource_settings.cores or 1
    gpus = getattr(
        workflow.global_resources.get("gpu"), "value", None
    )  # None: not limited
    return max(1, cores // max(2, gpus or 0))


def entry(registry, section, identifier):
    """The registry and registered name behind an identifier, for `source_files`."""
    return registry, getattr(PLAN, section)[identifier].name


def dataset_of_auxiliary(wildcards):
    return PLAN.auxiliary[wildcards.auxiliary][0]


def dataset_of_victims(wildcards):
    return PLAN.victims[wildcards.victims][0]


# Input functions: `suffix` is that of large data (then the file is `ancient`, see above) or of a small file.


def fill(pattern, suffix, **wildcards):
    path = f"{pattern}{suffix}".format(**wildcards)
    return path if suffix.endswith((".json", ".csv")) else ancient(path)


def source_of_auxiliary(suffix):
    return lambda wildcards: fill(
        PART, suffix, dataset=dataset_of_auxiliary(wildcards), part="auxiliary"
    )


def source_of_victims(suffix):
    return lambda wildcards: fill(
        PART, suffix, dataset=dataset_of_victims(wildcards), part="victims"
    )


def fl_model_for(suffix, dataset_of):
    """The FL model drawn for the data set behind a wildcard."""
    return lambda wildcards: fill(
        FL_MODEL, suffix, dataset=dataset_of(wildcards), fl_model=wildcards.fl_model
    )


def gradients_for(suffix):
    """The gradient store that a defense's inverter is trained on."""
    return lambda wildcards: fill(
        GRADIENTS,
        suffix,
        auxiliary=wildcards.auxiliary,
        fl_model=wildcards.fl_model,
        stored=PLAN.stored_defense(wildcards.defense),
    )


def split_attack(wildcards):
    """The attack's identifier and that of its auxiliary set (empty where it needs none)."""
    attack, _, auxiliary = wildcards.attack.partition("@")
    return attack, auxiliary


def inverter_for(suffix):
    """The inverter that an attack needs, if any."""

    def inverter(wildcards):
        attack, auxiliary = split_attack(wildcards)
        if not PLAN.attacks[attack].needs_inverter:
            return []
        return fill(
            INVERTER,
            suffix,
            auxiliary=auxiliary,
            fl_model=wildcards.fl_model,
            batch_size=wildcards.batch_size,
            defense=wildcards.defense,
            inverter=PLAN.attack_on(attack, wildcards.defense).inverter,
        )

    return inverter


def attack_settings(wildcards):
    attack, _ = split_attack(wildcards)
    return canonical_json(PLAN.attack_on(attack, wildcards.defense).canonical())


def attack_code(wildcards):
    attack, _ = split_attack(wildcards)
    entries = [
        entry(ATTACKS, "attacks", attack),
        entry(DEFENSES, "defenses", wildcards.defense),
        entry(FL_MODELS, "fl_models", wildcards.fl_model),
    ]
    if PLAN.attacks[attack].needs_inverter:
        inverter = PLAN.attack_on(attack, wildcards.defense).inverter
        entries.append(entry(INVERTERS, "inverters", inverter))
        entries.append((PROJECTIONS, PLAN.projection(wildcards.fl_model).name))
    return source_files("attack", *entries)


def attack_names(wildcards):
    """The run's identifiers, for the tables."""
    attack, auxiliary = split_attack(wildcards)
    return canonical_json(
        {
            "dataset": dataset_of_victims(wildcards),
            "fl_model": wildcards.fl_model,
            "defense": wildcards.defense,
            "variant": attack,
            "auxiliary": auxiliary,
        }
    )


def cells_of(suffix, pattern):
    """The files of all cells of an experiment."""
    return lambda wildcards: [
        fill(pattern, suffix, **vars(cell)) for cell in PLAN.cells(wildcards.experiment)
    ]


def victims_of_experiment(suffix):
    return lambda wildcards: fill(
        VICTIMS, suffix, victims=PLAN.victims_of(wildcards.experiment)
    )


def results_of(experiment):
    return [
        f"{RESULTS}/experiments/{experiment}/{name}"
        for name in ("summary.csv", "summary.md", "summary.png", "reconstructions.png")
    ]


MEASURE_CODE, SUMMARY_CODE = (
    source_files(stage, *((METRICS, name) for name in PLAN.metrics))
    for stage in ("measure", "summarise")
)
