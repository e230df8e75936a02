"""The options of a pruning, which :func:`synflow_pl.prune` and the callback share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Literal

from torch import nn

from synflow_pl.granularity import Granularity
from synflow_pl.pruners.base import Pruner
from synflow_pl.schedules import SCHEDULES, as_density

__all__ = ["PruningOptions"]

_CHOICES = {
    "group_score": ("sum", "mean", "per_cost"),
    "on_collapse": ("warn", "error", "ignore"),
    "schedule": tuple(SCHEDULES),
    "scope": ("global", "local"),
}


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Options of a pruning, checked when they are constructed.

    :func:`prune` and :class:`synflow_pl.PruneAtInit` construct them from their keyword arguments;
    the fields are described there.

    Raises:
        ValueError: If an option is impossible, naming its value and what was expected.

    Example:
        >>> PruningOptions(density=0.1).scope
        'global'
    """

    density: float | Fraction | None = None
    num_kept: int | None = None
    effective_density: float | Fraction | None = None
    flops: float | Fraction | None = None
    parameters: float | Fraction | None = None
    latency: float | Fraction | None = None
    granularity: str = "weight"
    group_score: Literal["sum", "mean", "per_cost"] = "sum"
    rounds: int | Literal["auto"] | None = None
    margin: float = 0.5
    schedule: Literal["exponential", "linear", "cubic"] | None = None
    scope: Literal["global", "local"] = "global"
    mask_bias: bool = False
    mask_norm: bool = False
    exclude: Iterable[str | type[nn.Module]] = ()
    include: Iterable[str | type[nn.Module]] = ()
    train_mode: bool = False
    on_collapse: Literal["warn", "error", "ignore"] = "warn"

    def __post_init__(self) -> None:
        self._check_choice("on_collapse")
        granularity = Granularity.parse(self.granularity)
        fractions = ("density", "effective_density", "flops", "parameters", "latency")
        names = (*fractions, "num_kept")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if granularity.kind == "n:m":
            if given:
                raise ValueError(
                    f"{next(iter(given))}: {next(iter(given.values()))!r}, but granularity"
                    f" {self.granularity!r} itself sets how many weights are kept; leave it out"
                    " (null on the command line)"
                )
        elif len(given) != 1:
            got = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise ValueError(
                "give either density, in (0, 1], or num_kept, a number of weights, or"
                f" effective_density, flops, parameters or latency, in (0, 1]; got {got}"
                + ("; set the others to None (null on the command line)" if given else "")
            )
        if self.latency is not None and granularity.kind != "unit":
            raise ValueError(
                f"latency: {self.latency}, but zeros within units take as long as other weights;"
                " it needs granularity='unit'"
            )
        for name in fractions:
            if name in given:
                as_density(given[name], name)
        if self.num_kept is not None and not _is_positive_integer(self.num_kept):
            raise ValueError(
                f"num_kept: {self.num_kept!r} must be a whole number of weights, at least 1"
            )
        counted = next((name for name in ("num_kept", "effective_density") if name in given), None)
        if counted and self.scope == "local":
            verb = "counts" if counted == "num_kept" else "is about"
            raise ValueError(
                f"{counted} {verb} the weights of the whole network; with scope='local' give"
                " density instead"
            )
        if self.rounds not in (None, "auto") and not _is_positive_integer(self.rounds):
            raise ValueError(
                f"rounds: {self.rounds!r} must be a whole number, at least 1, or 'auto'; leave it"
                " out for the pruner's own number"
            )
        if isinstance(self.margin, bool) or not (
            isinstance(self.margin, (int, float)) and 0 < self.margin < 1
        ):
            raise ValueError(
                f"margin: {self.margin!r} must lie between 0 and 1; it is the fraction of the total"
                " flow that a round may remove with rounds='auto'"
            )
        if self.schedule is not None:
            self._check_choice("schedule")
            if self.rounds == "auto":
                raise ValueError(
                    f"schedule: {self.schedule!r} sets the density after each of a given number of"
                    " rounds, which rounds='auto' chooses itself; leave one of them out"
                )
        self._check_choice("scope")
        self._check_choice("group_score")
        if self.group_score != "sum" and not self.structured:
            raise ValueError(
                f"group_score: {self.group_score!r} ranks groups of weights, and granularity is"
                " 'weight', where each has the same cost; leave it out, or choose another"
                " granularity"
            )

    @property
    def structured(self) -> bool:
        """Return whether groups of weights are removed, or a budget counts something else."""
        return self.granularity != "weight" or bool(self.flops) or bool(self.parameters)

    def check_pruner(self, pruner: Pruner) -> None:
        """Raise an error if these options cannot be used with a pruner.

        Args:
            pruner: Pruner that computes the scores.

        Raises:
            ValueError: If the number of rounds is automatic and the scores are no sums over paths,
                or if the pruner would break up groups of weights.
        """
        if pruner.moves_masks and self.structured:
            raise ValueError(
                f"{pruner.name} moves single weights, which breaks up groups of granularity"
                f" {self.granularity!r} and changes FLOPs; leave one of them out"
            )
        if self.rounds == "auto" and not pruner.scores_are_path_sums:
            raise ValueError(
                f"rounds: 'auto' needs scores that are shares of one flow, which those of SynFlow"
                f" and SynFlowL2 are and those of {pruner.name} are not; give a number of rounds,"
                " or leave it out for the pruner's own number"
            )

    def _check_choice(self, option: str) -> None:
        value, choices = getattr(self, option), _CHOICES[option]
        if value not in choices:
            near = get_close_matches(str(value), choices, n=1, cutoff=0)[0]
            raise ValueError(
                f"{option}: {value!r} is not one of {', '.join(choices)}; did you mean {near!r}?"
            )


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
