# What experiments and reports consist of: their cells, tables, pictures and curves.


def cells_of(suffix, pattern):
    """The files of all cells of an experiment."""
    return lambda wildcards: [
        fill(pattern, suffix, **vars(cell)) for cell in PLAN.cells(wildcards.experiment)
    ]


def victims_of_experiment(suffix):
    return lambda wildcards: fill(
        VICTIMS, suffix, victims=PLAN.victims_of(wildcards.experiment)
    )


def pictured(suffix):
    """The reconstructions of an experiment's cells on one FL model."""
    return lambda wildcards: [
        fill(RECONSTRUCTIONS, suffix, **vars(cell))
        for cell in PLAN.cells(wildcards.experiment)
        if cell.fl_model == wildcards.fl_model
    ]


def tokenizer_of_victims(wildcards):
    return tokenizer_of(dataset_of_victims(wildcards))


def near_copies_of(wildcards):
    """How close an experiment's auxiliary set comes to its victims; nothing for images."""
    experiment = wildcards.experiment
    auxiliary = PLAN.auxiliary_of(experiment)
    if PLAN.modality_of(experiment) == "image" or len(auxiliary) > 1:
        return []
    return [
        NEAR_COPIES.format(victims=PLAN.victims_of(experiment), auxiliary=auxiliary[0])
    ]


# They share a table; the paper's numbers compare with the first.
LPIPS = ("lpips_paper", "lpips", "lpips_alex")


def checksums_of(folder):
    """What says whether an experiment's or a report's summary is as it was written."""
    return [f"{folder}/summary.{suffix}.sha256" for suffix in ("csv", "md")]


def tables_of(experiment):
    """The metrics of an experiment's tables, by the name of the table; text's share one."""
    metrics = PLAN.metrics_of_experiment(experiment)
    if PLAN.modality_of(experiment) == "text":
        return {"text": metrics}
    tables = {name: [name] for name in metrics if name not in LPIPS}
    lpips = [name for name in LPIPS if name in metrics]
    return {**tables, "lpips": lpips} if lpips else tables


def metrics_of_table(wildcards):
    return tables_of(wildcards.experiment)[wildcards.table]


def backbones_of(metrics, suffix):
    """The pretrained networks that metrics look through, or their cards."""
    return [fill(BACKBONE, suffix, backbone=name) for name in PLAN.backbones(metrics)]


def table_files(experiment, table):
    return [
        f"{RESULTS}/experiments/{experiment}/table_{table}.{suffix}"
        for suffix in ("csv", "md", "tex")
    ]


def picture_file(experiment, fl_model):
    return f"{RESULTS}/experiments/{experiment}/reconstructions.{fl_model}.png"


def text_files(experiment, fl_model):
    return [
        f"{RESULTS}/experiments/{experiment}/texts.{fl_model}.{suffix}"
        for suffix in ("html", "pdf", "png")
    ]


def curve_files(experiment):
    return [
        f"{RESULTS}/experiments/{experiment}/curves.{suffix}"
        for suffix in ("png", "pdf", "csv")
    ]


def trained(experiment):
    """The pairs of FL model and defense that an experiment trains; none without `utility`."""
    chosen = PLAN.experiment(experiment)
    return (
        []
        if chosen.utility is None
        else [
            {"fl_model": fl_model, "defense": defense}
            for fl_model in chosen.fl_models
            for defense in chosen.defenses
        ]
    )


def training_cards(wildcards):
    """The cards of the federated trainings of an experiment."""
    return [
        fill(
            FEDERATED,
            ".json",
            auxiliary=PLAN.auxiliary_of(wildcards.experiment)[0],
            victims=PLAN.victims_of(wildcards.experiment),
            training=training_id(PLAN, wildcards.experiment),
            **pair,
        )
        for pair in trained(wildcards.experiment)
    ]


def trainings_option(wildcards, input):
    pairs = zip(trained(wildcards.experiment), input.cards, strict=True)
    return canonical_json([{**pair, "card": str(card)} for pair, card in pairs])


def training_settings(wildcards):
    return canonical_json(trainings(PLAN)[wildcards.training].model_dump(mode="json"))


def utility_files(experiment):
    """Accuracy beside leakage, where an experiment asks for it."""
    if training_id(PLAN, experiment) is None:
        return []
    return [
        f"{RESULTS}/experiments/{experiment}/utility.{suffix}"
        for suffix in ("csv", "png")
    ]


def auxiliary_of_experiment(suffix):
    return lambda wildcards: fill(
        AUXILIARY, suffix, auxiliary=PLAN.auxiliary_of(wildcards.experiment)[0]
    )


def audited_runs(wildcards, input):
    pairs = zip(input.metrics, input.reconstructions, strict=True)
    return canonical_json(
        [
            {"metrics": str(metrics), "reconstructions": str(reconstructions)}
            for metrics, reconstructions in pairs
        ]
    )


def audit_settings(wildcards):
    """Every setting that an experiment's numbers depend on."""
    return canonical_json(
        PLAN.config.model_dump(mode="json", exclude={"results", "store"})
    )


def audit_code(wildcards):
    """The stage's code, and that of the metrics, defenses and attacks that the page speaks of."""
    experiment = PLAN.experiment(wildcards.experiment)
    return source_files(
        "audit",
        *((METRICS, name) for name in PLAN.metrics_of_experiment(wildcards.experiment)),
        *(entry(DEFENSES, "defenses", name) for name in experiment.defenses),
        *(entry(ATTACKS, "attacks", name) for name in experiment.attacks),
    )


def audit_files(experiment):
    """An experiment's page, where it asks for one."""
    if PLAN.experiment(experiment).page is None:
        return []
    return [
        f"{RESULTS}/experiments/{experiment}/audit.{suffix}"
        for suffix in ("html", "json", "csv")
    ]


def results_of(experiment):
    if curve_of(PLAN, experiment) is not None:
        return [
            f"{RESULTS}/experiments/{experiment}/summary.csv",
            *curve_files(experiment),
        ]
    return [
        *(
            f"{RESULTS}/experiments/{experiment}/{name}"
            for name in ("summary.csv", "summary.md", "summary.png")
        ),
        *(
            path
            for table in tables_of(experiment)
            for path in table_files(experiment, table)
        ),
        *utility_files(experiment),
        *audit_files(experiment),
        *(
            picture_file(experiment, fl_model)
            for fl_model in PLAN.experiment(experiment).fl_models
            if PLAN.modality_of(experiment) == "image"
        ),
        *(
            path
            for fl_model in PLAN.experiment(experiment).fl_models
            if PLAN.modality_of(experiment) == "text"
            for path in text_files(experiment, fl_model)
        ),
    ]


def metrics_of_report(wildcards):
    """The metrics of a report's experiments."""
    return dict.fromkeys(
        name
        for experiment in PLAN.config.reports[wildcards.report].experiments
        for name in PLAN.metrics_of_experiment(experiment)
    )


def report_files(report):
    """A report's own files and its experiments'."""
    return [
        *(
            f"{RESULTS}/reports/{report}/{name}"
            for name in ("summary.csv", "summary.md", "summary.png")
        ),
        *(
            path
            for experiment in PLAN.config.reports[report].experiments
            for path in results_of(experiment)
        ),
    ]


def metrics_of_cell(wildcards):
    """The metrics that experiments ask for on a cell."""
    return PLAN.metrics_of(
        dataset=dataset_of_victims(wildcards),
        victims=wildcards.victims,
        fl_model=wildcards.fl_model,
        batch_size=int(wildcards.batch_size),
        defense=wildcards.defense,
        attack=wildcards.attack,
    )


def metric_code(stage, metrics):
    return source_files(stage, *((METRICS, name) for name in metrics))
