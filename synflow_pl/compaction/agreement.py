"""Verification that a smaller network has the same outputs as the whole network.

Both networks run in double precision on the example and on noise, in eval mode and, if the smaller
network is to be trained, in train mode as well. Random operations return the same number at every
position, because a layer with fewer units would draw other numbers from the same seed. Dropout
becomes a constant factor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.compaction.branches import Conversions
from synflow_pl.compaction.deterministic_mode import DeterministicMode, default_dtype
from synflow_pl.compaction.output_differences import output_gap, output_size
from synflow_pl.compaction.resize import resize
from synflow_pl.compaction.trial_inputs import candidates, widened_dtype
from synflow_pl.flow import evaluating
from synflow_pl.graph.control import Controlled
from synflow_pl.graph.example_inputs import Inputs, call
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.graph.network_state import seeded
from synflow_pl.graph.outputs import Opaque, leaves
from synflow_pl.numerics import full_precision

__all__ = ["Agreement", "Unverifiable", "first_line"]

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

    def __init__(
        self, build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], *, training: bool
    ) -> None:
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
            {
                path: EXACT * output_size(leaf) if self._dtype else 0.0
                for path, leaf in expected.items()
            }
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
                    min(
                        output_gap(expected[path], other.get(path)),
                        MAGNIFIED * output_size(expected[path]),
                    ),
                )
                for path, limit in limits.items()
            }
            for limits, expected, other in zip(exact, self._expected, perturbed, strict=True)
        ]
        return where and self._first_difference(outputs, allowed)

    def fault(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        attributes: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    ) -> tuple[str, str | None]:
        """Return why a smaller network cannot take the place of the whole one.

        Args:
            network: The whole network.
            tensors: Parameters and buffers of the smaller network.
            attributes: Other attributes of its modules, as :func:`resize` takes them.

        Returns:
            The reason, "" if the outputs agree, and the name of the module whose forward
            pass raises an error, ``None`` if none does.
        """
        # Before resizing, since the new tensors are in double precision.
        small = self.widened(duplicate(network))
        running: list[str] = []
        for name, module in small.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            module.register_forward_hook(lambda *_: (running.pop(), None)[1])
        try:
            where = self.difference(resize(small, tensors, attributes))
        except Opaque:
            raise
        except Exception as error:  # a forward may raise anything
            module = small.get_submodule(running[-1] if running else "")
            return (
                f"with smaller layers, {type(module).__name__}.forward fails ({first_line(error)})",
                running[-1] if running else "",
            )
        if where:
            why = (
                "it uses units there that evaluation does without"
                if "train" in where
                else "its forward depends on their sizes"
            )
            return (
                f"{type(network).__name__} with smaller layers gives something else ({where});"
                f" {why}",
                None,
            )
        return "", None

    # -- running

    def _probe(self, inputs: tuple[Tensor, ...], training: bool) -> None:
        """Choose inputs that the whole network accepts, and store its outputs."""
        self._trials: list[tuple[Inputs, bool]] = []
        self._expected: list[Leaves] = []
        self._coarse = False
        whole = self.widened(self._build())
        example, *noise = candidates(inputs)
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
                candidates(
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
    ) -> tuple[Leaves, DeterministicMode]:
        """Return the outputs on one trial and the mode that recorded what the network did.

        Buffers and modes of the network and the random states are restored.
        """
        inputs = trial.replaced(
            x.to(widened_dtype(kind, self._dtype), copy=True)
            for x, kind in zip(trial, self._kinds, strict=True)
        )
        buffers = {id(tensor): (tensor, tensor.clone()) for tensor in network.buffers()}
        own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        mode = DeterministicMode(own, self._dtype)
        conversions = Conversions()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluating(network))
            for context in (
                seeded(),
                default_dtype(self._dtype),
                full_precision(),
                Controlled(),
                conversions,
                mode,
            ):
                stack.enter_context(context)
            try:
                output = call(network.train(training), inputs)
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
        with seeded(), torch.no_grad():
            for parameter in whole.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1 + step * torch.randn_like(parameter))
            trials = [
                (
                    trial.replaced(
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
                    or output_gap(expected[path], actual[path]) > limits[path]
                ):
                    return f"{path} in {'train' if training else 'eval'} mode"
        return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
