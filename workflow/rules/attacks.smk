def split_attack(wildcards):
    """The attack's identifier and that of its auxiliary set (empty where it needs none)."""
    attack, _, auxiliary = wildcards.attack.partition("@")
    return attack, auxiliary


def inverter_file(suffix):
    def files(wildcards):
        attack, auxiliary = split_attack(wildcards)
        settings = PLAN.attacks[attack]
        if not settings.needs_inverter:
            return []
        return (
            INVERTER.format(
                auxiliary=auxiliary,
                fl_model=wildcards.fl_model,
                batch_size=wildcards.batch_size,
                defense=wildcards.defense,
                inverter=settings.inverter,
            )
            + suffix
        )

    return files


def attack_code(wildcards):
    attack, _ = split_attack(wildcards)
    entries = [
        entry(ATTACKS, "attacks", attack),
        entry(DEFENSES, "defenses", wildcards.defense),
        entry(FL_MODELS, "fl_models", wildcards.fl_model),
    ]
    files = source_files("attack", *entries)
    if PLAN.attacks[attack].needs_inverter:
        inverter = PLAN.attacks[attack].inverter
        files += source_files("attack", entry(INVERTERS, "inverters", inverter))
    return sorted(set(files))


def attack_names(wildcards):
    attack, auxiliary = split_attack(wildcards)
    return canonical_json(
        {
            "dataset": dataset_of_victims(wildcards),
            "fl_model": wildcards.fl_model,
            "defense": wildcards.defense,
            "variant": attack,
            "auxiliary": auxiliary,
        }
    )


rule run_attack:
    input:
        observations=ancient(OBSERVATIONS + ".zarr"),
        manifest=OBSERVATIONS + ".manifest.json",
        fl_model=lambda wildcards: ancient(
            fl_model_for(".safetensors", dataset_of_victims)(wildcards)
        ),
        fl_model_card=fl_model_for(".json", dataset_of_victims),
        inverter=lambda wildcards: ancient(inverter_file(".safetensors")(wildcards)),
        inverter_card=inverter_file(".json"),
        code=attack_code,
    output:
        data=RECONSTRUCTIONS + ".safetensors",
        card=RECONSTRUCTIONS + ".json",
    log:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.log",
    benchmark:
        "logs/run_attack/{victims}.{fl_model}.b{batch_size}.{defense}.{attack}.benchmark.tsv"
    params:
        attack=lambda wildcards: PLAN.settings("attacks", split_attack(wildcards)[0]),
        names=attack_names,
        inverter_option=lambda wildcards, input: (
            f"--inverter {input.inverter}" if input.inverter else ""
        ),
        checkpoints=CHECKPOINTS,
    threads: heavy_threads()
    resources:
        gpu=1,
        mem_mb=4000,
    conda:
        "../../envs/lti.yaml"
    shell:
        "lti run-attack --observations {input.observations} --manifest {input.manifest}"
        " --fl-model {input.fl_model} --attack {params.attack:q} {params.inverter_option}"
        " --names {params.names:q} --checkpoints {params.checkpoints}"
        " --output {output.data} --card {output.card}"
        " --threads {threads} --gpus {resources.gpu} --log {log}"
