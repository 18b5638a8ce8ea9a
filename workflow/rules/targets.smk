# Collection targets: each experiment by its name, and all of them.


rule all:
    input:
        [results_of(experiment) for experiment in PLAN.config.experiments],


for experiment in PLAN.config.experiments:

    rule:
        name:
            experiment
        input:
            results_of(experiment),


onsuccess:
    requested = {str(target) for target in workflow.dag_settings.targets}
    for experiment in PLAN.config.experiments:
        if not requested or requested & {experiment, "all", "default"}:
            print(f"{experiment}:", *results_of(experiment), sep="\n  ")
