rule compute_gradients:
    input:
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
        fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
        code=lambda wildcards: source_files(
            "gradients",
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            (DEFENSES, PLAN.stored_defense_name(wildcards.stored)),
            entry(PROJECTIONS, "projections", wildcards.projection),
        ),
    output:
        store=directory(f"{GRADIENTS}.zarr"),
        manifest=f"{GRADIENTS}.manifest.json",
    log:
        "logs/compute_gradients/{auxiliary}.{fl_model}.{projection}.{stored}.log",
    benchmark:
        "logs/compute_gradients/{auxiliary}.{fl_model}.{projection}.{stored}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=4000,
    params:
        defense=lambda wildcards: PLAN.stored_defense_settings(wildcards.stored),
        projection=lambda wildcards: PLAN.settings("projections", wildcards.projection),
        mirrored=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary][1].mirrored,
        mirrored_option=lambda wildcards: (
            "--mirrored"
            if PLAN.auxiliary[wildcards.auxiliary][1].mirrored
            else "--no-mirrored"
        ),
    shell:
        "lti compute-gradients --auxiliary {input.auxiliary} --fl-model {input.fl_model}"
        ' --defense {params.defense:q} --projection {params.projection:q} {params.mirrored_option} --store "$STORE"'
        " --output {output.store} --manifest {output.manifest}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"


rule observe:
    input:
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        fl_model=fl_model_for(".safetensors", dataset_of_victims),
        fl_model_card=fl_model_for(".json", dataset_of_victims),
        code=lambda wildcards: source_files(
            "gradients",
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(PROJECTIONS, "projections", wildcards.projection),
        ),
    output:
        store=directory(f"{OBSERVATIONS}.zarr"),
        manifest=f"{OBSERVATIONS}.manifest.json",
    log:
        "logs/observe/{victims}.{fl_model}.b{batch_size}.{projection}.{defense}.log",
    conda:
        "../../envs/lti.yaml"
    resources:
        mem_mb=4000,
    params:
        defense=lambda wildcards: PLAN.settings("defenses", wildcards.defense),
        projection=lambda wildcards: PLAN.settings("projections", wildcards.projection),
        batches=observed_batches,
        seed=lambda wildcards: PLAN.victims[wildcards.victims][1].seed,
    shell:
        "lti observe --victims {input.victims} --fl-model {input.fl_model}"
        " --defense {params.defense:q} --projection {params.projection:q}"
        " --batch-size {wildcards.batch_size} --batches {params.batches} --seed {params.seed}"
        " --output {output.store} --manifest {output.manifest} --threads {threads} --log {log}"
