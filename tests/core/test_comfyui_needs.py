"""What ComfyUI's way of holding weights asks of the core, proven without ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kosmos_core import KosmosG, KosmosGConfig, load_model, save_model


class LazyLinear(nn.Linear):
    """A linear layer that has no weights before they are loaded, as in ComfyUI's newest operations."""

    def __init__(self, in_features: int, out_features: int, device: object = None, dtype: object = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.weight = self.bias = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        self.weight = nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
        self.bias = nn.Parameter(state_dict[prefix + "bias"], requires_grad=False)


class LazyOperations:
    Linear, LayerNorm, Embedding, Conv2d = LazyLinear, nn.LayerNorm, nn.Embedding, nn.Conv2d


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(KosmosG(KosmosGConfig.tiny(reconstruction=True)).initialize(3), path)
    return path


TOKENS = torch.tensor([[0, 5, 6, 7]])


def test_layers_that_have_no_weights_before_loading_are_filled(file: Path) -> None:
    lazy = load_model(file, operations=LazyOperations)
    assert torch.equal(lazy.encode_tokens(TOKENS), load_model(file).encode_tokens(TOKENS))


def test_without_the_training_half_the_condition_is_the_same_and_the_half_is_not_loaded(file: Path) -> None:
    whole, lean = load_model(file), load_model(file, training_half=False)
    assert torch.equal(whole.encode_tokens(TOKENS), lean.encode_tokens(TOKENS))
    left_out = whole.state_dict().keys() - lean.state_dict().keys()
    assert left_out
    assert all(name.startswith("aligner.reconstruction_") for name in left_out)
    with pytest.raises(ValueError, match="training half"):
        lean.reconstruct(torch.zeros(1, 77, 768), 4)


def test_remembered_pictures_survive_a_move_and_not_a_change_of_type(file: Path) -> None:
    model = load_model(file)
    pixels = torch.rand(3, 224, 224)
    first = model.image_embeddings(pixels)
    model.to("cpu")
    assert model.image_embeddings(pixels) is first
    model.to(torch.bfloat16)
    assert model.image_embeddings(pixels) is not first


class CastingLayers:
    """Layers that bring their weights to the input's device at each call, as ComfyUI's do when memory is short."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight.to(x), self.bias.to(x))

    class LayerNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return functional.layer_norm(x, self.normalized_shape, self.weight.to(x), self.bias.to(x), self.eps)

    class Embedding(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return functional.embedding(ids, self.weight.to(ids.device))

    class Conv2d(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight.to(x), None, self.stride)


def test_the_model_computes_on_the_inputs_device_while_its_weights_stay_on_the_cpu() -> None:
    # "meta" stands for the GPU: tensors there have a device and a shape, and do not mix with the CPU's. They have no
    # numbers, so token weights, which decide how many rows there are, cannot be among them.
    with torch.no_grad():
        model = KosmosG(KosmosGConfig.tiny(), operations=CastingLayers)
        pixels = torch.empty(2, 3, 224, 224, device="meta")
        tokens = torch.zeros(1, 9, dtype=torch.long, device="meta")
        padding = torch.zeros(1, 9, dtype=torch.bool, device="meta")
        hidden = model.hidden_states(tokens)
        results = [model.embed_images(pixels), hidden, model.align(hidden, padding)]
    assert model.device.type == "cpu"
    assert [result.device.type for result in results] == ["meta"] * 3
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        KosmosG(KosmosGConfig.tiny()).hidden_states(tokens)  # torch's own layers do not cast


def test_the_entry_point_imports_where_comfyui_is_absent() -> None:
    entry = Path(__file__).parents[2] / "__init__.py"
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(entry)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert callable(module.comfy_entrypoint) and not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
