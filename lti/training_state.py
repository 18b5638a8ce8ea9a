"""What a training goes on from, to the same weights, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lti.interruption import Interrupted, asked_to_leave, take_the_time
from lti.process_group import ALONE, ProcessGroup

if TYPE_CHECKING:
    from lti.checkpoint import Checkpoint

__all__ = ["TrainingState", "copy_of"]


class TrainingState:
    """Networks, optimizers, the random state and the history of a training at some step.

    Attributes:
        step: optimizer steps done.
        history: a record per finished epoch, with numbers under ``columns``.
        kept: tensors of the caller's that were saved along with the rest.

    Args:
        checkpoint: where it is saved.
        networks: by name.
        optimizers: by name.
        columns: of ``history``; the first counts epochs.
        device: whose random state decides dropout.
        group: the processes that train together, all with the same state but the random one, of
            which the first one's is saved.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        columns: Sequence[str],
        device: torch.device,
        group: ProcessGroup = ALONE,
    ) -> None:
        self._group = group
        self._checkpoint, self._columns, self._device = checkpoint, columns, device
        self._networks, self._optimizers = networks, optimizers
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.kept: dict[str, torch.Tensor] = {}

    def save_if_due(self, kept: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Save, where enough time has passed or some process of the group was asked to leave.

        Args:
            kept: returns the caller's own tensors.

        Raises:
            Interrupted: it was asked to leave.
        """
        if not self._group.most(self._checkpoint.due())[0]:
            return
        take_the_time()
        own = kept()
        if self._group.is_first:
            with suppress(Interrupted):  # all leave together, below
                self._save(own)
        (number,) = self._group.most(asked_to_leave() or 0)  # no process gets here before the save
        if number:
            raise Interrupted(signal.Signals(int(number)))

    def _save(self, kept: Mapping[str, torch.Tensor]) -> None:
        table = [[float(record[key]) for key in self._columns] for record in self.history]
        state = {"history": torch.tensor(table, dtype=torch.float64), "random": _random("cpu")}
        if self._device.type == "cuda":
            state["random_of_device"] = _random(self._device)
        for name, network in self._networks.items():
            state |= {f"network/{name}/{key}": v for key, v in network.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for number, slots in optimizer.state_dict()["state"].items():
                state |= {f"optimizer/{name}/{number}/{key}": v for key, v in slots.items()}
        state |= {f"kept/{key}": value for key, value in kept.items()}
        self._checkpoint.save(state, position=self.step)

    def restore(self) -> bool:
        """Go back to what was saved; return whether there was anything.

        Raises:
            LTIError: the file is damaged or of other settings.
        """
        if (saved := self._checkpoint.load()) is None:
            return False
        state, self.step = saved
        for name, network in self._networks.items():
            network.load_state_dict(_part(state, f"network/{name}/"))
        for name, optimizer in self._optimizers.items():
            slots: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in _part(state, f"optimizer/{name}/").items():
                number, _, slot = key.partition("/")
                slots.setdefault(int(number), {})[slot] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        self.history = [
            dict(zip(self._columns, record, strict=True)) for record in state["history"].tolist()
        ]
        for record in self.history:
            record[self._columns[0]] = int(record[self._columns[0]])
        self.kept = {key: v.to(self._device) for key, v in _part(state, "kept/").items()}
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_of_device"], self._device)
        return True


def copy_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's weights."""
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def _random(device: torch.device | str) -> torch.Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
