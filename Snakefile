# The workflow itself is in workflow/; this file makes plain `snakemake` run it from here.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
