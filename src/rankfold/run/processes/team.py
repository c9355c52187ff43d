"""The processes of one run: they share every batch, agree on failures, and part in order.

Several processes compute what one would, each on its slice of every batch. One that dies ends the others within a
minute, in one line.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rankfold.batches import forward, mapped, size_of, tensors_in
from rankfold.run.errors import one_line
from rankfold.run.processes.peers import leave_peers, watch_peers
from rankfold.run.seeds import derived_seed

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# How to ask for no communication in forward passes; torch 2.13 renamed it.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"

_PARTING = timedelta(seconds=20)  # for the others to come to the end as well
# what gloo, nccl and the store say when a process at the other end is gone
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "connection refused", "tcpstore")

T = TypeVar("T")


class TeamError(ValueError):
    """Another process of the run failed, or cannot be reached; one line."""


@dataclass(frozen=True)
class Team:
    """The processes that work together; alone by default, and then every method does nothing.

    All processes call the same methods in the same order. Where another process failed they raise ``error``.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    error: type[ValueError] = TeamError

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        """``error`` for a batch that cannot be cut into equal slices."""
        if batch_size % self.size:
            below = batch_size - batch_size % self.size
            raise self.error(
                f"batch_size {batch_size} cannot be shared equally by {self.size} processes: give "
                f"{below or self.size} or another multiple of {self.size}"
            )

    def share(self, batch: Any) -> Any:
        """This process's slice of a batch: rows B·rank/size to B·(rank + 1)/size of every tensor of B rows."""
        if self.size == 1:
            return batch
        count = size_of(batch)
        if count < self.size:
            raise self.error(
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
            raise self.error(f"process 1 of {self.size}: {outcome[1]}")
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
        raise self.error(f"process {rank + 1} of {self.size}: {text}")

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
def joined(device: torch.device, error: type[ValueError] = TeamError) -> Iterator[Team]:
    """The team of this process: a process group that exists, or the one that torchrun announces; else alone.

    A group made here (gloo on the CPU, nccl on CUDA) stays for the next call, since processes that meet twice at the
    same address may miss each other, and ends with the process. Raises ``error`` where they cannot meet, and where
    another one is gone in the middle of the work.
    """
    if not dist.is_available() or (world_size() == 1 and not dist.is_initialized()):
        yield Team(device=device, error=error)
        return
    if not dist.is_initialized():
        _meet(device, error)
    team = Team(dist.get_rank(), dist.get_world_size(), device, error)
    with _undisturbed():
        try:
            yield team
        except RuntimeError as cause:
            if not _lost(cause):
                raise
            raise error(
                f"another of the {team.size} processes is gone or cannot be reached: start them again, and the "
                "same command continues from what was kept"
            ) from cause


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _LOST)


def _meet(device: torch.device, error: type[ValueError]) -> None:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as cause:
        raise error(f"the processes cannot meet at {place} ({one_line(cause)}): start them with torchrun") from cause
    watch_peers(dist.get_rank(), dist.get_world_size())
    atexit.register(_part)


def _part() -> None:
    """Leave together: no collective and no wrapped network alive, then a barrier that nobody waits at for long."""
    if not dist.is_initialized():
        return
    leave_peers()
    gc.collect()  # a network wrapped for the group lies in a cycle, and holds it
    with suppress(RuntimeError):  # somebody is gone, or does not come: it is no use to wait
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=_PARTING)
        else:
            work = dist.barrier(async_op=True)
            if work is not None:
                work.wait(_PARTING)
    with suppress(RuntimeError):
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
    """Whether a parameter that is waited for takes no part in the outputs; gradients must not be waited for then."""
    left_out = frozenset(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))  # they change places in training
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in left_out]
    if not trained:
        return False
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            outputs = [x.sum() for x in tensors_in(forward(model, sample)) if x.requires_grad]
            gradients = torch.autograd.grad(outputs, trained, allow_unused=True)
    finally:
        for module, mode in modes:
            module.training = mode
    return any(gradient is None for gradient in gradients)
