# Collection targets: each experiment by its name, and all of them.


rule all:
    input:
        [results_of(experiment) for experiment in PLAN.config.experiments],
        [report_files(name) for name in PLAN.config.reports],


for experiment in PLAN.config.experiments:

    rule:
        name:
            experiment
        input:
            results_of(experiment),


for name in PLAN.config.reports:

    rule:
        name:
            name
        input:
            report_files(name),


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


# Its ablations.
PAPER_CURVES = {"figure1": "ablation_size", "figure2": "ablation_beta"}

for target, experiment in PAPER_CURVES.items():
    if experiment in PLAN.config.experiments:

        rule:
            name:
                target
            input:
                curve_files(experiment),


# Its sentences, and the tables of text, from the experiments on the data sets that they are of.
PAPER_TEXTS = {"figure5": "language_cola", "figure6": "language_wikitext"}

TEXTS = [name for name in PAPER_TEXTS.values() if name in PLAN.config.experiments]

if TEXTS:

    rule table_text:
        input:
            [table_files(experiment, "text") for experiment in TEXTS],


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
    for name in PLAN.config.reports:
        if not requested or requested & {name, "all", "default"}:
            print(f"{name}:", *report_files(name), sep="\n  ")
