from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synflow_pl import Diagnosis, diagnose, prune
from synflow_pl.diagnosis.expansion import spectrum
from synflow_pl.networks import Conv
from synflow_pl.pruners import Random


def test_the_gap_and_bound_of_a_complete_graph() -> None:
    # The singular values of ones (4, 9) are 6 and 0; degrees are 9 and 4.
    found = spectrum(torch.ones(4, 1, 3, 3, dtype=torch.bool))
    assert found.gap == pytest.approx(6)
    assert found.ramanujan == pytest.approx(math.sqrt(8) + math.sqrt(3))


def test_two_parts_without_a_connection_have_no_gap_and_are_no_ramanujan_graph() -> None:
    # Two complete graphs of 3 by 3 nodes have 3 as singular value twice, and 2 sqrt(2) < 3.
    part = torch.ones(3, 3, dtype=torch.bool)
    mask = torch.block_diag(part, part).bool()
    found = spectrum(mask)
    assert found.gap == pytest.approx(0, abs=1e-6)
    assert found.ramanujan == pytest.approx(2 * math.sqrt(2) - 3)
    # Nodes without an edge do not count.
    padded = torch.zeros(9, 8, dtype=torch.bool)
    padded[1:7, 2:8] = mask
    assert spectrum(padded) == pytest.approx(found, abs=1e-6)


def test_degrees_below_three_have_no_bound_and_an_empty_layer_has_nothing() -> None:
    found = spectrum(torch.eye(4, dtype=torch.bool))
    assert found.gap == pytest.approx(0, abs=1e-6)
    assert math.isnan(found.ramanujan)
    assert all(math.isnan(value) for value in spectrum(torch.zeros(4, 4, dtype=torch.bool)))
    single = spectrum(torch.ones(1, 5, dtype=torch.bool))
    assert single.gap == pytest.approx(math.sqrt(5))


@settings(max_examples=50, deadline=None)
@given(
    units=st.integers(1, 12),
    inputs=st.integers(1, 12),
    seed=st.integers(0, 1000),
    density=st.floats(0.1, 1),
)
def test_spectra_are_those_of_the_adjacency_matrix(
    units: int, inputs: int, seed: int, density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(units, inputs, generator=generator) < density
    mask[0, 0] = True
    adjacency = torch.zeros(units + inputs, units + inputs, dtype=torch.float64)
    adjacency[:units, units:] = mask.double()
    adjacency += adjacency.T.clone()
    # Each eigenvalue occurs with both signs.
    first, second = torch.linalg.eigvalsh(adjacency).flip(0)[:2].tolist()
    degrees = adjacency.sum(1)
    left, right = (side[side > 0].mean().item() for side in degrees.split([units, inputs]))
    found = spectrum(mask)
    assert found.gap == pytest.approx(first - max(second, 0), abs=1e-6)
    if min(left, right) >= 3:
        bound = math.sqrt(left - 1) + math.sqrt(right - 1)
        assert found.ramanujan == pytest.approx(bound - second, abs=1e-6)
    else:
        assert math.isnan(found.ramanujan)


def diagnosed(spectra: bool) -> Diagnosis:
    torch.manual_seed(0)
    network = Conv()
    masks = prune(network, Random(seed=0), density=0.3)
    return diagnose(network, masks, input_shape=(1, 28, 28), spectra=spectra)


def test_the_diagnosis_has_spectra_if_they_are_asked_for(tmp_path: Path) -> None:
    diagnosis = diagnosed(True)
    assert all(layer.spectral_gap is not None for layer in diagnosis.layers)
    assert "Ramanujan" in diagnosis.table()
    diagnosis.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[0].endswith(",spectral_gap,ramanujan")
    diagnosis.to_json(tmp_path / "a.json")
    row = json.loads((tmp_path / "a.json").read_text())["layers"][1]
    assert row["spectral_gap"] == pytest.approx(diagnosis.layers[1].spectral_gap)


def test_the_diagnosis_has_no_spectra_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)  # it would be called
    diagnosis = diagnosed(False)
    assert all(layer.ramanujan is None for layer in diagnosis.layers)
    assert "Ramanujan" not in diagnosis.table()
    diagnosis.to_csv(tmp_path / "a.csv")
    assert "spectral_gap" not in (tmp_path / "a.csv").read_text()


def test_spectra_of_a_layer_without_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = prune(network, Random(seed=0), num_kept=1, on_collapse="ignore")
    diagnosis = diagnose(network, masks, input_shape=(4,), spectra=True)
    assert "nan" in diagnosis.table()
    diagnosis.to_json(tmp_path / "a.json")
    gaps = [
        layer["spectral_gap"] for layer in json.loads((tmp_path / "a.json").read_text())["layers"]
    ]
    assert sorted(gap is None for gap in gaps) == [False, True]
