"""Which parameters of a network can be pruned: by the layers that own them, and by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from synflow_pl.parameters import NORMALISATIONS

__all__ = ["layer_weights", "prunable", "unclassified"]

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# An error about a network without prunable weights names at most this many classes.
_MAX_CLASSES = 4


def prunable(
    network: nn.Module,
    exclude: Iterable[str | type[nn.Module]] = (),
    include: Iterable[str | type[nn.Module]] = (),
    acting: Iterable[str] = (),
) -> dict[str, nn.Parameter]:
    """Return the prunable parameters: weights of linear, convolution and attention layers.

    Embeddings (and weights shared with one), normalisation gains, biases, tokens, tables and
    weights that are not real floating-point numbers (complex or quantised) are only prunable if
    ``include`` names them.

    Args:
        network: Any module.
        exclude: Parameters that stay dense: shell-style patterns of names (``["fc.*"]`` for a dense
            classifier), and classes of modules, all of whose parameters stay dense.
        include: Further parameters to prune, as ``exclude`` names them.
        acting: Names of further parameters that act on the signal, as
            :func:`synflow_pl.flow.acting_parameters` returns them.

    Returns:
        Parameters by name, in the order of ``network.named_parameters()``; a shared weight appears
        once.

    Raises:
        ValueError: If a pattern or class matches nothing, or nothing prunable is left.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> list(prunable(network, exclude=["2.*"]))
        ['0.weight']
    """
    owned, embedded = _classified(network)
    acting = set(acting)
    parameters = dict(network.named_parameters())
    candidates = {
        name: p
        for name, p in parameters.items()
        if (id(p) in owned or name in acting) and id(p) not in embedded
    }
    weights = {name: p for name, p in candidates.items() if p.is_floating_point()}
    floating = {name: p for name, p in parameters.items() if p.is_floating_point()}
    included = _named(network, include, floating, "include")
    if candidates and not weights and not included:
        name, other = next(iter(candidates.items()))
        raise ValueError(
            f"{type(network).__name__} has no real floating-point weight to prune: {name!r} holds"
            f" {'complex numbers' if other.is_complex() else 'whole numbers'}"
            f" ({str(other.dtype).removeprefix('torch.')})"
        )
    weights = {name: p for name, p in floating.items() if name in weights or name in included}
    excluded = _named(network, exclude, weights, "exclude")
    weights = {name: p for name, p in weights.items() if name not in excluded}
    if not weights:
        patterns = [exclude] if isinstance(exclude, str) else list(exclude)
        raise ValueError(
            f"{type(network).__name__} has no prunable weight"
            + (f" left after exclude={patterns}" if patterns else "")
            + "; linear, convolution and attention layers of torch.nn and of classes derived from"
            " them have them" + ("" if patterns else _elsewhere(network))
        )
    return weights


def layer_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of linear, convolution and attention layers, which may be none.

    Args:
        network: Any module.
    """
    owned, embedded = _classified(network)
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if id(parameter) in owned - embedded and parameter.is_floating_point()
    }


def unclassified(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices and larger tensors that are the weight of no class of known layers.

    Known are the layers that :func:`prunable` prunes, embeddings and normalisations.

    Args:
        network: Any module.
    """
    owned, embedded = _classified(network)
    known = owned | embedded
    for module in network.modules():
        if isinstance(module, NORMALISATIONS):
            known |= {id(parameter) for parameter in module.parameters(recurse=False)}
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if id(parameter) not in known and parameter.dim() > 1 and parameter.is_floating_point()
    }


def _classified(network: nn.Module) -> tuple[set[int], set[int]]:
    """Return the ids of the weights of known layers, and of embeddings."""
    owned: set[int] = set()
    embedded: set[int] = set()
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            owned |= _own(module, ("weight",))
        elif isinstance(module, nn.MultiheadAttention):
            owned |= _own(module, _ATTENTION_WEIGHTS)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            embedded |= _own(module, ("weight",))
    return owned, embedded


def _named(
    network: nn.Module,
    items: Iterable[str | type[nn.Module]],
    parameters: Mapping[str, nn.Parameter],
    option: str,
) -> set[str]:
    """Return the names of parameters that patterns and classes of modules match.

    Args:
        network: Network that has the parameters.
        items: Patterns and classes.
        parameters: Parameters to choose from, by name.
        option: Name of the option, for the error.

    Raises:
        ValueError: If one of the items matches none of the parameters.
    """
    found: set[str] = set()
    for item in [items] if isinstance(items, (str, type)) else items:
        if isinstance(item, type):
            of_class = {
                id(parameter)
                for module in network.modules()
                if isinstance(module, item)
                for parameter in module.parameters(recurse=False)
            }
            names = {name for name, p in parameters.items() if id(p) in of_class}
        else:
            names = {name for name in parameters if fnmatchcase(name, item)}
        if not names:
            near = get_close_matches(str(item), parameters, n=1, cutoff=0)
            kind = "parameter" if option == "include" else "prunable parameter"
            shown = item.__name__ if isinstance(item, type) else repr(item)
            raise ValueError(
                f"{option}: {shown} matches no {kind}; the nearest is {near[0] if near else None!r}"
            )
        found |= names
    return found


def _own(module: nn.Module, names: Iterable[str]) -> set[int]:
    """Return the ids of a module's parameters with these names.

    Weights that are computed (a parametrisation, ``spectral_norm``) are left out and not accessed:
    in train mode an access would update the buffers that they are computed with.
    """
    return {
        id(parameter) for name in names if (parameter := module._parameters.get(name)) is not None
    }


def _elsewhere(network: nn.Module) -> str:
    """Return the classes of the modules with the most parameters, as the end of a sentence."""
    sizes: Counter[str] = Counter()
    for module in network.modules():
        sizes[type(module).__name__] += sum(
            parameter.numel() for parameter in module.parameters(recurse=False)
        )
    listed = [f"{kind} ({size:,})" for kind, size in sizes.most_common(_MAX_CLASSES) if size]
    return f", and its parameters are in {', '.join(listed)}" if listed else ""
