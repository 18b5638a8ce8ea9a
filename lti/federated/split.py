"""Which client has which training samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lti.federated.settings import FederatedTraining

__all__ = ["client_batches", "hold_out", "most_participations", "split_to_clients"]


def hold_out(n: int, settings: FederatedTraining) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the positions of samples to train on and of those held out, drawn at random.

    Raises:
        LTIError: there are too few samples for one of both.
    """
    kept = round(settings.holdout * n)
    if not 1 <= kept < n:
        raise LTIError(
            f"{n} training samples, of which a share of {settings.holdout:g} is held out; expected "
            f"at least one in each part. Use more samples or another `holdout`."
        )
    order = numpy_generator(settings.seed, "federated", "holdout").permutation(n)
    return order[kept:], order[:kept]


def split_to_clients(
    label: npt.NDArray[np.int64], settings: FederatedTraining
) -> list[npt.NDArray[Any]]:
    """Return the positions of each client's samples; all clients have equally many.

    At random, or (``dirichlet``) so that a client's shares q of the classes are drawn from
    Dirichlet(alpha p), p those of all samples. Its samples are then drawn without replacement, and
    of a class that has run out the share goes to the others (Hsu, Qi and Brown 2019, Measuring the
    Effects of Non-Identical Data Distribution, section 3). Samples that are left over by the
    division have no client.

    Args:
        label: int64 ``(n,)``.
        settings: of the training.

    Raises:
        LTIError: a client would have fewer samples than a batch, or ``dirichlet`` and one class.
    """
    import numpy as np

    size = len(label) // settings.clients
    if size < settings.batch_size:
        raise LTIError(
            f"{len(label)} training samples for {settings.clients} clients; expected at least "
            f"{settings.batch_size} (batch_size) for each. Use fewer clients, smaller batches or "
            f"more samples."
        )
    draw = numpy_generator(settings.seed, "federated", "split")
    order = draw.permutation(len(label))
    if settings.dirichlet is None:
        return list(order[: size * settings.clients].reshape(settings.clients, size))
    classes, kind = np.unique(label[order], return_inverse=True)
    if len(classes) == 1:
        raise LTIError(
            f"dirichlet {settings.dirichlet:g}, and all training samples are of class "
            f"{classes[0]}; expected several classes. Leave `dirichlet` out."
        )
    pools = [order[kind == number] for number in range(len(classes))]
    prior = np.bincount(kind) / len(kind)
    left = np.array([len(pool) for pool in pools])
    parts = []
    for _ in range(settings.clients):
        share = draw.dirichlet(settings.dirichlet * prior)
        taken = _counts(share, left, size, draw)
        places = zip(pools, left - taken, left, strict=True)
        parts.append(np.concatenate([pool[start:stop] for pool, start, stop in places]))
        left = left - taken
    return parts


def _counts(
    share: npt.NDArray[Any], left: npt.NDArray[Any], size: int, draw: np.random.Generator
) -> npt.NDArray[Any]:
    """Return how many samples of each class a client gets, of those that are left."""
    import numpy as np

    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        open_share = share * (taken < left)
        if not open_share.sum() > 0:  # none of its classes has any left
            open_share = (left - taken).astype(float)
        drawn = draw.multinomial(missing, open_share / open_share.sum())
        taken = np.minimum(taken + drawn, left)
    return taken


def client_batches(
    parts: list[npt.NDArray[Any]], settings: FederatedTraining, number: int
) -> npt.NDArray[np.int64]:
    """Return a round's batches, ``(clients_per_round, batch_size)`` positions of samples.

    Clients and samples are drawn without replacement, from a stream named after the round: alike
    for all defenses and learning rates, as common random numbers.

    Args:
        parts: each client's samples.
        settings: of the training.
        number: of the round, from 1.
    """
    import numpy as np

    draw = numpy_generator(settings.seed, "federated", "round", number)
    chosen = _chosen(len(parts), settings, draw)
    batches = [draw.choice(parts[client], settings.batch_size, replace=False) for client in chosen]
    return np.stack(batches).astype(np.int64)


def most_participations(clients: int, settings: FederatedTraining) -> int:
    """Return how often the client that is drawn most often takes part, pilots included."""
    import numpy as np

    counts = np.zeros(clients, dtype=np.int64)
    for rounds in (*[settings.pilot_rounds] * settings.pilots, settings.rounds):
        for number in range(1, rounds + 1):
            draw = numpy_generator(settings.seed, "federated", "round", number)
            counts[_chosen(clients, settings, draw)] += 1
    return int(counts.max())


def _chosen(
    clients: int, settings: FederatedTraining, draw: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return a round's clients, drawn without replacement."""
    return draw.choice(clients, settings.clients_per_round, replace=False)
