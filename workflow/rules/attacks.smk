rule run_attack:
    input:
        observations=observations_for(".zarr"),
        manifest=observations_for(".manifest.json"),
        fl_model=fl_model_for(".safetensors", dataset_of_victims),
        fl_model_card=fl_model_for(".json", dataset_of_victims),
        knowledge=lambda wildcards: knowledge_files(wildcards).values(),
        knowledge_cards=knowledge_cards,
        code=attack_code,
    output:
        data=f"{RECONSTRUCTIONS}.safetensors",
        card=f"{RECONSTRUCTIONS}.json",
    log:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    benchmark:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=memory(4000),
    params:
        attack=attack_settings,
        names=attack_names,
        knowledge=knowledge_option,
        checkpoints=CHECKPOINTS,
    shell:
        "lti run-attack --observations {input.observations} --manifest {input.manifest}"
        " --fl-model {input.fl_model} --attack {params.attack:q} --knowledge {params.knowledge:q}"
        " --names {params.names:q} --checkpoints {params.checkpoints}"
        " --output {output.data} --card {output.card}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"
