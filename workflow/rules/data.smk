rule prepare_tokenizer:
    input:
        code=lambda wildcards: source_files(
            "data", entry(DATASETS, "datasets", wildcards.dataset)
        ),
    output:
        multiext(TOKENIZER, file="", checksum=".sha256"),
    log:
        "logs/prepare_tokenizer/{dataset}.log",
    cache: "omit-software"
    conda:
        "../../envs/lti.yaml"
    params:
        dataset=lambda wildcards: PLAN.settings("datasets", wildcards.dataset),
        # What it is trained on can be another text without any other setting.
        corpus=lambda wildcards: PLAN.datasets[wildcards.dataset].corpus("auxiliary"),
    shell:
        "lti prepare-tokenizer --dataset {params.dataset:q} --output {output.file} --log {log}"


rule prepare_dataset:
    input:
        tokenizer=lambda wildcards: tokenizer_of(wildcards.dataset),
        of=imitated(".safetensors"),
        of_card=imitated(".json"),
        code=lambda wildcards: source_files(
            "data", entry(DATASETS, "datasets", wildcards.dataset)
        ),
    output:
        multiext(PART, data=".safetensors", card=".json"),
    log:
        "logs/prepare_dataset/{dataset}.{part}.log",
    cache: "omit-software"
    conda:
        "../../envs/lti.yaml"
    params:
        dataset=lambda wildcards: PLAN.settings("datasets", wildcards.dataset),
        # A parameter: the between-workflow cache does not tell wildcards apart.
        part=lambda wildcards: wildcards.part,
        # The mirror that an environment variable names and Python itself can hold other text.
        corpus=lambda wildcards: PLAN.datasets[wildcards.dataset].corpus(wildcards.part),
        tokenizer=lambda wildcards, input: [
            f"--tokenizer {path}" for path in input.tokenizer
        ],
        of=lambda wildcards, input: [f"--of {path}" for path in input.of],
    shell:
        "lti prepare-dataset --dataset {params.dataset:q} --part {params.part}"
        " {params.tokenizer} {params.of}"
        " --output {output.data} --card {output.card} --log {log}"


rule select_auxiliary:
    input:
        sources=sources_of_auxiliary(".safetensors"),
        cards=sources_of_auxiliary(".json"),
        victims=victims_beside(".safetensors"),
        victims_card=victims_beside(".json"),
        code=source_files("selection"),
    output:
        data=f"{AUXILIARY}.safetensors",
        card=f"{AUXILIARY}.json",
    log:
        "logs/select_auxiliary/{auxiliary}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        size=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary].size,
        of=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary].of,
        seed=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary].seed,
        beta=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary].beta,
        classes=lambda wildcards: canonical_json(
            PLAN.pools_of(wildcards.auxiliary)[0][1]
        ),
        shifted=shifted_pools,
    shell:
        "lti select-auxiliary --source {input.sources[0]} --size {params.size} --of {params.of} --seed {params.seed}"
        " --classes {params.classes:q} --shifted {params.shifted:q} --beta {params.beta}"
        " --victims {input.victims}"
        " --output {output.data} --card {output.card} --log {log}"


rule select_victims:
    input:
        source=source_of_victims(".safetensors"),
        card=source_of_victims(".json"),
        tokenizer=tokenizer_of_included,
        code=source_files("selection"),
    output:
        data=f"{VICTIMS}.safetensors",
        card=f"{VICTIMS}.json",
    log:
        "logs/select_victims/{victims}.log",
    conda:
        "../../envs/lti.yaml"
    params:
        size=lambda wildcards: PLAN.victims[wildcards.victims][1].size,
        seed=lambda wildcards: PLAN.victims[wildcards.victims][1].seed,
        classes=lambda wildcards: canonical_json(PLAN.classes_of(wildcards.victims)),
        include=lambda wildcards: canonical_json(
            PLAN.victims[wildcards.victims][1].include
        ),
        tokenizer=lambda wildcards, input: [
            f"--tokenizer {path}" for path in input.tokenizer
        ],
    shell:
        "lti select-victims --source {input.source} --size {params.size} --seed {params.seed}"
        " --classes {params.classes:q} --include {params.include:q} {params.tokenizer} --output {output.data} --card {output.card} --log {log}"


rule find_near_copies:
    input:
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        code=source_files("near_copies"),
    output:
        NEAR_COPIES,
    log:
        "logs/find_near_copies/{victims}.{auxiliary}.log",
    conda:
        "../../envs/lti.yaml"
    resources:
        mem_mb=memory(2000),
    shell:
        "lti find-near-copies --victims {input.victims} --auxiliary {input.auxiliary}"
        " --output {output} --log {log}"


rule draw_fl_model:
    input:
        card=lambda wildcards: fill(
            PART, ".json", dataset=wildcards.dataset, part="auxiliary"
        ),
        samples=calibration_samples,
        files=lambda wildcards: PLAN.fl_models[wildcards.fl_model].files(),
        code=lambda wildcards: source_files(
            "fl_model", entry(FL_MODELS, "fl_models", wildcards.fl_model)
        ),
    output:
        multiext(FL_MODEL, weights=".safetensors", card=".json"),
    log:
        "logs/draw_fl_model/{dataset}.{fl_model}.log",
    cache: "omit-software"
    conda:
        "../../envs/lti.yaml"
    params:
        fl_model=lambda wildcards: PLAN.settings("fl_models", wildcards.fl_model),
        samples=lambda wildcards, input: [f"--samples {path}" for path in input.samples],
    shell:
        "lti draw-fl-model --fl-model {params.fl_model:q} --dataset-card {input.card} {params.samples}"
        " --output {output.weights} --card {output.card} --log {log}"


rule fetch_backbone:
    # No code: the content is fixed by its checksum, and a rerun downloads half a gigabyte.
    # No cache: it would keep "cannot be had" for every workflow.
    output:
        multiext(BACKBONE, weights=".safetensors", card=".json"),
    log:
        "logs/fetch_backbone/{backbone}.log",
    conda:
        "../../envs/lti.yaml"
    shell:
        'lti fetch-backbone --backbone {wildcards.backbone} --required "$REQUIRED"'
        " --output {output.weights} --card {output.card} --log {log}"
