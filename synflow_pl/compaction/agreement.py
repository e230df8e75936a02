"""Agreement: whether a smaller network gives what the whole one gives, on inputs that were not
recorded.

Both run in double precision on the example and on noise, in eval mode and, if the smaller network
is to be trained, in train mode as well. Random operations give the same number at every position,
since a layer with fewer units would draw other numbers from the same seed: dropout becomes a
constant factor.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from synflow_pl.compaction.branches import Conversions, decisive
from synflow_pl.flow import evaluating
from synflow_pl.graph.control import Controlled
from synflow_pl.graph.outputs import Opaque, leaves
from synflow_pl.numerics import full_precision

__all__ = ["Agreement", "Unverifiable", "duplicate", "first_line"]

EXACT = 1e-9
"""Largest difference that is put down to rounding in double precision, of the largest output."""
MAGNIFIED = 1e-4
"""Largest difference, of the largest output, that is put down to rounding where the network
magnifies rounding to that.
"""

BATCH = 5
"""Smallest batch in train mode, where the network accepts it: batch normalisation of two images
gives plus and minus one alone.
"""

Inputs = tuple[Tensor, ...]
Leaves = dict[str, Any]


class Unverifiable(Exception):
    """A network that cannot be run for comparison; the message says why."""


class Agreement:
    """The outputs of a whole network, with which those of a smaller one are compared.

    Args:
        build: Returns a new copy of the whole network, its masks applied, that may be changed.
        inputs: An example of each input.
        training: Whether outputs in train mode are compared as well.

    Attributes:
        note: A sentence without a full stop about the inputs that could not be compared, "" if
            there are none.

    Raises:
        Unverifiable: If the whole network runs on none of the inputs.
        Opaque: If an output cannot be looked into.
    """

    def __init__(self, build: Callable[[], nn.Module], inputs: Inputs, *, training: bool) -> None:
        self._build, self._kinds = build, [tensor.dtype for tensor in inputs]
        self._dtype: torch.dtype | None = torch.float64
        try:
            self._probe(inputs, training)
        except Unverifiable as error:
            # Tensors that a forward makes in a fixed precision cannot be combined with double
            # precision in every operation.
            self._dtype = None
            try:
                self._probe(inputs, training)
            except Unverifiable:
                raise error from None

    def widened(self, network: nn.Module) -> nn.Module:
        """Convert a network, in place, to the precision that outputs are compared in: double where
        the forward pass allows it.
        """
        return network.to(self._dtype) if self._dtype else network

    def difference(self, small: nn.Module) -> str:
        """Run the smaller network and say where its outputs differ, as in ``output[1] in train
        mode``; "" where they agree.

        Args:
            small: The smaller network, :meth:`widened`. It is changed.
        """
        found = [self._run(small, trial, training)[0] for trial, training in self._trials]
        exact = [
            {path: EXACT * _size(leaf) if self._dtype else 0.0 for path, leaf in made.items()}
            for made in self._truth
        ]
        if not (where := self._apart(found, exact)):
            return ""
        # Single precision inside rounds more coarsely, and a network may magnify rounding. A change
        # of the inputs and weights of the size of rounding shows by how much, and as much is
        # allowed.
        moved = self._nudged(1e-12 if self._dtype and not self._coarse else 1e-6)
        allowed = [
            {
                path: max(
                    limit, min(_gap(truth[path], there.get(path)), MAGNIFIED * _size(truth[path]))
                )
                for path, limit in limits.items()
            }
            for limits, truth, there in zip(exact, self._truth, moved, strict=True)
        ]
        return where and self._apart(found, allowed)

    # -- running

    def _probe(self, inputs: Inputs, training: bool) -> None:
        """Choose inputs that the whole network accepts, and keep what it gives."""
        self._trials: list[tuple[Inputs, bool]] = []
        self._truth: list[Leaves] = []
        self._coarse = False
        whole = self.widened(self._build())
        example, *noise = _candidates(inputs)
        reads: list[Counter[str]] = []
        error = self._first_accepted(whole, [example], False, reads)
        many = len(noise) > 2 and self._first_accepted(whole, noise[:1], False, reads)
        self.note = (
            f"outputs were compared at the example's batch size alone, since with twice as many {type(whole).__name__}.forward {many}"
            if many
            else ""
        )
        if len(noise) < 3 or many:
            self._first_accepted(whole, noise[-2:], False, reads)
        if not self._trials:
            raise Unverifiable(
                f"on inputs of the example's size and batch, {type(whole).__name__}.forward {error}"
            )
        if training:
            larger = list(
                _candidates(
                    inputs, max(2, -(-BATCH // max(len(x) if x.dim() else 1 for x in inputs)))
                )
            )[1:]
            if error := self._first_accepted(whole, [*larger, *noise, example], True, reads):
                raise Unverifiable(f"in train mode, {type(whole).__name__}.forward {error}")
            if more := reads[-1] - reads[0]:
                raise Unverifiable(
                    f"in train mode, {type(whole).__name__}.forward reads values of tensors ({', '.join(more)}) and may take"
                    " another branch on other values"
                )

    def _first_accepted(
        self,
        whole: nn.Module,
        candidates: Sequence[Inputs],
        training: bool,
        reads: list[Counter[str]],
    ) -> str:
        """Keep the first of the inputs that the network runs on, and what it gives; without any,
        return what is wrong with them.
        """
        error = ""
        for trial in candidates:
            try:
                made, watch = self._run(whole, trial, training)
            except Opaque:
                raise
            except Exception as raised:  # a forward may raise anything
                error = error or f"fails ({first_line(raised)})"
                continue
            if any(isinstance(leaf, Tensor) and leaf.isnan().any() for leaf in made.values()):
                error = (
                    error or "gives NaN"
                )  # on noise, because it is not defined there: a logarithm, for example
                continue
            self._trials.append((trial, training))
            self._truth.append(made)
            self._coarse |= watch.coarse
            reads.append(watch.reads)
            return ""
        return error

    def _run(self, network: nn.Module, trial: Inputs, training: bool) -> tuple[Leaves, _Steady]:
        """The outputs on one trial; the network's buffers and modes and the random states are as
        before afterwards.
        """
        given = tuple(
            x.to(_widened(kind, self._dtype), copy=True)
            for x, kind in zip(trial, self._kinds, strict=True)
        )
        kept = {id(tensor): (tensor, tensor.clone()) for tensor in network.buffers()}
        own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        watch = _Steady(own, self._dtype)
        conversions = Conversions()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluating(network))
            for context in (
                _seeded(),
                _default_dtype(self._dtype),
                full_precision(),
                Controlled(),
                conversions,
                watch,
            ):
                stack.enter_context(context)
            try:
                output = network.train(training)(*given)
            finally:
                for tensor, before in kept.values():
                    tensor.copy_(before)
        if conversions.called:
            watch.reads[conversions.called] += 1
        return leaves(output, type(network).__name__), watch

    def _nudged(self, step: float) -> list[Leaves]:
        """Return the whole network's outputs after a relative change of its floating-point inputs
        and parameters by about ``step``.
        """
        whole = self.widened(self._build())
        with _seeded(), torch.no_grad():
            for parameter in whole.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1 + step * torch.randn_like(parameter))
            trials = [
                (
                    tuple(
                        x.double() * (1 + step * torch.randn_like(x.double()))
                        if x.is_floating_point()
                        else x
                        for x in trial
                    ),
                    training,
                )
                for trial, training in self._trials
            ]
        return [self._run(whole, trial, training)[0] for trial, training in trials]

    def _apart(self, found: list[Leaves], allowed: list[dict[str, float]]) -> str:
        for (_, training), truth, made, limits in zip(
            self._trials, self._truth, found, allowed, strict=True
        ):
            for path in dict.fromkeys((*truth, *made)):
                if (
                    path not in truth
                    or path not in made
                    or _gap(truth[path], made[path]) > limits[path]
                ):
                    return f"{path} in {'train' if training else 'eval'} mode"
        return ""


def duplicate(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, also of one that holds results of operations as attributes.

    Torch copies leaf tensors alone, and ``torch.nn.utils.prune`` and the older ``spectral_norm``
    keep the weight that they compute as an attribute of its layer.
    """
    with _Detached():
        return copy.deepcopy(network)


class _Detached(TorchFunctionMode):
    """Deep copies of results of operations are copies of their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


# -- inputs


def _candidates(inputs: Inputs, count: int = 2) -> Iterator[Inputs]:
    """The example, then noise of its kinds: ``count`` examples along the first dimension, one, and
    one with whole numbers as they are.

    Whole numbers may be indices, classes or steps, so they are shuffled rather than drawn.
    """
    yield inputs
    with torch.random.fork_rng():
        if all(tensor.dim() for tensor in inputs):
            yield tuple(torch.cat([_noise(tensor) for _ in range(count)]) for tensor in inputs)
        yield tuple(map(_noise, inputs))
        yield tuple(_noise(tensor) if tensor.is_floating_point() else tensor for tensor in inputs)


def _noise(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.randn_like(tensor, dtype=_widened(tensor.dtype, torch.float64))
    return tensor.flatten()[torch.randperm(tensor.numel(), device=tensor.device)].view_as(tensor)


def _widened(dtype: torch.dtype, floating: torch.dtype | None) -> torch.dtype:
    """The dtype in which an input is given: ``floating``, or its complex counterpart, for what is
    not made of whole numbers.
    """
    if floating is None or not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return floating.to_complex() if dtype.is_complex else floating


def _size(leaf: Any) -> float:
    """The largest entry of a floating-point or complex tensor; anything else has no rounding."""
    numbers = (
        isinstance(leaf, Tensor)
        and (leaf.is_floating_point() or leaf.is_complex())
        and leaf.numel()
    )
    return float(leaf.abs().nan_to_num(0, posinf=0).max()) if numbers else 0.0


def _gap(truth: Any, made: Any) -> float:
    """The largest difference between two outputs, infinite where they are of different kinds or
    shapes.
    """
    if not isinstance(truth, Tensor) or not isinstance(made, Tensor):
        return (
            0.0
            if type(truth) is type(made) and (truth == made or (truth != truth and made != made))
            else float("inf")
        )
    if truth.shape != made.shape or truth.dtype != made.dtype:
        return float("inf")
    same = (truth == made) | ((truth != truth) & (made != made))
    if same.all():
        return 0.0
    if not (truth.is_floating_point() or truth.is_complex()):
        return float("inf")
    return float((truth - made)[~same].abs().nan_to_num(float("inf")).max())


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed torch, NumPy and Python inside the context, and restore their random states
    afterwards.
    """
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Set the precision of tensors that are made without naming one; ``None`` leaves it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Steady(TorchDispatchMode):
    """Random operations give the same number at every position; what else matters to a comparison
    is noted.

    Attributes:
        coarse: Whether anything was computed in less than the precision asked for.
        reads: How often each operation read values of tensors other than parameters and buffers for
            Python.
    """

    supports_higher_order_operators = True

    def __init__(self, own: set[int], dtype: torch.dtype | None) -> None:
        super().__init__()
        self._own, self._dtype = own, dtype
        self.coarse, self.reads = False, Counter[str]()

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(target, HigherOrderOperator):
            return target(*args, **kwargs)
        for argument in decisive(
            target, args, lambda x: isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)
        ):
            if isinstance(argument, Tensor) and (
                argument.layout != torch.strided or argument.data_ptr() not in self._own
            ):
                self.reads[target._schema.name] += 1
        result = target(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in target.tags:
            result = _steady(target._schema.name.split("::")[1], result, args)
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, Tensor) and made.is_floating_point() and self._dtype is not None:
                self.coarse |= made.dtype != self._dtype
        return result


def _steady(name: str, result: Any, args: tuple[Any, ...]) -> Any:
    """A random operation's result with the randomness taken out: half of the probability for a draw
    of zeros and ones, half a deviation above the mean for others, so that neither a share nor noise
    cancels out. Operations that are not known give what they drew from the seed.
    """
    if name in ("bernoulli", "bernoulli_"):
        share = args[1] if len(args) > 1 else 0.5 if name.endswith("_") else args[0]
        return (result.copy_(share) if isinstance(share, Tensor) else result.fill_(share)).div_(2)
    if name == "native_dropout":
        result[0].copy_(args[0]).div_(2)
        return result
    if name in ("rand", "rand_like", "randn", "randn_like", "uniform_", "normal_"):
        given = [*args[1:], *[0.0, 1.0][len(args) - 1 :]] if name.endswith("_") else [0.0, 1.0]
        return result.fill_(given[0] + (given[1] - given[0] * (name == "uniform_")) / 2)
    return result.copy_(result.flatten().sort()[0]) if name == "randperm" else result
