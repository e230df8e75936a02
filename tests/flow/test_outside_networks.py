"""Networks of other libraries are pruned, diagnosed and compacted correctly, or refused by name.

The libraries are not dependencies: without one, the tests of its networks are skipped. Each network
is built small from its configuration.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Compaction, Masks, prune
from synflow_pl.diagnosis import diagnose
from synflow_pl.flow import example_of
from synflow_pl.graph.outputs import leaves
from synflow_pl.pruners import Magnitude, SynFlow
from synflow_pl.schedules import kept_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Example = tuple[nn.Module, tuple[Tensor, ...]]
WORDS = torch.arange(1, 13).view(1, 12)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def bert() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SIZES, vocab_size=60, max_position_embeddings=32)
    return transformers.BertForSequenceClassification(config), (WORDS,)


def llama() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=1, vocab_size=60, max_position_embeddings=32
    )
    return transformers.LlamaForCausalLM(config), (WORDS,)


def llama_without_cache() -> Example:
    network, inputs = llama()
    network.config.use_cache = False
    return network, inputs


class Sequences(nn.Module):
    """Passes the inputs of an encoder-decoder network by position."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, words: Tensor, decoded: Tensor) -> Any:
        return self.network(input_ids=words, decoder_input_ids=decoded)


def t5() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        vocab_size=60,
        decoder_start_token_id=0,
    )
    return Sequences(transformers.T5ForConditionalGeneration(config)), (WORDS, WORDS[:, :8])


def vit() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=10)
    return transformers.ViTForImageClassification(config), (torch.ones(1, 3, 32, 32),)


def wav2vec2() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        **SIZES,
        vocab_size=32,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    return transformers.Wav2Vec2ForCTC(config), (torch.ones(1, 800),)


def mamba() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=60, state_size=4
    )
    return transformers.MambaForCausalLM(config), (WORDS,)


def unet2d() -> Example:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network, (torch.ones(1, 3, 16, 16), torch.tensor(10))


def yolov8n() -> Example:
    pytest.importorskip("ultralytics")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolov8n.yaml", ch=3, nc=4, verbose=False), (torch.ones(1, 3, 64, 64),)


def fpn() -> Example:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.FPN("resnet18", encoder_weights=None, classes=3), (torch.ones(1, 3, 64, 64),)


def manet() -> Example:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.MAnet("resnet18", encoder_weights=None, classes=3), (torch.ones(1, 3, 64, 64),)


class Nodes(nn.Module):
    """A graph network followed by linear layers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 7))

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        return self.head(self.body(x, edges).relu())


class Chain(nn.Module):
    """Two graph convolutions in sequence."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        return self.second(self.first(x, edges).relu(), edges)


def edges() -> Tensor:
    return torch.randint(0, 20, (2, 60))


def gcn_with_head() -> Example:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCN

    return Nodes(GCN(16, 32, 2, 32, add_self_loops=False)), (torch.ones(20, 16), edges())


def gcn_with_self_loops() -> Example:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCN

    return Nodes(GCN(16, 32, 2, 32)), (torch.ones(20, 16), edges())


def gin() -> Example:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GINConv

    first, second = (
        GINConv(nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 32)))
        for size in (16, 32)
    )
    return Nodes(Chain(first, second)), (torch.ones(20, 16), edges())


def gpt2() -> Example:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, n_positions=32)
    return transformers.GPT2LMHeadModel(config), (WORDS,)


def gcn() -> Example:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCN

    return GCN(16, 32, 3, 7), (torch.ones(20, 16), edges())


@torch.no_grad()
def _randomize(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> None:
    """Randomise biases, gains, shifts and statistics, and scale outputs to unit deviation."""
    masks.apply(network)
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            parameter.copy_(0.3 * torch.randn_like(parameter) + float(name.endswith("weight")))
    seen: set[nn.Module] = set()

    def scale(layer: nn.Module, _: tuple[Tensor, ...], made: Tensor) -> Tensor:
        if (
            layer in seen
            or nn.utils.parametrize.is_parametrized(layer)
            or not float(made.std()) > 1e-9
        ):
            return made
        seen.add(layer)
        layer.weight.div_(made.std())
        return made / made.std()

    def gather(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if norm not in seen:
            seen.add(norm)
            norm.running_mean.copy_(
                given[0].transpose(0, 1).flatten(1).mean(1)
                + 0.2 * torch.randn_like(norm.running_mean)
            )
            norm.running_var.copy_(given[0].var() * (torch.rand_like(norm.running_var) + 0.5))

    handles = []
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            handles.append(module.register_forward_hook(scale))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_pre_hook(gather))
    network.eval()(*map(_noise, inputs))
    for handle in handles:
        handle.remove()
    masks.apply(network)


def _noise(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn_like(tensor)
    return tensor.flatten()[torch.randperm(tensor.numel())].view_as(tensor)


def _outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return every tensor that the network returns in eval mode on inputs in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            made = leaves(network.eval()(*inputs), type(network).__name__)
    finally:
        torch.set_default_dtype(before)
    return {path: leaf for path, leaf in made.items() if isinstance(leaf, Tensor)}


RIGHT = (
    gpt2,
    gcn,
    bert,
    llama,
    llama_without_cache,
    t5,
    vit,
    wav2vec2,
    mamba,
    unet2d,
    yolov8n,
    fpn,
    manet,
    gcn_with_head,
    gin,
)


@pytest.mark.parametrize("build", RIGHT)
def test_the_network_is_pruned_diagnosed_and_compacted_to_the_same_function(
    build: Callable[[], Example],
) -> None:
    torch.manual_seed(0)
    network, inputs = build()
    dense = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    held = {name: set(vars(module)) for name, module in network.named_modules()}

    masks = prune(network, SynFlow(), density=0.2, rounds=4, example_input=inputs)
    assert masks.kept == kept_weights(masks.total, 0.2)
    for name, tensor in network.state_dict().items():
        wanted = dense[name].masked_fill(~masks[name], 0) if name in masks else dense[name]
        assert torch.equal(tensor.nan_to_num(), wanted.nan_to_num()), name
    assert {name: set(vars(module)) for name, module in network.named_modules()} == held

    diagnosis = diagnose(network, masks, example_input=inputs)
    assert diagnosis.alive
    assert 0 < diagnosis.effective <= diagnosis.kept == masks.kept
    assert 0 < diagnosis.sparse_flops < diagnosis.flops
    assert not any("nan" in note for note in diagnosis.notes)

    trained = copy.deepcopy(network).train()
    returned = leaves(trained(*inputs), type(network).__name__).values()
    sum(
        leaf.square().mean() for leaf in returned if isinstance(leaf, Tensor) and leaf.requires_grad
    ).backward()
    torch.optim.SGD(trained.parameters(), 0.01).step()
    # torch cannot save parametrised modules themselves.
    saved = network.state_dict() if build is wav2vec2 else network
    torch.save(saved, io.BytesIO())

    _randomize(network, masks, inputs)
    network.double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    doubled = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    compaction = Compaction(network, masks, example_of(network, None, doubled))
    assert all(
        torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
        for name, tensor in network.state_dict().items()
    )
    # Layers of other classes cannot be made smaller, since their sizes are not known to us.
    whole = any("nothing was taken out" in note for note in compaction.notes)
    assert whole == (build in (gpt2, gcn)), compaction.notes
    first, second = (tuple(map(_noise, doubled)) for _ in range(2))
    truth, other, small = (
        _outputs(network, first),
        _outputs(network, second),
        _outputs(compaction.network, first),
    )
    assert truth.keys() == small.keys()
    for path, tensor in truth.items():
        torch.testing.assert_close(
            small[path], tensor, rtol=1e-9, atol=1e-9 * float(tensor.abs().max()), equal_nan=True
        )
    # The comparison is meaningful: between two inputs the output changes by at least 100,000 times
    # the tolerance.
    output = next(iter(truth))
    assert float((other[output] - truth[output]).abs().max()) > 1e-4 * float(
        truth[output].abs().max()
    )


def test_a_graph_network_that_selects_edges_by_value_is_not_compacted_and_names_the_operation() -> (
    None
):
    torch.manual_seed(0)
    network, inputs = gcn_with_self_loops()
    masks = prune(network, SynFlow(), density=0.2, rounds=4, example_input=inputs)
    assert masks.kept == kept_weights(masks.total, 0.2)
    assert diagnose(network, masks, example_input=inputs).alive
    (note,) = Compaction(network, masks, example_of(network, None, inputs)).notes
    assert note.startswith(
        "nothing was taken out: Nodes.forward reads values of tensors that depend on its input"
        " (index in body.convs.0"
    )


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (
            gpt2,
            ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"],
        ),
        (gcn, ["lin.weight"]),
    ],
)
def test_layers_of_the_library_s_own_classes_are_pruned(
    build: Callable[[], Example], names: list[str]
) -> None:
    network, inputs = build()
    masks = prune(network, SynFlow(), density=0.2, rounds=4, example_input=inputs)
    for name in names:
        assert any(key.endswith(name) for key in masks)


@pytest.mark.parametrize(("build", "kind"), [(gpt2, "Conv1D"), (gcn, "Linear|GCNConv")])
def test_without_an_example_a_network_of_such_layers_is_refused_with_their_names(
    build: Callable[[], Example], kind: str
) -> None:
    network, _ = build()
    with pytest.raises(
        ValueError,
        match=(
            rf"^{type(network).__name__} has no prunable weight; .*its parameters are in .*"
            rf"({kind})"
        ),
    ):
        prune(network, Magnitude(), density=0.2)
