rule train_inverter:
    input:
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        gradients=gradients_for(".zarr"),
        manifest=gradients_for(".manifest.json"),
        fitted=fitted_to_train(".safetensors"),
        fitted_card=fitted_to_train(".json"),
        fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
        fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
        code=lambda wildcards: source_files(
            "train",
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(INVERTERS, "inverters", wildcards.inverter),
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            entry(PROJECTIONS, "projections", wildcards.projection),
        ),
    output:
        weights=f"{INVERTER}.safetensors",
        card=f"{INVERTER}.json",
        history=f"{INVERTER}.history.csv",
    log:
        "logs/train_inverter/{auxiliary}.{fl_model}.{projection}.b{batch_size}.{defense}.{inverter}.log",
    benchmark:
        "logs/train_inverter/{auxiliary}.{fl_model}.{projection}.b{batch_size}.{defense}.{inverter}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: attempt
        * (
            4000
            + round(
                PLAN.inverters[wildcards.inverter].memory_mib(
                    PLAN.auxiliary[wildcards.auxiliary].size
                )
            )
        ),
    params:
        defense=lambda wildcards: PLAN.settings("defenses", wildcards.defense),
        projection=lambda wildcards: PLAN.settings("projections", wildcards.projection),
        inverter=lambda wildcards: PLAN.settings("inverters", wildcards.inverter),
        fitted_option=fitted_option,
        checkpoints=CHECKPOINTS,
    shell:
        "lti train-inverter --auxiliary {input.auxiliary} --gradients {input.gradients}"
        " --manifest {input.manifest} --fl-model {input.fl_model} --defense {params.defense:q}"
        " --projection {params.projection:q} {params.fitted_option}"
        " --batch-size {wildcards.batch_size}"
        " --inverter {params.inverter:q} --memory-mib $MEMORY_MIB"
        " --checkpoints {params.checkpoints}"
        " --output {output.weights} --card {output.card} --history {output.history}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"
