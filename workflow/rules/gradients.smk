rule fit_projection:
    input:
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
        fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
        code=lambda wildcards: source_files(
            "projection",
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            (DEFENSES, PLAN.stored_defense_names(wildcards.stored)),
            entry(PROJECTIONS, "projections", wildcards.projection),
        ),
    output:
        data=f"{FITTED}.safetensors",
        card=f"{FITTED}.json",
    log:
        "logs/fit_projection/{auxiliary}.{fl_model}.{projection}.{stored}.log",
    benchmark:
        "logs/fit_projection/{auxiliary}.{fl_model}.{projection}.{stored}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=memory(8000),
    params:
        defense=lambda wildcards: PLAN.stored_defense_settings(wildcards.stored),
        projection=lambda wildcards: PLAN.settings("projections", wildcards.projection),
    shell:
        "lti fit-projection --auxiliary {input.auxiliary} --fl-model {input.fl_model}"
        " --defense {params.defense:q} --projection {params.projection:q}"
        " --output {output.data} --card {output.card}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"


GRADIENT_INPUT = dict(
    auxiliary=ancient(f"{AUXILIARY}.safetensors"),
    auxiliary_card=f"{AUXILIARY}.json",
    fl_model=fl_model_for(".safetensors", dataset_of_auxiliary),
    fl_model_card=fl_model_for(".json", dataset_of_auxiliary),
    fitted=fitted_to_store(".safetensors"),
    fitted_card=fitted_to_store(".json"),
    code=lambda wildcards: source_files(
        "gradients",
        entry(FL_MODELS, "fl_models", wildcards.fl_model),
        (DEFENSES, PLAN.stored_defense_names(wildcards.stored)),
        entry(PROJECTIONS, "projections", wildcards.projection),
    ),
)


rule compute_gradients:
    input:
        **GRADIENT_INPUT,
        parts=parts_done,
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
        mem_mb=memory(4000),
    params:
        defense=lambda wildcards: PLAN.stored_defense_settings(wildcards.stored),
        projection=lambda wildcards: PLAN.settings("projections", wildcards.projection),
        fitted_option=fitted_option,
        mirrored=lambda wildcards: PLAN.auxiliary[wildcards.auxiliary].mirrored,
        mirrored_option=lambda wildcards: (
            "--mirrored"
            if PLAN.auxiliary[wildcards.auxiliary].mirrored
            else "--no-mirrored"
        ),
        store=lambda wildcards: f"{GRADIENTS}.zarr".format(**wildcards),
        manifest=lambda wildcards: f"{GRADIENTS}.manifest.json".format(**wildcards),
        part_option="",
    shell:
        "lti compute-gradients --auxiliary {input.auxiliary} --fl-model {input.fl_model}"
        ' --defense {params.defense:q} --projection {params.projection:q} {params.fitted_option} {params.mirrored_option} --store "$STORE"'
        " --output {params.store} --manifest {params.manifest} {params.part_option}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"


# Of a large store, some shards; `compute_gradients` then checks and seals them all.
use rule compute_gradients as compute_gradient_shards with:
    input:
        **GRADIENT_INPUT,
    output:
        done=temp(f"{GRADIENTS}.part-{{number}}-of-{{of}}.json"),
    log:
        "logs/compute_gradients/{auxiliary}.{fl_model}.{projection}.{stored}.part-{number}-of-{of}.log",
    benchmark:
        "logs/compute_gradients/{auxiliary}.{fl_model}.{projection}.{stored}.part-{number}-of-{of}.benchmark.tsv"
    params:
        part_option=lambda wildcards, output: f"--part {wildcards.number} --parts {wildcards.of} --done {output.done}",


rule observe:
    input:
        victims=ancient(f"{VICTIMS}.safetensors"),
        victims_card=f"{VICTIMS}.json",
        fl_model=fl_model_for(".safetensors", dataset_of_victims),
        fl_model_card=fl_model_for(".json", dataset_of_victims),
        fitted=fitted_to_observe(".safetensors"),
        fitted_card=fitted_to_observe(".json"),
        code=lambda wildcards: source_files(
            "gradients",
            entry(FL_MODELS, "fl_models", wildcards.fl_model),
            entry(DEFENSES, "defenses", wildcards.defense),
            entry(PROJECTIONS, "projections", projection_of(wildcards.projected)),
        ),
    output:
        store=directory(f"{OBSERVATIONS}.zarr"),
        manifest=f"{OBSERVATIONS}.manifest.json",
    log:
        "logs/observe/{victims}.{fl_model}.b{batch_size}.{projected}.{defense}.log",
    conda:
        "../../envs/lti.yaml"
    resources:
        mem_mb=memory(4000),
    params:
        defense=lambda wildcards: PLAN.settings("defenses", wildcards.defense),
        projection=lambda wildcards: PLAN.settings(
            "projections", projection_of(wildcards.projected)
        ),
        fitted_option=fitted_option,
        batches=observed_batches,
        seed=lambda wildcards: PLAN.victims[wildcards.victims][1].seed,
    shell:
        "lti observe --victims {input.victims} --fl-model {input.fl_model}"
        " --defense {params.defense:q} --projection {params.projection:q} {params.fitted_option}"
        " --batch-size {wildcards.batch_size} --batches {params.batches} --seed {params.seed}"
        " --output {output.store} --manifest {output.manifest} --threads {threads} --log {log}"
