"""Tables that benchmarks/compact.py makes of its CSV."""

from __future__ import annotations

from benchmarks.compact import COLUMNS, LATENCIES, details, summary


def row(what: str, mflops: str, alive: str = "True", **latencies: str) -> dict[str, str]:
    given = {name.replace("_", " "): value for name, value in latencies.items()}
    sizes = {"parameters": "1000", "MFLOPs": mflops, "file MB": "4", "peak MB": "8"}
    told = {
        "network": "ResNet-20",
        "pruner": "snip",
        "density": "0.1",
        "what": what,
        "alive": alive,
    }
    return {**dict.fromkeys(COLUMNS, ""), **told, **sizes, **given}


def test_ratios_refer_to_the_dense_network_of_the_cell_and_absent_engines_are_left_out() -> None:
    # 12 to 3 MFLOPs; 8 to 2 ms with torch, 9 to 6 ms with ONNX Runtime.
    rows = [
        row("dense", "12", torch_1="8", onnxruntime_1="9"),
        row("pruned", "12", torch_1="8", onnxruntime_1="9"),
        row("compacted", "3", alive="False", torch_1="2", onnxruntime_1="6"),
    ]
    assert LATENCIES[1] == ["torch 1", "onnxruntime 1", "openvino 1"]
    assert summary(rows).splitlines()[2] == "| ResNet-20 | 0.1 | 4.0; 4.0 / 1.5 / -; - / - / - † |"
    lines = details(rows).splitlines()
    assert lines[2] == "| dense | 1,000 | 12.0 | 4.0 | 8.0 | 8.0 | 9.0 |  |  |  |  |"
    assert (
        lines[4]
        == "| snip 0.1, compacted † | 1,000 | 3.0 | 4.0 | 8.0 | 2.0 (4.0) | 6.0 (1.5) |  |  |  |  |"
    )
