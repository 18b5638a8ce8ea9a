rule measure_attack:
    input:
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        reconstructions=ancient(f"{RECONSTRUCTIONS}.safetensors"),
        reconstructions_card=f"{RECONSTRUCTIONS}.json",
        backbones=lambda wildcards: backbones_of(
            metrics_of_cell(wildcards), ".safetensors"
        ),
        backbone_cards=lambda wildcards: backbones_of(
            metrics_of_cell(wildcards), ".json"
        ),
        tokenizer=tokenizer_of_victims,
        code=lambda wildcards: metric_code("measure", metrics_of_cell(wildcards)),
    output:
        rows=f"{METRIC_ROWS}.csv",
        checksum=f"{METRIC_ROWS}.csv.sha256",
    log:
        "logs/measure_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        metrics=lambda wildcards: [
            f"--metric {name}" for name in metrics_of_cell(wildcards)
        ],
        backbones=lambda wildcards, input: [
            f"--backbone {path}" for path in input.backbones
        ],
        tokenizer=lambda wildcards, input: [
            f"--tokenizer {path}" for path in input.tokenizer
        ],
    shell:
        "lti measure-attack --victims {input.victims} --reconstructions {input.reconstructions}"
        " {params.metrics} {params.backbones} {params.tokenizer} --output {output.rows} --threads {threads} --log {log}"


rule summarise_experiment:
    input:
        metrics=cells_of(".csv", METRIC_ROWS),
        checksums=cells_of(".csv.sha256", METRIC_ROWS),
        backbone_cards=lambda wildcards: backbones_of(
            PLAN.metrics_of_experiment(wildcards.experiment), ".json"
        ),
        near_copies=near_copies_of,
        code=lambda wildcards: metric_code(
            "summarise", PLAN.metrics_of_experiment(wildcards.experiment)
        ),
    output:
        checksums=checksums_of(EXPERIMENT),
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
            for name in PLAN.metrics_of_experiment(wildcards.experiment)
        ],
        cards=lambda wildcards, input: [
            f"--backbone-card {path}" for path in input.backbone_cards
        ],
        near_copies=lambda wildcards, input: [
            f"--near-copies {path}" for path in input.near_copies
        ],
        variations=lambda wildcards: (
            "--variations"
            if PLAN.experiment(wildcards.experiment).variations
            else "--no-variations"
        ),
    shell:
        "lti summarise-experiment --title {params.title:q} {params.metrics} {params.shown} {params.cards}"
        " {params.variations} {params.near_copies} --output {output.summary}"
        " --table {output.table} --chart {output.chart} --log {log}"


rule draw_curves:
    input:
        metrics=cells_of(".csv", METRIC_ROWS),
        checksums=cells_of(".csv.sha256", METRIC_ROWS),
        code=lambda wildcards: metric_code(
            "draw_curves", PLAN.metrics_of_experiment(wildcards.experiment)
        ),
    output:
        png=report(
            f"{EXPERIMENT}/curves.png",
            caption="../report/curves.rst",
            category="{experiment}",
            labels={"result": "curves"},
        ),
        pdf=f"{EXPERIMENT}/curves.pdf",
        data=f"{EXPERIMENT}/curves.csv",
        checksum=f"{EXPERIMENT}/curves.csv.sha256",
    log:
        "logs/draw_curves/{experiment}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        metrics=lambda wildcards, input: [f"--metrics {path}" for path in input.metrics],
        shown=lambda wildcards: [
            f"--metric {name}"
            for name in PLAN.metrics_of_experiment(wildcards.experiment)
        ],
        over=lambda wildcards: curve_of(PLAN, wildcards.experiment),
        note=lambda wildcards: curve_note(PLAN, wildcards.experiment),
    shell:
        "lti draw-curves {params.metrics} {params.shown} --over {params.over} --note {params.note:q}"
        " --output {output.png} --pdf {output.pdf} --data {output.data} --log {log}"


rule combine_summaries:
    input:
        summaries=lambda wildcards: [
            f"{RESULTS}/experiments/{experiment}/summary.csv"
            for experiment in PLAN.config.reports[wildcards.report].experiments
        ],
        tables=lambda wildcards: [
            f"{RESULTS}/experiments/{experiment}/summary.md"
            for experiment in PLAN.config.reports[wildcards.report].experiments
        ],
        checksums=lambda wildcards: [
            ancient(path)
            for experiment in PLAN.config.reports[wildcards.report].experiments
            for path in checksums_of(f"{RESULTS}/experiments/{experiment}")
        ],
        code=lambda wildcards: metric_code("combine", metrics_of_report(wildcards)),
    output:
        checksums=checksums_of(REPORT),
        summary=f"{REPORT}/summary.csv",
        table=report(
            f"{REPORT}/summary.md",
            caption="../report/table.rst",
            category="{report}",
            labels={"result": "tables"},
        ),
        chart=report(
            f"{REPORT}/summary.png",
            caption="../report/chart.rst",
            category="{report}",
            labels={"result": "chart"},
        ),
    log:
        "logs/combine_summaries/{report}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        title=lambda wildcards: PLAN.config.reports[wildcards.report].title,
        summaries=lambda wildcards, input: [
            f"--summary {path}" for path in input.summaries
        ],
        tables=lambda wildcards, input: [f"--tables {path}" for path in input.tables],
    shell:
        "lti combine-summaries --title {params.title:q} {params.summaries} {params.tables}"
        " --output {output.summary} --table {output.table} --chart {output.chart} --log {log}"


rule tabulate_metric:
    input:
        summary=f"{EXPERIMENT}/summary.csv",
        checksum=ancient(f"{EXPERIMENT}/summary.csv.sha256"),
        backbone_cards=lambda wildcards: backbones_of(
            metrics_of_table(wildcards), ".json"
        ),
        near_copies=near_copies_of,
        code=lambda wildcards: metric_code("tabulate", metrics_of_table(wildcards)),
    output:
        csv=f"{EXPERIMENT}/table_{{table}}.csv",
        markdown=report(
            f"{EXPERIMENT}/table_{{table}}.md",
            caption="../report/metric_table.rst",
            category="{experiment}",
            labels={"result": "table of {table}"},
        ),
        latex=f"{EXPERIMENT}/table_{{table}}.tex",
    log:
        "logs/tabulate_metric/{experiment}.{table}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        title=lambda wildcards: PLAN.experiment(wildcards.experiment).title,
        metrics=lambda wildcards: [
            f"--metric {name}" for name in metrics_of_table(wildcards)
        ],
        cards=lambda wildcards, input: [
            f"--backbone-card {path}" for path in input.backbone_cards
        ],
        near_copies=lambda wildcards, input: [
            f"--near-copies {path}" for path in input.near_copies
        ],
    shell:
        "lti tabulate --summary {input.summary} --title {params.title:q} {params.metrics}"
        " {params.cards} {params.near_copies} --output {output.csv} --markdown {output.markdown}"
        " --latex {output.latex} --log {log}"


rule draw_reconstructions:
    input:
        victims=victims_of_experiment(".safetensors"),
        victims_card=victims_of_experiment(".json"),
        reconstructions=pictured(".safetensors"),
        reconstructions_cards=pictured(".json"),
        code=source_files("draw", (METRICS, "psnr")),
    output:
        report(
            f"{EXPERIMENT}/reconstructions.{{fl_model}}.png",
            caption="../report/reconstructions.rst",
            category="{experiment}",
            labels={"result": "reconstructions, {fl_model}"},
        ),
    log:
        "logs/draw_reconstructions/{experiment}.{fl_model}.log",
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


rule draw_texts:
    input:
        victims=victims_of_experiment(".safetensors"),
        victims_card=victims_of_experiment(".json"),
        tokenizer=lambda wildcards: tokenizer_of(
            PLAN.experiment(wildcards.experiment).dataset
        ),
        fl_model_card=fl_model_for(
            ".json", lambda wildcards: PLAN.experiment(wildcards.experiment).dataset
        ),
        reconstructions=pictured(".safetensors"),
        reconstructions_cards=pictured(".json"),
        code=source_files("draw_texts"),
    output:
        html=report(
            f"{EXPERIMENT}/texts.{{fl_model}}.html",
            caption="../report/texts.rst",
            category="{experiment}",
            labels={"result": "sentences, {fl_model} (page)"},
        ),
        pdf=report(
            f"{EXPERIMENT}/texts.{{fl_model}}.pdf",
            caption="../report/texts.rst",
            category="{experiment}",
            labels={"result": "sentences, {fl_model} (PDF)"},
        ),
        png=report(
            f"{EXPERIMENT}/texts.{{fl_model}}.png",
            caption="../report/texts.rst",
            category="{experiment}",
            labels={"result": "sentences, {fl_model}"},
        ),
    log:
        "logs/draw_texts/{experiment}.{fl_model}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        title=lambda wildcards: PLAN.experiment(wildcards.experiment).title,
        reconstructions=lambda wildcards, input: [
            f"--reconstructions {path}" for path in input.reconstructions
        ],
        shown=lambda wildcards: PLAN.experiment(wildcards.experiment).pictured,
        seed=lambda wildcards: PLAN.experiment(wildcards.experiment).picture_seed,
    shell:
        "lti draw-texts --victims {input.victims} --tokenizer {input.tokenizer}"
        " --fl-model-card {input.fl_model_card} {params.reconstructions} --title {params.title:q}"
        " --count {params.shown} --seed {params.seed} --html {output.html} --pdf {output.pdf}"
        " --png {output.png} --log {log}"
