"""SynFlow prunes any network: each network is compared with its row in ``any_network.csv``.

The table is made by ``python -m tests.flow.any_network``.
"""

from __future__ import annotations

import pytest

from tests.flow import any_network

ROWS = any_network.read()
# Small, and of different kinds: inverted residuals with ReLU6, squeeze-excite, channel shuffle, a
# vision transformer.
QUICK = (
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/test_vit",
    "timm/test_convnext",
)
# The output of a network that ignores its input has a spread of about 1e-16 in float64.
LEAST_SPREAD = 1e-12


def test_the_table_lists_every_network_of_torchvision_and_forty_of_timm() -> None:
    assert len(any_network.TIMM) >= 40
    assert list(ROWS) == any_network.names()


def test_the_table_lists_every_network_as_connected_and_dependent_on_its_input() -> None:
    assert {name: row["result"] for name, row in ROWS.items() if row["result"] != "path left"} == {}
    assert {
        name: row["spread"] for name, row in ROWS.items() if not float(row["spread"]) > LEAST_SPREAD
    } == {}


def test_every_operation_of_torchvision_networks_has_a_rule() -> None:
    assert {
        name: row["unknown"]
        for name, row in ROWS.items()
        if name.startswith("torchvision") and row["unknown"]
    } == {}


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in any_network.names()
    ],
)
def test_synflow_prunes_the_network_as_the_table_says(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    row = any_network.check(name, rounds=(int(ROWS[name]["rounds"]),))
    assert row.result == "path left"
    assert row.spread > LEAST_SPREAD
    assert (row.input, str(row.weights)) == (ROWS[name]["input"], ROWS[name]["weights"])
    assert row.unknown.split(" (")[0] == ROWS[name]["unknown"].split(" (")[0]
