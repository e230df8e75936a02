"""Images of any shape are resized to the input of a network without distortion and border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from synflow_pl.data.image_folder import resize_transform

SHAPES = [(28, 28), (60, 40), (40, 60), (7, 90), (90, 7), (33, 32), (1, 1)]


@pytest.mark.parametrize("size", [(28, 28), (16, 48), (48, 16), (32, 33)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_white_image_of_any_shape_fills_the_whole_tensor(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    tensor = resize_transform(size, [0.0], [1.0])(Image.fromarray(np.full(shape, 255, np.uint8)))
    assert tensor.shape == (1, *size)
    assert torch.equal(tensor, torch.ones(1, *size))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_square_is_the_centre_of_the_image_with_its_shorter_side_resized(
    shape: tuple[int, int],
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    expected = transforms.Compose(
        [transforms.Resize(28), transforms.CenterCrop(28), transforms.ToTensor()]
    )(image)
    assert torch.equal(resize_transform((28, 28), [0.0], [1.0])(image), expected)


def test_a_rectangle_keeps_the_proportions_of_the_image() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[15:25] = 255  # a bar of a quarter of the height
    tensor = resize_transform((20, 80), [0.0], [1.0])(Image.fromarray(pixels))
    assert (
        int((tensor[0, :, 40] > 0.5).sum()) == 20
    )  # 80 pixels of the resized image, of which the middle 20 are shown
    assert torch.equal(tensor, tensor[:, :, :1].expand_as(tensor))
