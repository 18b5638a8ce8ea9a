rule train_federated:
    input:
        fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
        fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
        samples=ancient(f"{AUXILIARY}.safetensors"),
        samples_card=f"{AUXILIARY}.json",
        test=source_of_victims(".safetensors"),
        test_card=source_of_victims(".json"),
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        code=lambda wildcards: source_files(
            "federated",
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
        ),
    output:
        history=f"{FEDERATED}.csv",
        card=f"{FEDERATED}.json",
    log:
        "logs/train_federated/{auxiliary}.{fl_model}.{defense}.{victims}.{training}.log",
    benchmark:
        "logs/train_federated/{auxiliary}.{fl_model}.{defense}.{victims}.{training}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=memory(4000),
    params:
        defense=lambda wildcards: PLAN.settings("defenses", wildcards.defense),
        training=training_settings,
        checkpoints=CHECKPOINTS,
    shell:
        "lti train-federated --fl-model {input.fl_model} --samples {input.samples}"
        " --test {input.test} --apart-from {input.victims} --defense {params.defense:q}"
        " --training {params.training:q} --checkpoints {params.checkpoints}"
        " --output {output.history} --card {output.card}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"


rule draw_utility:
    input:
        summary=f"{EXPERIMENT}/summary.csv",
        checksum=ancient(f"{EXPERIMENT}/summary.csv.sha256"),
        cards=training_cards,
        code=lambda wildcards: metric_code(
            "utility", [leakage_metric(PLAN, wildcards.experiment)]
        ),
    output:
        data=f"{EXPERIMENT}/utility.csv",
        checksum=f"{EXPERIMENT}/utility.csv.sha256",
        chart=report(
            f"{EXPERIMENT}/utility.png",
            caption="../report/utility.rst",
            category="{experiment}",
            labels={"result": "accuracy and leakage"},
        ),
    log:
        "logs/draw_utility/{experiment}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        metric=lambda wildcards: leakage_metric(PLAN, wildcards.experiment),
        trainings=trainings_option,
    shell:
        "lti draw-utility --summary {input.summary} --trainings {params.trainings:q}"
        " --metric {params.metric} --output {output.data} --chart {output.chart} --log {log}"
