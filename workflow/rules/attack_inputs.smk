# What attacks read besides observations: files made of auxiliary data, and one another.


def knowledge_files(wildcards):
    """The files made of auxiliary data that an attack reads, by what they are."""
    attack, auxiliary = attack_on(wildcards), split_attack(wildcards)[1]
    files = {}
    if "inverter" in attack.needs:
        files["inverter"] = fill(
            INVERTER,
            ".safetensors",
            auxiliary=auxiliary,
            fl_model=wildcards.fl_model,
            projection=attack.projection,
            batch_size=wildcards.batch_size,
            defense=wildcards.defense,
            inverter=attack.inverter,
        )
    if "prior" in attack.needs:
        files["prior"] = fill(
            PRIOR,
            ".safetensors",
            auxiliary=auxiliary,
            fl_model=wildcards.fl_model,
            batch_size=wildcards.batch_size,
            defense=wildcards.defense,
            attack=split_attack(wildcards)[0],
        )
    if "start" in attack.needs:
        files["start"] = fill(
            RECONSTRUCTIONS,
            ".safetensors",
            victims=wildcards.victims,
            fl_model=wildcards.fl_model,
            batch_size=wildcards.batch_size,
            defense=wildcards.defense,
            attack=f"{attack.start}@{auxiliary}",
        )
    if "generator" in attack.needs:
        files["generator"] = fill(
            GENERATOR, ".safetensors", auxiliary=auxiliary, generator=attack.generator
        )
    if "gradients" in attack.needs:
        files["auxiliary"] = fill(AUXILIARY, ".safetensors", auxiliary=auxiliary)
        for key, suffix in (("gradients", ".zarr"), ("manifest", ".manifest.json")):
            files[key] = stored_gradients(
                suffix, wildcards, auxiliary, attack.projection
            )
    return files


def start_on(wildcards):
    """The attack whose reconstructions another one refines, with its settings on this cell."""
    return PLAN.attack_on(
        attack_on(wildcards).start,
        fl_model=wildcards.fl_model,
        batch_size=int(wildcards.batch_size),
        defense=wildcards.defense,
    )


def start_inverter(suffix):
    """The inverter whose reconstructions are refined."""
    return lambda wildcards: fill(
        INVERTER,
        suffix,
        auxiliary=wildcards.auxiliary,
        fl_model=wildcards.fl_model,
        projection=start_on(wildcards).projection,
        batch_size=wildcards.batch_size,
        defense=wildcards.defense,
        inverter=start_on(wildcards).inverter,
    )


def fitted_to_refine(suffix):
    """What that inverter's projection is made of; nothing where its settings say all."""
    return lambda wildcards: fitted_to_train(suffix)(
        SimpleNamespace(
            auxiliary=wildcards.auxiliary,
            fl_model=wildcards.fl_model,
            batch_size=wildcards.batch_size,
            defense=wildcards.defense,
            projection=start_on(wildcards).projection,
        )
    )


def knowledge_cards(wildcards):
    """The cards of these files; a store's, its manifest, is one of them."""
    paths = map(Path, knowledge_files(wildcards).values())
    return [
        path.with_suffix(".json") for path in paths if path.suffix == ".safetensors"
    ]


def knowledge_option(wildcards):
    return canonical_json(
        {key: str(path) for key, path in knowledge_files(wildcards).items()}
    )


def attack_settings(wildcards):
    return canonical_json(attack_on(wildcards).canonical())


def attack_code(wildcards):
    attack = attack_on(wildcards)
    observed = PLAN.observed_projection(attack, stored_auxiliary_of_attack(wildcards))
    entries = [
        (ATTACKS, attack.name),
        entry(DEFENSES, "defenses", wildcards.defense),
        entry(FL_MODELS, "fl_models", wildcards.fl_model),
        entry(PROJECTIONS, "projections", projection_of(observed)),
    ]
    if "gradients" in attack.needs:  # their rows may be those of another defense
        stored = stored_of(wildcards, attack.projection)["stored"]
        entries.append((DEFENSES, PLAN.stored_defense_names(stored)))
    for need, registry, section in (
        ("inverter", INVERTERS, "inverters"),
        ("generator", GENERATORS, "generators"),
    ):
        if need in attack.needs:
            entries.append(entry(registry, section, getattr(attack, need)))
    return source_files("attack", *entries)


def attack_names(wildcards):
    """The run's identifiers, for the tables."""
    attack, auxiliary = split_attack(wildcards)
    names = {
        "dataset": dataset_of_victims(wildcards),
        "fl_model": wildcards.fl_model,
        "defense": wildcards.defense,
        "variant": attack,
        "auxiliary": auxiliary,
    }
    if auxiliary:
        chosen = PLAN.auxiliary[auxiliary]
        names |= {
            "aux_size": chosen.size,
            "aux_seed": chosen.seed,
            "beta": chosen.beta,
        }
    return canonical_json(names)


def parts_of_attack(wildcards):
    """Into how many parts the jobs that attack many victims divide them."""
    attack = attack_on(wildcards)
    if not attack.is_divisible:
        return 1
    there = PLAN.victims[wildcards.victims][1].size // int(wildcards.batch_size)
    batches = min(attack.victims or there, there)
    return -(-batches // PLAN.config.attack_batches_per_job)


def parts_attacked(wildcards):
    """What the parts found, where there are several."""
    parts = parts_of_attack(wildcards)
    return (
        expand(
            f"{RECONSTRUCTIONS}.part-{{number}}-of-{{of}}",
            **wildcards,
            number=range(parts),
            of=parts,
        )
        if parts > 1
        else []
    )


def join_option(wildcards, input):
    if not input.parts:
        return ""
    return f"--join {shlex.quote(canonical_json([*map(str, input.parts)]))}"
