"""Verification that a smaller network has the same outputs as the whole network.

Both networks run in double precision on the example and on noise, in eval mode and, if the smaller
network is to be trained, in train mode as well. Random operations return the same number at every
position, because a layer with fewer units would draw other numbers from the same seed. Dropout
becomes a constant factor.
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
"""Largest difference attributed to rounding in double precision, relative to the largest output."""
MAGNIFIED = 1e-4
"""Limit of the difference attributed to rounding in networks that magnify rounding.

It is relative to the largest output.
"""

BATCH = 5
"""Smallest batch size in train mode, if the network accepts it.

Batch normalisation of two images could only return plus and minus one.
"""

Inputs = tuple[Tensor, ...]
Leaves = dict[str, Any]


class Unverifiable(Exception):
    """Raised for a network that cannot be run for comparison."""


class Agreement:
    """The outputs of a whole network, to compare those of smaller networks with.

    Args:
        build: Function that returns a new copy of the whole network, with its masks applied. The
            copy may be changed.
        inputs: Example of each input.
        training: Whether outputs in train mode are compared as well.

    Attributes:
        note: Sentence without a full stop about the inputs that could not be compared, "" if all
            could.

    Raises:
        Unverifiable: If the whole network runs on none of the inputs.
        Opaque: If the tensors in an output cannot be accessed.
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
        """Convert a network, in place, to the precision in which outputs are compared.

        It is double precision if the forward pass allows it.
        """
        return network.to(self._dtype) if self._dtype else network

    def difference(self, small: nn.Module) -> str:
        """Return the place of the first output in which a smaller network differs.

        Args:
            small: The smaller network after :meth:`widened`. It is changed.

        Returns:
            The place, as in ``output[1] in train mode``; "" if all outputs agree.
        """
        outputs = [self._run(small, trial, training)[0] for trial, training in self._trials]
        exact = [
            {path: EXACT * _size(leaf) if self._dtype else 0.0 for path, leaf in expected.items()}
            for expected in self._expected
        ]
        if not (where := self._first_difference(outputs, exact)):
            return ""
        # Single precision inside the network rounds more coarsely, and a network may magnify
        # rounding. The tolerance is therefore the change of the outputs after a change of inputs
        # and weights of the size of rounding.
        perturbed = self._perturbed_outputs(1e-12 if self._dtype and not self._coarse else 1e-6)
        allowed = [
            {
                path: max(
                    limit,
                    min(_gap(expected[path], other.get(path)), MAGNIFIED * _size(expected[path])),
                )
                for path, limit in limits.items()
            }
            for limits, expected, other in zip(exact, self._expected, perturbed, strict=True)
        ]
        return where and self._first_difference(outputs, allowed)

    # -- running

    def _probe(self, inputs: Inputs, training: bool) -> None:
        """Choose inputs that the whole network accepts, and store its outputs."""
        self._trials: list[tuple[Inputs, bool]] = []
        self._expected: list[Leaves] = []
        self._coarse = False
        whole = self.widened(self._build())
        example, *noise = _candidates(inputs)
        reads: list[Counter[str]] = []
        error = self._first_accepted(whole, [example], False, reads)
        batch_error = len(noise) > 2 and self._first_accepted(whole, noise[:1], False, reads)
        self.note = (
            "outputs were compared at the example's batch size alone, since with twice as many"
            f" {type(whole).__name__}.forward {batch_error}"
            if batch_error
            else ""
        )
        if len(noise) < 3 or batch_error:
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
                    f"in train mode, {type(whole).__name__}.forward reads values of tensors"
                    f" ({', '.join(more)}) and may take another branch on other values"
                )

    def _first_accepted(
        self,
        whole: nn.Module,
        candidates: Sequence[Inputs],
        training: bool,
        reads: list[Counter[str]],
    ) -> str:
        """Store the first of the candidate inputs that the network accepts, with its outputs.

        Returns:
            "" if an input was accepted, otherwise the error that the network raised.
        """
        error = ""
        for trial in candidates:
            try:
                outputs, mode = self._run(whole, trial, training)
            except Opaque:
                raise
            except Exception as raised:  # a forward may raise anything
                error = error or f"fails ({first_line(raised)})"
                continue
            if any(isinstance(leaf, Tensor) and leaf.isnan().any() for leaf in outputs.values()):
                # Some functions, for example a logarithm, are not defined on noise.
                error = error or "gives NaN"
                continue
            self._trials.append((trial, training))
            self._expected.append(outputs)
            self._coarse |= mode.coarse
            reads.append(mode.reads)
            return ""
        return error

    def _run(
        self, network: nn.Module, trial: Inputs, training: bool
    ) -> tuple[Leaves, _DeterministicMode]:
        """Return the outputs on one trial and the mode that recorded what the network did.

        Buffers and modes of the network and the random states are restored.
        """
        inputs = tuple(
            x.to(_widened(kind, self._dtype), copy=True)
            for x, kind in zip(trial, self._kinds, strict=True)
        )
        buffers = {id(tensor): (tensor, tensor.clone()) for tensor in network.buffers()}
        own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        mode = _DeterministicMode(own, self._dtype)
        conversions = Conversions()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluating(network))
            for context in (
                _seeded(),
                _default_dtype(self._dtype),
                full_precision(),
                Controlled(),
                conversions,
                mode,
            ):
                stack.enter_context(context)
            try:
                output = network.train(training)(*inputs)
            finally:
                for tensor, before in buffers.values():
                    tensor.copy_(before)
        if conversions.called:
            mode.reads[conversions.called] += 1
        return leaves(output, type(network).__name__), mode

    def _perturbed_outputs(self, step: float) -> list[Leaves]:
        """Return the whole network's outputs after a relative change of inputs and parameters.

        Args:
            step: Standard deviation of the relative change of floating-point entries.
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

    def _first_difference(self, outputs: list[Leaves], allowed: list[dict[str, float]]) -> str:
        for (_, training), expected, actual, limits in zip(
            self._trials, self._expected, outputs, allowed, strict=True
        ):
            for path in dict.fromkeys((*expected, *actual)):
                if (
                    path not in expected
                    or path not in actual
                    or _gap(expected[path], actual[path]) > limits[path]
                ):
                    return f"{path} in {'train' if training else 'eval'} mode"
        return ""


def duplicate(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, even if its attributes include tensors that are not leaves.

    PyTorch only copies leaf tensors, and ``torch.nn.utils.prune`` and the older ``spectral_norm``
    store the weight that they compute as an attribute of its layer.
    """
    with _Detached():
        return copy.deepcopy(network)


class _Detached(TorchFunctionMode):
    """Let deep copies of tensors that are not leaves be detached copies of their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


# -- inputs


def _candidates(inputs: Inputs, count: int = 2) -> Iterator[Inputs]:
    """Yield the example and inputs of noise of the same dtypes.

    The noise has ``count`` times the example's size along the first dimension, then the example's
    size, then the example's size with the example's integers. Integers may be indices, classes or
    steps, so noise of integers is the example's integers in random order.

    Args:
        inputs: Example of each input.
        count: Number of examples that the first input of noise concatenates.
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
    """Return the dtype for an input: ``floating`` or its complex counterpart.

    Integers and booleans keep their dtype, and so do all tensors if ``floating`` is ``None``.
    """
    if floating is None or not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return floating.to_complex() if dtype.is_complex else floating


def _size(leaf: Any) -> float:
    """Return the largest absolute entry of a tensor; 0 if it has no rounding, like integers."""
    numbers = (
        isinstance(leaf, Tensor)
        and (leaf.is_floating_point() or leaf.is_complex())
        and leaf.numel()
    )
    return float(leaf.abs().nan_to_num(0, posinf=0).max()) if numbers else 0.0


def _gap(expected: Any, actual: Any) -> float:
    """Return the largest difference between two outputs; infinite if types or shapes differ."""
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        if type(expected) is not type(actual):
            return float("inf")
        both_nan = expected != expected and actual != actual
        return 0.0 if both_nan or expected == actual else float("inf")
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    same = (expected == actual) | ((expected != expected) & (actual != actual))
    if same.all():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float("inf")
    return float((expected - actual)[~same].abs().nan_to_num(float("inf")).max())


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed torch, NumPy and Python inside the context, and restore their random states."""
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
    """Set torch's default dtype inside the context, unless ``dtype`` is ``None``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _DeterministicMode(TorchDispatchMode):
    """Replace the results of random operations by constants and record reads of values.

    Args:
        own: Data pointers of the network's parameters and buffers.
        dtype: Precision of the comparison.

    Attributes:
        coarse: Whether a result had a lower precision than ``dtype``.
        reads: Number of times that each operation passed values of tensors other than parameters
            and buffers to Python.
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
            result = _without_randomness(target._schema.name.split("::")[1], result, args)
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor) and output.is_floating_point():
                self.coarse |= self._dtype is not None and output.dtype != self._dtype
        return result


def _without_randomness(name: str, result: Any, args: tuple[Any, ...]) -> Any:
    """Return a constant in place of a random operation's result.

    The constant is half of the probability for draws of zeros and ones, and half a standard
    deviation above the mean for other draws, so that neither a probability nor added noise cancels
    out. Operations without a rule return what they drew from the seed.
    """
    if name in ("bernoulli", "bernoulli_"):
        share = args[1] if len(args) > 1 else 0.5 if name.endswith("_") else args[0]
        return (result.copy_(share) if isinstance(share, Tensor) else result.fill_(share)).div_(2)
    if name == "native_dropout":
        result[0].copy_(args[0]).div_(2)
        return result
    if name in ("rand", "rand_like", "randn", "randn_like", "uniform_", "normal_"):
        # Bounds of a uniform distribution, or mean and standard deviation of a normal one.
        first, second = (
            (0.0, 1.0) if not name.endswith("_") else (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
        )
        return result.fill_(first + (second - first * (name == "uniform_")) / 2)
    return result.copy_(result.flatten().sort()[0]) if name == "randperm" else result
