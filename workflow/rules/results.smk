def cells_of(experiment, pattern):
    """The files of all cells of an experiment."""
    return [pattern.format(**vars(cell)) for cell in PLAN.cells(experiment)]


MEASURE_CODE = source_files("measure", *((METRICS, name) for name in PLAN.metrics))


rule measure_attack:
    input:
        victims=ancient(VICTIMS + ".safetensors"),
        victims_card=VICTIMS + ".json",
        reconstructions=ancient(RECONSTRUCTIONS + ".safetensors"),
        reconstructions_card=RECONSTRUCTIONS + ".json",
        code=MEASURE_CODE,
    output:
        METRIC_ROWS + ".csv",
    log:
        "logs/measure_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    params:
        metrics=[f"--metric {name}" for name in PLAN.metrics],
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti measure-attack --victims {input.victims} --reconstructions {input.reconstructions}"
        " {params.metrics} --output {output} --log {log}"


rule summarise_experiment:
    input:
        metrics=lambda wildcards: cells_of(wildcards.experiment, METRIC_ROWS + ".csv"),
        code=MEASURE_CODE,
    output:
        summary=EXPERIMENT + "/summary.csv",
        table=report(
            EXPERIMENT + "/summary.md",
            caption="../report/table.rst",
            category="{experiment}",
            labels={"result": "table"},
        ),
        chart=report(
            EXPERIMENT + "/summary.png",
            caption="../report/chart.rst",
            category="{experiment}",
            labels={"result": "chart"},
        ),
    log:
        "logs/summarise_experiment/{experiment}.log",
    params:
        metrics=lambda wildcards, input: [f"--metrics {path}" for path in input.metrics],
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti summarise-experiment {params.metrics} --output {output.summary}"
        " --table {output.table} --chart {output.chart} --log {log}"


rule draw_reconstructions:
    input:
        victims=lambda wildcards: ancient(
            VICTIMS.format(victims=PLAN.victims_of(wildcards.experiment)) + ".safetensors"
        ),
        victims_card=lambda wildcards: VICTIMS.format(
            victims=PLAN.victims_of(wildcards.experiment)
        )
        + ".json",
        reconstructions=lambda wildcards: ancient(
            cells_of(wildcards.experiment, RECONSTRUCTIONS + ".safetensors")
        ),
        reconstructions_cards=lambda wildcards: cells_of(
            wildcards.experiment, RECONSTRUCTIONS + ".json"
        ),
        code=source_files("draw", (METRICS, "psnr")),
    output:
        report(
            EXPERIMENT + "/reconstructions.png",
            caption="../report/reconstructions.rst",
            category="{experiment}",
            labels={"result": "reconstructions"},
        ),
    log:
        "logs/draw_reconstructions/{experiment}.log",
    params:
        reconstructions=lambda wildcards, input: [
            f"--reconstructions {path}" for path in input.reconstructions
        ],
        shown=lambda wildcards: PLAN.experiment(wildcards.experiment).pictured,
        seed=lambda wildcards: PLAN.experiment(wildcards.experiment).picture_seed,
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti draw-reconstructions --victims {input.victims} {params.reconstructions}"
        " --count {params.shown} --seed {params.seed} --output {output} --log {log}"
