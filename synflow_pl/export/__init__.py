"""Export of networks to safetensors, ONNX and torch.export files, and reading them."""

from synflow_pl.export.formats import FORMATS, Exported, load_exported
from synflow_pl.export.metadata import Metadata
from synflow_pl.export.model_card import write_card
from synflow_pl.export.tensor_metadata import InputTensor, TensorMetadata
from synflow_pl.export.verification import export, verify

__all__ = [
    "FORMATS",
    "Exported",
    "InputTensor",
    "Metadata",
    "TensorMetadata",
    "export",
    "load_exported",
    "verify",
    "write_card",
]
