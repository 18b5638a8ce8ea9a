rule prepare_dataset:
    input:
        code=lambda wildcards: source_files(
            "data", entry(DATASETS, "datasets", wildcards.dataset)
        ),
    output:
        multiext(PART, data=".safetensors", card=".json"),
    log:
        "logs/prepare_dataset/{dataset}.{part}.log",
    params:
        dataset=lambda wildcards: PLAN.settings("datasets", wildcards.dataset),
    cache: "omit-software"
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti prepare-dataset --dataset {params.dataset:q} --part {wildcards.part}"
        " --output {output.data} --card {output.card} --log {log}"


rule select_auxiliary:
    input:
        source=lambda wildcards: ancient(
            PART.format(dataset=dataset_of_auxiliary(wildcards), part="auxiliary")
            + ".safetensors"
        ),
        card=lambda wildcards: PART.format(
            dataset=dataset_of_auxiliary(wildcards), part="auxiliary"
        )
        + ".json",
        code=source_files("data"),
    output:
        data=AUXILIARY + ".safetensors",
        card=AUXILIARY + ".json",
    log:
        "logs/select_auxiliary/{auxiliary}.log",
    params:
        size=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary][1].size,
        seed=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary][1].seed,
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti select-auxiliary --source {input.source} --size {params.size} --seed {params.seed}"
        " --output {output.data} --card {output.card} --log {log}"


rule select_victims:
    input:
        source=lambda wildcards: ancient(
            PART.format(dataset=dataset_of_victims(wildcards), part="victims")
            + ".safetensors"
        ),
        card=lambda wildcards: PART.format(
            dataset=dataset_of_victims(wildcards), part="victims"
        )
        + ".json",
        code=source_files("data"),
    output:
        data=VICTIMS + ".safetensors",
        card=VICTIMS + ".json",
    log:
        "logs/select_victims/{victims}.log",
    params:
        size=lambda wildcards: PLAN.victims[wildcards.victims][1].size,
        seed=lambda wildcards: PLAN.victims[wildcards.victims][1].seed,
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti select-victims --source {input.source} --size {params.size} --seed {params.seed}"
        " --output {output.data} --card {output.card} --log {log}"


rule draw_fl_model:
    input:
        card=PART.replace("{part}", "auxiliary") + ".json",
        code=lambda wildcards: source_files(
            "fl_model", entry(FL_MODELS, "fl_models", wildcards.fl_model)
        ),
    output:
        multiext(FL_MODEL, weights=".safetensors", card=".json"),
    log:
        "logs/draw_fl_model/{dataset}.{fl_model}.log",
    params:
        fl_model=lambda wildcards: PLAN.settings("fl_models", wildcards.fl_model),
    cache: "omit-software"
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti draw-fl-model --fl-model {params.fl_model:q} --dataset-card {input.card}"
        " --output {output.weights} --card {output.card} --log {log}"
