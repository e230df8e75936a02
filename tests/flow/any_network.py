"""Prunes every classification network of torchvision and timm's families, and records the results.

    python -m tests.flow.any_network [NAME ...]

prunes the networks that ``any_network.csv`` does not list yet (or those named), one at a time, and
writes each row as it is computed. The table is committed; :mod:`tests.flow.test_any_network`
compares the networks with it.
"""

from __future__ import annotations

import csv
import gc
import os
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from synflow_pl import Masks, prune
from synflow_pl.flow import example_of, is_connected, linearise, magnitude
from synflow_pl.pruners import PruningState, SynFlow
from synflow_pl.schedules import kept_weights
from tests.flow.at_cuts import conservation_error

TABLE = Path(__file__).with_name("any_network.csv")
DENSITY = Fraction(1, 10)
ROUNDS = (10, 20, 50, 100)
# Left out because of their memory: over 600 million parameters.
TOO_LARGE = ("torchvision/regnet_y_128gf", "torchvision/vit_h_14")
# The smallest network of each of timm's families that has one with at most 60 million parameters.
TIMM = tuple(
    """
    cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
    cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c
    dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
    ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
    iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small
    legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mobilenetv3_small_050 mobilevit_xxs
    mvitv2_tiny nest_tiny nextvit_small pit_ti_224 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002
    repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny
    selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet
    test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit
    test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    visformer_tiny vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
    xception41p xcit_nano_12_p8_224
    """.split()
)

# Input sizes of networks that do not take 64x64, and of AlexNet.
SIZES = {"torchvision/inception_v3": 96, "torchvision/maxvit_t": 224, "torchvision/alexnet": 64}


@dataclass
class Row:
    """One line of the table."""

    name: str
    input: str
    weights: int
    rounds: int
    result: str
    """``path left`` or ``no path left``."""
    spread: float
    """How much the pruned network's output depends on its input: the spread over random inputs,
    divided by the largest output.
    """
    by_magnitude: int
    """Number of weights that no flow passes through."""
    as_ones: str
    """Parameters that are zero throughout and count as ones."""
    emptied: str
    """Weights that are pruned completely though the network is connected."""
    unknown: str
    """Operations without a rule."""


def torchvision_names() -> list[str]:
    return [
        f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)
    ]


def names() -> list[str]:
    """Every network that the table must list."""
    return [
        name
        for name in (*torchvision_names(), *(f"timm/{name}" for name in TIMM))
        if name not in TOO_LARGE
    ]


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network at initialisation and the smallest input shape that it takes."""
    torch.manual_seed(0)
    library, _, model = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "torchvision":
            size = SIZES.get(name, 64)
            options: dict[str, object] = (
                {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
            )
            if model.startswith("vit_"):
                options["image_size"] = size
            return torchvision.models.get_model(model, weights=None, **options), (3, size, size)
        import timm

        network = timm.create_model(model, pretrained=False)
        config = network.pretrained_cfg
        shape = tuple(config["input_size"])
        for size in (64, 128):
            if shape[1] > size and not config.get("fixed_input_size"):
                try:
                    with torch.no_grad():
                        network.eval()(torch.ones(1, shape[0], size, size))
                    shape = (shape[0], size, size)
                    break
                except (RuntimeError, AssertionError, ValueError):
                    continue
        return network.train(), shape


class CountingSynFlow(SynFlow):
    """SynFlow that counts the weights that no flow passes through."""

    ranked_separately = 0

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        self.ranked_separately = sum(int(apart.sum()) for apart in state.ranked_separately.values())


def spread(network: nn.Module, masks: Masks, all_zero: list[str], shape: tuple[int, ...]) -> float:
    """Return the spread of the output over four random inputs, relative to the largest output.

    It is computed in float64, with parameters that are zero at initialisation set to one. Biases
    are zero: with PyTorch's default initialisation the signal of a ShuffleNet reaches the output at
    1e-20, and beside a bias of 0.03 that is lost in float64 too.
    """
    network.double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for name in all_zero:
            network.get_parameter(name).copy_(masks[name] if name in masks else torch.ones(()))
        output = network(torch.randn(4, *shape, dtype=torch.float64))
    output = (
        output
        if isinstance(output, Tensor)
        else next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    )
    return float((output - output.mean(0)).abs().max() / output.abs().max())


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def check(name: str, rounds: tuple[int, ...] = ROUNDS) -> Row:
    """Prune the network, assert that everything else is unchanged, and return its row.

    The numbers of rounds are tried in order until one leaves the network connected.
    """
    network, shape = build(name)
    inputs = example_of(network, shape, None)
    before = {key: tensor.clone() for key, tensor in _tensors(network)}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    linear_network, parameters = linearise(network, inputs), dict(network.named_parameters())
    error = conservation_error(
        linear_network, {key: magnitude(parameters[key]).double() for key in linear_network.weights}
    )
    assert error < 1e-9, f"flow is off by {error}"
    all_zero, unknown = sorted(linear_network.all_zero), linear_network.unknown({})
    del linear_network
    pruner = CountingSynFlow()
    for count in rounds:
        with torch.no_grad():
            for key, tensor in _tensors(network):
                tensor.copy_(before[key])
        masks = prune(network, pruner, density=DENSITY, rounds=count, input_shape=shape)
        if connected := is_connected(network, masks, inputs):
            break
    assert masks.kept == kept_weights(masks.total, DENSITY)
    assert modes == [module.training for module in network.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())
    for key, tensor in _tensors(network):
        old = before[key]
        expected = old.masked_fill(~masks[key], 0) if key in masks else old
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(expected)), key
    del before
    return Row(
        name=name,
        input="x".join(map(str, shape)),
        weights=masks.total,
        rounds=count,
        result="path left" if connected else "no path left",
        spread=spread(network, masks, all_zero, shape),
        by_magnitude=pruner.ranked_separately,
        as_ones=" ".join(all_zero),
        emptied=" ".join(key for key, mask in masks.items() if not mask.any()),
        unknown=" ".join(f"{key} (off by {value:.0%})" for key, value in unknown.items()),
    )


def read() -> dict[str, dict[str, str]]:
    """Return the rows of the table by name."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def write(rows: dict[str, dict[str, str]]) -> None:
    """Write the rows of those of :func:`names` that have one, in that order, atomically."""
    temporary = TABLE.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [field.name for field in fields(Row)], lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows[name] for name in names() if name in rows)
    os.replace(temporary, TABLE)


def main() -> None:
    wanted = sys.argv[1:] or [name for name in names() if name not in read()]
    for name in wanted:
        try:
            row = check(name)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(row, flush=True)
            written = {
                key: f"{value:.3g}" if isinstance(value, float) else str(value)
                for key, value in asdict(row).items()
            }
            write({**read(), name: written})
        gc.collect()


if __name__ == "__main__":
    main()
