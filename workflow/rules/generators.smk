rule train_generator:
    input:
        auxiliary=ancient(f"{AUXILIARY}.safetensors"),
        auxiliary_card=f"{AUXILIARY}.json",
        code=lambda wildcards: source_files(
            "generator", entry(GENERATORS, "generators", wildcards.generator)
        ),
    output:
        weights=f"{GENERATOR}.safetensors",
        card=f"{GENERATOR}.json",
        history=f"{GENERATOR}.history.csv",
    log:
        "logs/train_generator/{auxiliary}.{generator}.log",
    benchmark:
        "logs/train_generator/{auxiliary}.{generator}.benchmark.tsv"
    conda:
        "../../envs/lti.yaml"
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=memory(4000),
    params:
        generator=lambda wildcards: PLAN.settings("generators", wildcards.generator),
        checkpoints=CHECKPOINTS,
    shell:
        "lti train-generator --auxiliary {input.auxiliary} --generator {params.generator:q}"
        " --checkpoints {params.checkpoints} --output {output.weights} --card {output.card}"
        " --history {output.history} --threads {threads} --gpus {resources.gpu} --log {log}"
