# Collection targets: each experiment by its name, and all of them.


def results_of(experiment):
    return [
        f"{EXPERIMENT}/{name}".format(experiment=experiment)
        for name in ("summary.csv", "summary.md", "summary.png", "reconstructions.png")
    ]


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
    for experiment in PLAN.config.experiments:
        paths = results_of(experiment)
        if all(os.path.exists(path) for path in paths):
            print(f"{experiment}:", *paths, sep="\n  ")
