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


# The paper's tables (supplement, Tables 1 to 3; main text, MSE) and its pictures, from the
# experiment at the paper's scale.
PAPER_TABLES = {
    "table1": "psnr",
    "table2": "lpips",
    "table3": "ssim",
    "table_mse": "mse",
}
PAPER_PICTURES = {"figure3": "lenet", "figure4": "resnet20"}

if "vision" in PLAN.config.experiments:
    for target, table in PAPER_TABLES.items():
        if table in tables_of("vision"):

            rule:
                name:
                    target
                input:
                    table_files("vision", table),

    for target, fl_model in PAPER_PICTURES.items():
        if fl_model in PLAN.experiment("vision").fl_models:

            rule:
                name:
                    target
                input:
                    picture_file("vision", fl_model),


# Its sentences, from the experiments on the data sets that they are of.
PAPER_TEXTS = {"figure5": "language_cola", "figure6": "language_wikitext"}

for target, experiment in PAPER_TEXTS.items():
    if experiment in PLAN.config.experiments:

        rule:
            name:
                target
            input:
                [
                    path
                    for fl_model in PLAN.experiment(experiment).fl_models
                    for path in text_files(experiment, fl_model)
                ],


onsuccess:
    requested = {str(target) for target in workflow.dag_settings.targets}
    for experiment in PLAN.config.experiments:
        if not requested or requested & {experiment, "all", "default"}:
            print(f"{experiment}:", *results_of(experiment), sep="\n  ")
