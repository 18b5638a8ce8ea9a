rule write_audit:
    input:
        metrics=cells_of(".csv", METRIC_ROWS),
        checksums=cells_of(".csv.sha256", METRIC_ROWS),
        reconstructions=cells_of(".safetensors", RECONSTRUCTIONS),
        reconstructions_cards=cells_of(".json", RECONSTRUCTIONS),
        victims=victims_of_experiment(".safetensors"),
        victims_card=victims_of_experiment(".json"),
        auxiliary=auxiliary_of_experiment(".safetensors"),
        auxiliary_card=auxiliary_of_experiment(".json"),
        fl_model_card=lambda wildcards: fill(
            FL_MODEL,
            ".json",
            dataset=PLAN.experiment(wildcards.experiment).dataset,
            fl_model=PLAN.experiment(wildcards.experiment).fl_models[0],
        ),
        tokenizer=lambda wildcards: tokenizer_of(
            PLAN.experiment(wildcards.experiment).dataset
        ),
        cards=training_cards,
        code=audit_code,
    output:
        html=report(
            f"{EXPERIMENT}/audit.html",
            caption="../report/audit.rst",
            category="{experiment}",
            labels={"result": "audit"},
        ),
        data=f"{EXPERIMENT}/audit.json",
        table=f"{EXPERIMENT}/audit.csv",
    log:
        "logs/write_audit/{experiment}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        title=lambda wildcards: PLAN.experiment(wildcards.experiment).title,
        runs=audited_runs,
        trainings=trainings_option,
        page=lambda wildcards: canonical_json(
            PLAN.experiment(wildcards.experiment).page.model_dump()
        ),
        settings=audit_settings,
        tokenizer=lambda wildcards, input: [
            f"--tokenizer {path}" for path in input.tokenizer
        ],
        cards=lambda wildcards, input: [
            f"--cards {path}"
            for path in (
                input.victims_card,
                input.auxiliary_card,
                input.fl_model_card,
                *input.reconstructions_cards,
                *input.cards,
            )
        ],
    shell:
        "lti write-audit --title {params.title:q} --victims {input.victims} --auxiliary {input.auxiliary}"
        " --fl-model-card {input.fl_model_card} {params.tokenizer} --runs {params.runs:q}"
        " --trainings {params.trainings:q} --page {params.page:q} --settings {params.settings:q}"
        " {params.cards} --html {output.html} --data {output.data} --table {output.table} --log {log}"
