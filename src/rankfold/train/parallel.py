"""Data parallel training: several processes compute what one would, each on its slice of every batch."""

from __future__ import annotations

import atexit
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rankfold.batches import forward, mapped, size_of
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.train.errors import TrainingError, one_line
from rankfold.train.randomness import derived_seed

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# How to ask for no communication in forward passes; torch 2.13 renamed it.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes that train together; alone by default, and then every method does nothing.

    All processes call the same methods in the same order. Raises TrainingError where another process failed.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        """TrainingError for a batch that cannot be cut into equal slices."""
        if batch_size % self.size:
            below = batch_size - batch_size % self.size
            raise TrainingError(
                f"batch_size {batch_size} cannot be shared equally by {self.size} processes: "
                f"take {below or self.size} or another multiple of {self.size}"
            )

    def share(self, batch: Any) -> Any:
        """This process's slice of a batch: rows B·rank/size to B·(rank + 1)/size of every tensor of B rows."""
        if self.size == 1:
            return batch
        count = size_of(batch)
        if count < self.size:
            raise TrainingError(
                f"train data: a batch of {count} cannot be shared by {self.size} processes: give larger batches, or "
                "start fewer processes"
            )
        part = slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
        return mapped(batch, lambda x: x[part] if x.dim() and x.shape[0] == count else x)

    def wrapped(self, model: nn.Module, sample: Any) -> nn.Module:
        """`model` with gradients averaged over the processes, and everywhere the weights of the first.

        Buffers stay each process's own: those of the first are validated and kept.
        """
        if self.size == 1:
            return model
        self.same_(dict(model.named_buffers()))
        own_buffers: dict[str, Any] = {_OWN_BUFFERS: False}
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=_some_unused(model, sample),
            **own_buffers,
        )

    def summed(self, *numbers: float) -> list[float]:
        """Each number summed over the processes, in float64; NaN if it is anywhere."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def shared(self, compute: Callable[[], T]) -> T:
        """What `compute` gives in the first process, for all of them; its error is everyone's error."""
        if self.size == 1:
            return compute()
        failure: Exception | None = None
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = compute()
            except Exception as error:
                failure, outcome[1] = error, one_line(error)
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise TrainingError(f"process 1 of {self.size}: {outcome[1]}")
        return outcome[0]

    def gathered(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks; plain values and tensors on the CPU."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, value)
        return every

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Work without communication that ends well in every process, or with an error in every process."""
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        (failed,) = self.summed(float(failure is not None))
        if not failed:
            return
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, None if failure is None else one_line(failure))
        if failure is not None:
            raise failure
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
        raise TrainingError(f"process {rank + 1} of {self.size}: {text}")

    @contextmanager
    def own_draws(self, seed: int, step: int) -> Iterator[None]:
        """Random draws of the model (dropout) of its own in each process; those of the data stay in common."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(seed, step * self.size + self.rank))
            yield

    def same_(self, state: dict[str, Tensor]) -> None:
        """Overwrite the tensors of `state` by those of the first process."""
        if self.size == 1:
            return
        for tensor in state.values():
            sent = tensor.to(torch.uint8 if tensor.dtype == torch.bool else tensor.dtype).contiguous()
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team of this process: a process group that exists, or the one that torchrun announces; else alone.

    A group made here (gloo on the CPU, nccl on CUDA) stays for the next call, since processes that meet twice at the
    same address may miss each other, and ends with the process. Raises TrainingError where they cannot meet.
    """
    if not dist.is_available() or (world_size() == 1 and not dist.is_initialized()):
        yield Team(device=device)
        return
    if not dist.is_initialized():
        _meet(device)
    with _undisturbed():
        yield Team(dist.get_rank(), dist.get_world_size(), device)


def _meet(device: torch.device) -> None:
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TrainingError(f"the processes cannot meet at {place} ({one_line(error)}): start with torchrun") from error
    atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the remark that gradients of convolutions come in another memory layout: they are right, and copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        yield


def world_size() -> int:
    """How many processes torchrun (or whoever sets its four variables) has started; 1 without any."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _VARIABLES) else 1


def first_process() -> bool:
    """Whether this is the process that writes and talks: the only one, or the first of torchrun's."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def _some_unused(model: nn.Module, sample: Any) -> bool:
    """Whether a parameter takes no part in the outputs; gradients must not be waited for then."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        outputs = main_tensor(forward(model, sample))
        gradients = torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)
