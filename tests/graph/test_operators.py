"""The table of ATen operators, compared with what torch has."""

from __future__ import annotations

import pytest
import torch

from synflow_pl.graph import operators

CLASSES = {name: value for name, value in vars(operators).items() if name.isupper()}
SCHEMAS = {
    schema.name.removeprefix("aten::")
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("aten::")
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_operator_of_the_table_exists_in_torch(name: str) -> None:
    absent = {
        operator
        for operator in CLASSES[name]
        # The names in the table are without the underscore of writes in place.
        if not any(hasattr(torch.ops.aten, form) for form in (operator, f"{operator}_"))
    }
    assert absent == set()


def test_every_fused_attention_of_torch_is_in_the_table() -> None:
    fused = {name for name in SCHEMAS if "scaled_dot_product" in name and "backward" not in name}
    # The function that selects a kernel is never recorded, only the kernel.
    assert fused - {"scaled_dot_product_attention"} == operators.ATTENTIONS


def test_batch_norms_have_an_argument_for_training_unless_they_always_or_never_train() -> None:
    def has_training(name: str) -> bool:
        packet = getattr(torch.ops.aten, name)
        schema = getattr(packet, packet.overloads()[0])._schema
        return any(argument.name in ("training", "train") for argument in schema.arguments)

    never = {"_native_batch_norm_legit_no_training", "_batch_norm_no_update"}
    assert {name for name in operators.BATCH_NORMS if not has_training(name)} == never
    assert not any(map(has_training, operators.TRAINING_BATCH_NORMS))


def test_pointwise_operators_of_the_table_are_functions_of_single_entries() -> None:
    copies = {"clone", "copy"}
    assert operators.POINTWISE_WITHOUT_TAG - copies <= operators.ELEMENTWISE
