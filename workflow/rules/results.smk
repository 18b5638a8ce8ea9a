rule measure_attack:
    input:
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        reconstructions=ancient(f"{RECONSTRUCTIONS}.safetensors"),
        reconstructions_card=f"{RECONSTRUCTIONS}.json",
        code=MEASURE_CODE,
    output:
        f"{METRIC_ROWS}.csv",
    log:
        "logs/measure_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        metrics=[f"--metric {name}" for name in PLAN.metrics],
    shell:
        "lti measure-attack --victims {input.victims} --reconstructions {input.reconstructions}"
        " {params.metrics} --output {output} --log {log}"


rule summarise_experiment:
    input:
        metrics=cells_of(".csv", METRIC_ROWS),
        code=SUMMARY_CODE,
    output:
        summary=f"{EXPERIMENT}/summary.csv",
        table=report(
            f"{EXPERIMENT}/summary.md",
            caption="../report/table.rst",
            category="{experiment}",
            labels={"result": "table"},
        ),
        chart=report(
            f"{EXPERIMENT}/summary.png",
            caption="../report/chart.rst",
            category="{experiment}",
            labels={"result": "chart"},
        ),
    log:
        "logs/summarise_experiment/{experiment}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        title=lambda wildcards: PLAN.experiment(wildcards.experiment).title,
        metrics=lambda wildcards, input: [f"--metrics {path}" for path in input.metrics],
        shown=lambda wildcards: [
            f"--metric {name}"
            for name in PLAN.experiment(wildcards.experiment).metrics
        ],
    shell:
        "lti summarise-experiment --title {params.title:q} {params.metrics} {params.shown} --output {output.summary}"
        " --table {output.table} --chart {output.chart} --log {log}"


rule draw_reconstructions:
    input:
        victims=victims_of_experiment(".safetensors"),
        victims_card=victims_of_experiment(".json"),
        reconstructions=cells_of(".safetensors", RECONSTRUCTIONS),
        reconstructions_cards=cells_of(".json", RECONSTRUCTIONS),
        code=source_files("draw", (METRICS, "psnr")),
    output:
        report(
            f"{EXPERIMENT}/reconstructions.png",
            caption="../report/reconstructions.rst",
            category="{experiment}",
            labels={"result": "reconstructions"},
        ),
    log:
        "logs/draw_reconstructions/{experiment}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        reconstructions=lambda wildcards, input: [
            f"--reconstructions {path}" for path in input.reconstructions
        ],
        shown=lambda wildcards: PLAN.experiment(wildcards.experiment).pictured,
        seed=lambda wildcards: PLAN.experiment(wildcards.experiment).picture_seed,
    shell:
        "lti draw-reconstructions --victims {input.victims} {params.reconstructions}"
        " --count {params.shown} --seed {params.seed} --output {output} --log {log}"
