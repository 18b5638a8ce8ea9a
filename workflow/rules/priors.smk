rule fit_prior:
    input:
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
        fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
        inverter=start_inverter(".safetensors"),
        inverter_card=start_inverter(".json"),
        fitted=fitted_to_refine(".safetensors"),
        fitted_card=fitted_to_refine(".json"),
        code=lambda wildcards: source_files(
            "prior",
            entry(ATTACKS, "attacks", wildcards.attack),
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            entry(INVERTERS, "inverters", start_on(wildcards).inverter),
            entry(PROJECTIONS, "projections", start_on(wildcards).projection),
        ),
    output:
        data=f"{PRIOR}.safetensors",
        card=f"{PRIOR}.json",
        tried=f"{PRIOR}.tried.csv",
    log:
        "logs/fit_prior/{auxiliary}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    benchmark:
        "logs/fit_prior/{auxiliary}.{fl_model}.b{batch_size}.{defense}.{attack}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=memory(8000),
    params:
        attack=lambda wildcards: canonical_json(
            attack_on(wildcards).canonical() | {"victims": None}
        ),
        fitted_option=fitted_option,
        checkpoints=CHECKPOINTS,
    shell:
        "lti fit-prior --auxiliary {input.auxiliary} --fl-model {input.fl_model}"
        " --inverter {input.inverter} {params.fitted_option} --attack {params.attack:q}"
        " --checkpoints {params.checkpoints}"
        " --output {output.data} --card {output.card} --tried {output.tried}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"
