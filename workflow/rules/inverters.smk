rule train_inverter:
    input:
        auxiliary=ancient(AUXILIARY + ".safetensors"),
        auxiliary_card=AUXILIARY + ".json",
        gradients=lambda wildcards: ancient(
            GRADIENTS.format(
                auxiliary=wildcards.auxiliary,
                fl_model=wildcards.fl_model,
                stored=PLAN.stored_defense(wildcards.defense),
            )
            + ".zarr"
        ),
        manifest=lambda wildcards: GRADIENTS.format(
            auxiliary=wildcards.auxiliary,
            fl_model=wildcards.fl_model,
            stored=PLAN.stored_defense(wildcards.defense),
        )
        + ".manifest.json",
        code=lambda wildcards: source_files(
            "train",
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(INVERTERS, "inverters", wildcards.inverter),
        ),
    output:
        weights=INVERTER + ".safetensors",
        card=INVERTER + ".json",
        history=INVERTER + ".history.csv",
    log:
        "logs/train_inverter/{auxiliary}.{fl_model}.b{batch_size}.{defense}.{inverter}.log",
    benchmark:
        "logs/train_inverter/{auxiliary}.{fl_model}.b{batch_size}.{defense}.{inverter}.benchmark.tsv"
    params:
        defense=lambda wildcards: PLAN.settings("defenses", wildcards.defense),
        inverter=lambda wildcards: PLAN.settings("inverters", wildcards.inverter),
        memory_mib=PLAN.config.store.memory_mib,
        checkpoints=CHECKPOINTS,
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=8000,
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti train-inverter --auxiliary {input.auxiliary} --gradients {input.gradients}"
        " --manifest {input.manifest} --defense {params.defense:q}"
        " --inverter {params.inverter:q} --memory-mib {params.memory_mib}"
        " --checkpoints {params.checkpoints}"
        " --output {output.weights} --card {output.card} --history {output.history}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"
