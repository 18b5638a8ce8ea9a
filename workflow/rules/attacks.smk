ATTACK_INPUT = dict(
    observations=observations_for(".zarr"),
    manifest=observations_for(".manifest.json"),
    fl_model=fl_model_for(".safetensors", dataset_of_victims),
    fl_model_card=fl_model_for(".json", dataset_of_victims),
    knowledge=lambda wildcards: knowledge_files(wildcards).values(),
    knowledge_cards=knowledge_cards,
    code=attack_code,
)


rule run_attack:
    input:
        **ATTACK_INPUT,
        parts=parts_attacked,
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
        part_option=join_option,
    shell:
        "lti run-attack --observations {input.observations} --manifest {input.manifest}"
        " --fl-model {input.fl_model} --attack {params.attack:q} --knowledge {params.knowledge:q}"
        " --names {params.names:q} --checkpoints {params.checkpoints}"
        " --output {output.data} --card {output.card} {params.part_option}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"


# Of many victims, some blocks; `run_attack` then puts them together.
use rule run_attack as attack_victim_blocks with:
    input:
        **ATTACK_INPUT,
    output:
        data=temp(f"{RECONSTRUCTIONS}.part-{{number}}-of-{{of}}"),
        card=temp(f"{RECONSTRUCTIONS}.part-{{number}}-of-{{of}}.card"),
    log:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.part-{number}-of-{of}.log",
    benchmark:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.part-{number}-of-{of}.benchmark.tsv"
    params:
        part_option=lambda wildcards: f"--part {wildcards.number} --parts {wildcards.of}",
