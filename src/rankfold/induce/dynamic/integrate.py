"""The optimizer of dynamical low-rank training: one of torch's for the cores and all else, and the bases' own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from rankfold.induce.dynamic.condition import Conditioning
from rankfold.induce.dynamic.cut import Cut
from rankfold.induce.dynamic.dlrt import dynamic_layers
from rankfold.induce.dynamic.gradients import check_finite, clip_, gradients_of, rescale_
from rankfold.induce.dynamic.moments import turn_
from rankfold.induce.dynamic.pace import Pace
from rankfold.induce.dynamic.worth import Worth
from rankfold.induce.places import averaged_, check_prepared, in_training, same_everywhere_, still_there, warn_of_dense
from rankfold.layers import DynamicLowRank
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold import tangent
from rankfold.linalg.manifold.tangent import Triple, Turn
from rankfold.linalg.manifold.tucker import TuckerPoint
from rankfold.run.processes.memory import settled
from rankfold.train.step.around import Around

Integrator = Literal["window", "parallel", "augmented", "fixed"]
_OPEN = (
    "the last window is still open, in which layers have more directions than the budget allows: call "
    "optimizer.settle() at the end of the training, before fold_"
)
_FEW = 4  # directions that bases may always grow by: at such ranks they cost little


class Dlrt(Around):
    """Trains a network that ``dlrt_`` has prepared, in anyone's loop: ``zero_grad``, backward, ``step``.

    Optimizers that divide by the root of squared gradients, such as Adam, move each entry by about the rate: steps of a
    core, which has fewer entries, are made (entries of the weight / entries of the core)^¼ times as long, so that a
    rate means about what it means for the dense network.

    Weight decay of a core is that of the layer's weight. Learning-rate schedulers and gradient scalers take this
    optimizer as any other. Between processes (``torch.distributed``) gradients of these layers are averaged here; wrap
    the model in ``DistributedDataParallel`` after ``dlrt_`` for all other parameters.

    ``integrator``:

    - "window" (default): bases grow by the gradient's directions, which leaves the weight as it is; ``window`` steps of
      ``optimizer`` on the cores follow; then directions are cut. Ranks can grow as well as fall.
    - "parallel": a window of a single step, along the gradient projected onto the tangent space. A new direction begins
      with weight η‖g‖ and is cut at once where that is below the tolerance: ranks hardly grow.
    - "augmented": bases grow; one step of the cores by the gradient in the larger bases, then directions are cut.
    - "fixed": bases follow K = US − ηgVᵀ and L = SV − ηUᵀg at an unchanged rank. No descent is promised.

    The last two evaluate the loss twice: ``step(closure)``, where ``closure`` clears gradients, computes the loss,
    calls backward and returns the loss.

    Args:
        model: prepared by ``dlrt_``.
        optimizer: a class of ``torch.optim``, which trains the cores and every other parameter.
        groups: parameter groups, in place of every other parameter.
        integrator: see above.
        window: steps between two cuts.
        grow: bases grow by at most this share of the rank, or by four, the gradient's largest directions; fewer make a
            step cheaper and bases turn more slowly.
        tolerance: directions are cut where the tail (Σ σ²)^½ stays within this part of the layer's norm; .1 by default.
        budget: in place of ``tolerance`` a share of the parameters of the dense network. All directions of all layers
            compete for it by what the loss would change by without them, as gradients tell it, for the numbers that
            they take; the network folded with ``keep=True`` has at most as many parameters. ``met`` says whether
            it holds already.
        reach: windows after which the budget holds; sizes fall by the same factor each time. Those in which
            the learning rate rises (a warm-up) do not count.
        most: a rank that no layer exceeds.
        factors: after ``reach`` windows, once the budget holds, ``optimizer`` trains both factors of each layer at the
            ranks that were found: they turn with every step, bases only once a window. Gradients and state are then
            those of r(m + n) numbers a layer.
        condition: a ``Condition`` or a ``Spread``.
        settings: of ``optimizer``.

    Raises:
        ValueError: a model without such layers, settings out of range.
        NonFiniteError: at a step, naming the layer, before anything is changed.

    Cost: of a window O((m + n)r²) for each layer beside the steps.

    Source: Schotthöfer, Zangrando, Kusch, Ceruti, Tudisco 2022 (DLRT); Ceruti, Kusch, Lubich 2022 (rank-adaptive).

    Example:
        >>> net, x = rf.dlrt_(nn.Sequential(nn.Linear(32, 32)), rank=4), torch.randn(16, 32)
        >>> optimizer = rf.Dlrt(net, torch.optim.SGD, lr=0.1, window=2)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     net(x).square().mean().backward()
        ...     optimizer.step()
        >>> list(optimizer.ranks)
        ['0']
    """

    lengthens: ClassVar[bool] = True  # steps of the cores, where entries move by the rate

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        groups: Iterable[Any] | None = None,
        integrator: Integrator = "window",
        window: int = 20,
        grow: float = 1.0,
        tolerance: float | None = None,
        budget: float | None = None,
        reach: int = 40,
        most: int | None = None,
        factors: bool = False,
        condition: Conditioning | None = None,
        **settings: Any,
    ) -> None:
        check_prepared(in_training(model), "dlrt_")
        self.layers = dynamic_layers(model)
        if not self.layers:
            raise ValueError("the model has no layers of low rank to train: prepare it with rankfold.dlrt_ first")
        _check(integrator, window, grow)
        _check_factors(factors, integrator, condition)
        settled()  # sizes change from step to step: pages handed back and asked for again take a quarter of the time
        self.integrator, self.window = integrator, 1 if integrator != "window" else window
        self.grow = grow if integrator == "window" else 1.0
        self.cut = Cut.of(model, self.layers.values(), tolerance, budget, reach, most)
        if budget is not None:
            warn_of_dense(model, budget)
        self.worth, self.condition, self.position = Worth(), condition, 0
        self.factors, self.freed = factors, any(layer.freed for layer in self.layers.values())
        if self.freed and not factors:
            raise ValueError(
                "the layers of this model were trained on in factors, whose ranks stay: go on with factors=True, or "
                "call fold_ and dlrt_ on it, from where ranks can change again"
            )
        for layer in self.layers.values():
            if not layer.freed:
                layer.straighten_()
        self.pace = Pace(self, self.lengthens, at_once=integrator != "window")
        self.tails: dict[str, float] = {}
        if groups is None:
            groups = [p for p in model.parameters() if p.requires_grad]
        super().__init__(optimizer(groups, **settings))
        trained = {id(p) for group in self.inner.param_groups for p in group["params"]}
        missing = [name for name, layer in self._moving.items() if id(layer.trained[0]) not in trained]
        if missing:
            raise ValueError(
                f"{missing[0]}.core is in none of the parameter groups: every layer of low rank must be in one"
            )
        self._known = {name: layer.trained for name, layer in self.layers.items()}
        same_everywhere_(self.layers.values())
        self._probe(True)

    @property
    def _moving(self) -> dict[str, DynamicLowRank]:
        """The layers that are not frozen: others keep their weights, and so their ranks."""
        return {name: layer for name, layer in self.layers.items() if layer.trained[0].requires_grad}

    def _follow(self) -> None:
        """Take up the parameters that loading other ranks into the model has put in place of those known here."""
        for name, layer in self.layers.items():
            for old, new in zip(self._known[name], layer.trained, strict=True):
                if new is not old and self._exchange(old, new) and new.shape != old.shape:
                    del self.inner.state[new]  # of another rank; those that belong to it may be loaded next

    def _exchange(self, old: nn.Parameter, new: nn.Parameter) -> dict[str, Any]:
        """Another parameter in the place of one, in its group and with its state, which is returned."""
        self.replace((old,), (new,))
        self._known = {n: tuple(new if p is old else p for p in known) for n, known in self._known.items()}
        state = self.inner.state.pop(old, {})
        if state:
            self.inner.state[new] = state
        return state

    def _free(self) -> None:
        """Both factors of each layer that is not frozen become parameters in the place of its core."""
        for name, layer in self._moving.items():
            if not layer.freed:
                self._change(name, methodcaller("free_"))
        self.freed = True

    def _change(self, name: str, how: Callable[[DynamicLowRank], None]) -> None:
        """Let a layer train other parameters, which take the place of the old ones and begin without state."""
        layer, old = self.layers[name], self.layers[name].trained
        how(layer)
        self.replace(old, layer.trained, [name for name, p in layer.named_parameters(recurse=False) if name != "bias"])
        for parameter in old:
            self.inner.state.pop(parameter, None)
        self.begin(layer.trained)
        self._known[name] = layer.trained

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also of what the bases' steps are taken from."""
        self.inner.zero_grad(set_to_none)
        for layer in self.layers.values():
            layer.clear_gradients()

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, with the place in the window: plain tensors and numbers. Factors and ranks are
        in the model's own state dict, which takes up layers of another rank."""
        return self.inner.state_dict() | {
            "position": self.position, "closed": self.cut.closed, "first": self.cut.first,
            "steep": dict(self.worth.steep), "freed": [name for name, layer in self.layers.items() if layer.freed],
        } | self.pace.state_dict()  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the model's state first, so that the moments find cores of their shape."""
        state = dict(state_dict)
        self.position, self.cut.closed, self.cut.first = (
            int(state.pop(key)) for key in ("position", "closed", "first")
        )
        self.pace.load_state_dict(state)
        self.worth.steep = {name: torch.as_tensor(value).clone() for name, value in state.pop("steep", {}).items()}
        freed = set(state.pop("freed", ()))
        self._follow()
        for name, layer in self.layers.items():
            if (name in freed) is not layer.freed:
                self._change(name, methodcaller("hold_", name not in freed))
        self.freed = bool(freed)
        self.inner.load_state_dict(state)
        self._probe(self.position == 0)

    @property
    def ranks(self) -> dict[str, int]:
        """Of every layer now; within a window more than are kept at its end."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @torch.no_grad()
    def clip_grad_norm_(self, most: float) -> Tensor:
        """Scale all gradients so that their norm is at most ``most``; returns the norm before.

        Of a layer of low rank it is that of the gradient projected onto the tangent space,
        ‖P(g)‖² = ‖gVᵀ‖² + ‖Uᵀg‖² − ‖UᵀgVᵀ‖² for a matrix, where a step needs it, elsewhere that of the core's.
        """
        self._reduce()  # a norm that differs between processes would part their weights
        return clip_([p for group in self.param_groups for p in group["params"]], self.layers.values(), most)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Returns the loss where a ``closure`` gave it."""
        still_there(self.layers)
        self._follow()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif self.integrator in ("augmented", "fixed"):
            raise ValueError(
                f"integrator={self.integrator!r} evaluates the loss twice: call step(closure), with a function that "
                "computes the loss"
            )
        self._reduce()
        check_finite(self.layers)
        if self.freed:
            self._free()  # whatever was frozen until now
            self.inner.step()
            return loss
        if self.cut.budget is not None:
            self.worth.look({name: layer.core.grad for name, layer in self._moving.items()})
        if self.position == 0:
            self._open()
            if closure is not None and self.integrator in ("augmented", "fixed"):
                with torch.enable_grad():
                    closure()
                self._reduce()
                check_finite(self.layers)
        if self.condition is not None:
            for layer in self.layers.values():
                more = self.condition.gradient(layer.core)
                if more is not None and layer.core.grad is not None:
                    layer.core.grad.add_(more)
        self.pace.step(self.layers, self.position)
        self.position += 1
        if self.position >= self.window:
            self._close()
            self.position = 0
            self._release()
        self._probe(self.position == 0)
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Close a window that is open, so that ranks are those within the tolerance or budget: before the network is
        validated or saved. Nothing where none is open."""
        self._follow()
        if self.position:
            self._close()
            self.position = 0
            self._release()
            self._probe(True)

    def _open(self) -> None:
        """Bases follow the gradient, or grow by its directions."""
        self._probe(False)
        for name, layer in self.layers.items():
            known, gradient = layer.gradients, layer.core.grad
            if known is None or gradient is None:  # not reached in this step
                continue
            if layer.straighten_():  # factors were loaded: these gradients are of other coordinates
                layer.core.grad = None
                self.inner.state.pop(layer.core, None)
                continue
            now, (left, right) = layer.point(), (tangent.wide(known[0]), tangent.wide(known[1]))
            if self.integrator == "fixed":
                wide, turn = now.moved(left, right, float(self.pace.group(layer.core)["lr"]))
                core_gradient = None
            else:
                wide, turn = now.augmented(left, right, max(_FEW, int(self.grow * now.rank)))
                # within a window the new directions wait for the next step, whose gradient knows all of the core
                core_gradient = turn.linear(tangent.wide(gradient))
                if self.integrator == "parallel":
                    core_gradient = wide.tangent_core(left, right, tangent.wide(gradient))
                self.pace.entering[name] = gradient.shape
            self._put(layer, wide, turn)
            layer.core.grad = None if core_gradient is None else core_gradient.to(layer.core)
        if self.cut.budget is not None and self.window > 1:
            for layer in self.layers.values():
                layer.lacking = _OPEN

    def _close(self) -> None:
        """Directions are cut, and the rest are made orthonormal to rounding."""
        self.pace.caught_up(self.layers, self.position - 1)
        if self.integrator == "fixed" and self.cut.budget is None:
            self._conditioned()
            return
        moving = self._moving
        points, spectra = {name: layer.point() for name, layer in moving.items()}, {}
        for name, point in points.items():
            with _named(name):
                spectra[name] = point.spectrum
        # while the rate rises sizes do not fall yet: what is about to be learnt cannot be told from where it began
        self.cut.closed += not self.pace.rising
        if self.cut.budget is None:
            ranks = self.cut.within_tolerance(spectra.values())
        else:
            still = sum(layer.numbers for name, layer in self.layers.items() if name not in moving)
            ranks = self.cut.within_budget(moving.values(), self.worth.of(spectra), still)
        for (name, point), rank in zip(points.items(), ranks, strict=True):
            values = spectra[name].double()
            self.tails[name] = float(values[rank:].norm() / values.norm().clamp_min(1e-300))
            self._put(moving[name], *point.truncated(rank))
        lacking = self.cut.lacking(self.layers.values(), self.factors)
        for layer in self.layers.values():
            layer.lacking = lacking
        self._conditioned()

    def _release(self) -> None:
        """Both factors of each layer become parameters in the place of its core, where that is asked for and the ranks
        are final."""
        if self.factors and self.cut.closed >= self.cut.reach and self.met:
            self._free()

    @property
    def met(self) -> bool:
        """Whether the layers are within the budget now; always where there is none."""
        return self.cut.met(self.layers.values())

    def lacking(self) -> str:
        """A sentence where the layers are not within the budget, with what leads there, else empty. Whoever asks has
        been told: ``fold_`` does not warn of it again."""
        for layer in self.layers.values():
            layer.lacking = ""
        return self.cut.lacking(self.layers.values(), self.factors and not self.freed)

    def _conditioned(self) -> None:
        if self.condition is not None:
            for layer in self._moving.values():
                layer.core.copy_(self.condition.after(tangent.wide(layer.core)))  # in place: nothing changes its shape

    def _put(self, layer: DynamicLowRank, to: Triple | TuckerPoint, turn: Turn) -> None:
        """Other bases; the moments of the core turn with them."""
        old = layer.core
        layer.put_(to.left, to.core, to.right)
        turn_(self._exchange(old, layer.core), old.shape, turn)

    def _probe(self, probing: bool) -> None:
        for layer in self.layers.values():
            layer.probing = probing and not self.freed

    def _reduce(self) -> None:
        """The mean over processes, of what DistributedDataParallel leaves to us."""
        averaged_(gradient for layer in self.layers.values() for gradient in gradients_of(layer))
        rescale_(self.layers.values())


class _named:
    """Says which layer a core belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(
                f"{self.name}: {error}: training has diverged, so start again with a lower learning rate"
            ) from error


def _check_factors(factors: bool, integrator: str, condition: Any) -> None:
    if not factors:
        return
    if condition is not None:
        raise ValueError(
            "factors=True lets both factors of a layer move by themselves in the end, where condition= cannot hold "
            "them: leave one of the two out"
        )
    if integrator in ("augmented", "fixed"):
        raise ValueError(f"factors=True goes with the integrators window and parallel, got {integrator!r}")


def _check(integrator: str, window: int, grow: float) -> None:
    if integrator not in get_args(Integrator):
        raise ValueError(f"integrator must be one of {', '.join(get_args(Integrator))}, got {integrator!r}")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be a whole number of at least 1, got {window!r}")
    if not 0 < grow <= 1:
        raise ValueError(f"grow, a share of the rank, must be above 0 and at most 1, got {grow!r}")
