import shlex
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import lti
from lti.attacks import ATTACKS
from lti.auditing.expand import expand_audit
from lti.config import parse_config
from lti.data.dataset import DATASETS
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FL_MODELS
from lti.generators import GENERATORS
from lti.imports import allow_objects, named_objects, search_modules
from lti.inverters import INVERTERS
from lti.metrics import METRICS
from lti.metrics.backbones import check_available
from lti.modules import source_files
from lti.curve_plan import curve_note, curve_of
from lti.plan import Plan
from lti.projections import PROJECTIONS
from lti.utility_plan import leakage_metric, training_id, trainings
from lti.yaml_file import read_yaml
from snakemake.exceptions import WorkflowError

# A scheduler's warning is for the stages, which handle it; it reaches Snakemake in a job as well.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# A user's own modules: in the working folder, or beside the configuration's file.
search_modules([".", *(Path(file).parent for file in workflow.configfiles)])

try:
    for file in workflow.configfiles:
        # It refuses what Snakemake lets pass: a key that stands twice.
        read_yaml(file)
    PLAN = Plan(parse_config(expand_audit(config) if "audit" in config else config))
    check_available(PLAN.config.metrics.require, f"{PLAN.config.results}/backbones")
except LTIError as error:
    raise WorkflowError(f"The configuration cannot be used:\n{error}") from None

allow_objects(
    [
        *named_objects(PLAN.config.model_dump()),
        *(name for model in PLAN.fl_models.values() for name in model.objects()),
    ]
)

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
REQUIRED = ",".join(PLAN.backbones(PLAN.config.metrics.require))
# Doubled braces: Snakemake formats the prefix.
shell.prefix(
    "set -euo pipefail; "
    f"STORE={STORE.replace('{', '{{').replace('}', '}}')}; MEMORY_MIB={MEMORY_MIB}; REQUIRED={REQUIRED}; "
    # In the shell's place: a scheduler's SIGTERM would end the shell, and Snakemake would not wait.
    "lti() {{ "
    f'exec env PYTHONPATH="{CHECKOUT}${{{{PYTHONPATH:+:$PYTHONPATH}}}}" "{PYTHON}" -m lti "$@"; }}}}; '
)

RESULTS = PLAN.config.results

# Artifacts. Each file has a small JSON card (a store: its manifest) that holds a digest of
# the content. Rules depend on the card's content and on the file's existence (`ancient`), so
# that touching a large file costs nothing.
PART = f"{RESULTS}/data/{{dataset}}/{{part}}"
TOKENIZER = f"{RESULTS}/data/{{dataset}}/tokenizer.json"
AUXILIARY = f"{RESULTS}/data/auxiliary/{{auxiliary}}"
VICTIMS = f"{RESULTS}/data/victims/{{victims}}"
NEAR_COPIES = f"{RESULTS}/data/near_copies/{{victims}}/{{auxiliary}}.safetensors"
FL_MODEL = f"{RESULTS}/fl_models/{{dataset}}/{{fl_model}}"
FITTED = f"{RESULTS}/projections/{{auxiliary}}/{{fl_model}}/{{projection}}/{{stored}}"
GRADIENTS = f"{RESULTS}/gradients/{{auxiliary}}/{{fl_model}}/{{projection}}/{{stored}}"
OBSERVATIONS = f"{RESULTS}/observations/{{victims}}/{{fl_model}}/b{{batch_size}}/{{projected}}/{{defense}}"
INVERTER = f"{RESULTS}/inverters/{{auxiliary}}/{{fl_model}}/{{projection}}/b{{batch_size}}/{{defense}}/{{inverter}}"
PRIOR = f"{RESULTS}/priors/{{auxiliary}}/{{fl_model}}/b{{batch_size}}/{{defense}}/{{attack}}"
GENERATOR = f"{RESULTS}/generators/{{auxiliary}}/{{generator}}"
FEDERATED = f"{RESULTS}/federated/{{auxiliary}}/{{fl_model}}/{{defense}}/{{victims}}/{{training}}"
ATTACKED = "{victims}/{fl_model}/b{batch_size}/{defense}/{attack}"
RECONSTRUCTIONS = f"{RESULTS}/reconstructions/{ATTACKED}"
METRIC_ROWS = f"{RESULTS}/metrics/{ATTACKED}"
EXPERIMENT = f"{RESULTS}/experiments/{{experiment}}"
REPORT = f"{RESULTS}/reports/{{report}}"
BACKBONE = f"{RESULTS}/backbones/{{backbone}}"
CHECKPOINTS = f"{RESULTS}/checkpoints"

IDENTIFIER = r"[a-z0-9]+(?:[-._][a-z0-9]+)*"


wildcard_constraints:
    dataset=IDENTIFIER,
    part="auxiliary|victims",
    auxiliary=IDENTIFIER,
    victims=IDENTIFIER,
    fl_model=IDENTIFIER,
    stored=IDENTIFIER,
    projection=IDENTIFIER,
    projected=rf"{IDENTIFIER}(?:@{IDENTIFIER})?",
    batch_size=r"[1-9][0-9]*",
    number=r"[0-9]+",
    of=r"[1-9][0-9]*",
    defense=IDENTIFIER,
    inverter=IDENTIFIER,
    generator=IDENTIFIER,
    backbone=IDENTIFIER,
    attack=rf"{IDENTIFIER}(?:@{IDENTIFIER})?",
    experiment=IDENTIFIER,
    report=IDENTIFIER,
    table=IDENTIFIER,
    training="[0-9a-f]{16}",


def heavy_threads() -> int:
    """A share of the cores: at least two heavy jobs, and one a GPU, run side by side."""
    cores = workflow.resource_settings.cores or 1
    gpus = getattr(
        workflow.global_resources.get("gpu"), "value", None
    )  # None: not limited
    return max(1, cores // max(2, gpus or 0))


def memory(mib: int):
    """MiB of memory, as a resource: as much more at every attempt (`--retries`)."""
    return lambda wildcards, attempt: mib * attempt


def entry(registry, section, identifier):
    """The registry and registered names behind an identifier, for `source_files`."""
    return registry, getattr(PLAN, section)[identifier].registered_names()


def dataset_of_auxiliary(wildcards):
    return PLAN.auxiliary[wildcards.auxiliary].dataset


def dataset_of_victims(wildcards):
    return PLAN.victims[wildcards.victims][0]
