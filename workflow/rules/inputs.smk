# Input functions and what they are made of. `suffix` is that of large data (then the file is
# `ancient`, see common.smk) or of a small file.


def fill(pattern, suffix, **wildcards):
    path = f"{pattern}{suffix}".format(**wildcards)
    return path if suffix.endswith((".json", ".csv")) else ancient(path)


def tokenizer_of(dataset):
    """The tokenizer of a data set of text that is read; none of others."""
    of = PLAN.tokenizer_of(dataset)
    return [] if of is None else [TOKENIZER.format(dataset=of)]


def imitated(suffix):
    """What a synthetic data set imitates; nothing where it is read."""

    def files(wildcards):
        of = PLAN.imitated_by(wildcards.dataset)
        return [] if of is None else [fill(PART, suffix, dataset=of, part="auxiliary")]

    return files


def sources_of_auxiliary(suffix):
    """What an auxiliary set is drawn from, first what is like the victims."""
    return lambda wildcards: [
        fill(PART, suffix, dataset=dataset, part="auxiliary")
        for dataset, _ in PLAN.pools_of(wildcards.auxiliary)
    ]


def victims_beside(suffix):
    """What the victims of an auxiliary set's attacker are drawn from."""
    return lambda wildcards: fill(
        PART, suffix, dataset=PLAN.pools_of(wildcards.auxiliary)[0][0], part="victims"
    )


def shifted_pools(wildcards, input):
    pools = PLAN.pools_of(wildcards.auxiliary)
    return canonical_json(
        [
            {"source": str(path), "classes": classes}
            for path, (_, classes) in zip(input.sources[1:], pools[1:])
        ]
    )


def source_of_victims(suffix):
    return lambda wildcards: fill(
        PART, suffix, dataset=dataset_of_victims(wildcards), part="victims"
    )


def tokenizer_of_included(wildcards):
    """What finds victims that are included by their text; nothing where none are."""
    dataset, victims = PLAN.victims[wildcards.victims]
    if any(isinstance(entry, str) for entry in victims.include):
        return tokenizer_of(dataset)
    return []


def calibration_samples(wildcards):
    """The samples that an FL model's statistics are made from; nothing where it has none."""
    if not PLAN.fl_models[wildcards.fl_model].calibration_samples:
        return []
    return [fill(PART, ".safetensors", dataset=wildcards.dataset, part="auxiliary")]


def fl_model_for(suffix, dataset_of):
    """The FL model drawn for the data set behind a wildcard."""
    return lambda wildcards: fill(
        FL_MODEL, suffix, dataset=dataset_of(wildcards), fl_model=wildcards.fl_model
    )


def gradients_for(suffix):
    """The gradient store that a defense's inverter is trained on."""
    return lambda wildcards: stored_gradients(
        suffix, wildcards, wildcards.auxiliary, wildcards.projection
    )


def stored_gradients(suffix, wildcards, auxiliary, projection):
    return fill(
        GRADIENTS,
        suffix,
        auxiliary=PLAN.stored_auxiliary(auxiliary),
        fl_model=wildcards.fl_model,
        **stored_of(wildcards, projection),
    )


def stored_of(wildcards, projection):
    """The projection and the defense that a store's rows went through."""
    batch_size = int(wildcards.batch_size)
    return {
        "projection": PLAN.stored_projection(projection, wildcards.defense, batch_size),
        "stored": PLAN.stored_defense(wildcards.defense, batch_size),
    }


def split_attack(wildcards):
    """The attack's identifier and that of its auxiliary set (empty where it needs none)."""
    attack, _, auxiliary = wildcards.attack.partition("@")
    return attack, auxiliary


def stored_auxiliary_of_attack(wildcards):
    """The auxiliary set whose gradients are stored for the attack; empty where it needs none."""
    auxiliary = split_attack(wildcards)[1]
    return PLAN.stored_auxiliary(auxiliary) if auxiliary else ""


def attack_on(wildcards):
    """The attack with its settings on this cell."""
    return PLAN.attack_on(
        split_attack(wildcards)[0],
        fl_model=wildcards.fl_model,
        batch_size=int(wildcards.batch_size),
        defense=wildcards.defense,
    )


def observations_for(suffix):
    """What an attack reads of the victims, under its projection."""
    return lambda wildcards: fill(
        OBSERVATIONS,
        suffix,
        victims=wildcards.victims,
        fl_model=wildcards.fl_model,
        batch_size=wildcards.batch_size,
        projected=PLAN.observed_projection(
            attack_on(wildcards), stored_auxiliary_of_attack(wildcards)
        ),
        defense=wildcards.defense,
    )


def observed_batches(wildcards):
    """How many victim batches the attacks on these observations ask for."""
    return PLAN.observed_batches(
        victims=wildcards.victims,
        fl_model=wildcards.fl_model,
        batch_size=int(wildcards.batch_size),
        projection=wildcards.projected,
        defense=wildcards.defense,
    )


def projection_of(projected):
    """The identifier of a projection in that of projected observations."""
    return projected.partition("@")[0]


def fitted_to_store(suffix):
    """What a store's projection is made of; nothing where its settings say all."""
    return lambda wildcards: (
        [fill(FITTED, suffix, **dict(wildcards.items()))]
        if PLAN.projections[wildcards.projection].is_fitted
        else []
    )


def fitted_to_train(suffix):
    """What the projection of an inverter's store is made of; nothing where settings say all."""
    return lambda wildcards: (
        [
            fill(
                FITTED,
                suffix,
                auxiliary=PLAN.stored_auxiliary(wildcards.auxiliary),
                fl_model=wildcards.fl_model,
                **stored_of(wildcards, wildcards.projection),
            )
        ]
        if PLAN.projections[wildcards.projection].is_fitted
        else []
    )


def fitted_to_observe(suffix):
    """What the projection of observations is made of; nothing where its settings say all."""

    def files(wildcards):
        projection, _, auxiliary = wildcards.projected.partition("@")
        if not PLAN.projections[projection].is_fitted:
            return []
        return [
            fill(
                FITTED,
                suffix,
                auxiliary=auxiliary,
                fl_model=wildcards.fl_model,
                projection=projection,
                stored=PLAN.stored_defense(
                    wildcards.defense, int(wildcards.batch_size)
                ),
            )
        ]

    return files


def fitted_option(wildcards, input):
    return f"--fitted {input.fitted}" if input.fitted else ""


def parts_of_store(wildcards):
    """Into how many parts the jobs that write a store divide it."""
    size = PLAN.auxiliary[wildcards.auxiliary].size
    return -(-size // PLAN.config.store.samples_per_job)


def parts_done(wildcards):
    """What says that all parts are written, where there are several."""
    parts = parts_of_store(wildcards)
    return (
        expand(
            f"{GRADIENTS}.part-{{number}}-of-{{of}}.json",
            **wildcards,
            number=range(parts),
            of=parts,
        )
        if parts > 1
        else []
    )
