"""Images and numbers that somebody's program has in memory, as a model wants them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.data.images import MODES, as_shown, centred_square
from fewshot.errors import UserError

_CHANNELS = (1, 3, 4)  # that images have: a stack whose number of images, or width, is one of these may be an image
_ROUNDING = 1e-3  # that floats may lie outside of 0 to 1 after a resampling of the user's own


def read_images(given: Any, *, channels: int, image_size: int) -> NDArray[np.uint8]:
    """Images as a model with so many channels sees them: (M, image_size, image_size, channels).

    The largest square in the middle of an image is cut out and brought to `image_size`² with Lanczos filtering, as by
    `data=folder`; values are kept as 0 to 255.

    Args:
        given: a list of images, of any sizes, or a stack of them. They may be PIL images of any mode; arrays, channels
            last: (H, W) or (H, W, C), stacked (M, H, W) or (M, H, W, C); tensors, channels first: (H, W) or
            (C, H, W), stacked (M, H, W) or (M, C, H, W). Arrays and tensors hold uint8 0 to 255, floats 0 to 1 or
            booleans, and have the model's number of channels; PIL images are converted.

    Raises:
        UserError: anything else, or what might be read in two ways; says which image.
    """
    if channels not in MODES:
        raise UserError(f"the model sees {channels} channels: images have 1 (grey) or 3 (colour)")
    images = _separate(given)
    if not images:
        raise UserError("0 images: at least 1 is needed")
    squares = [_square(image, number, channels, image_size) for number, image in enumerate(images)]
    return np.stack(squares).reshape(len(squares), image_size, image_size, channels)


def read_numbers(given: Any, shape: Sequence[int], name: str) -> Tensor:
    """Numbers (M, *shape) as float32; where the shape is (1,) also (M,).

    Args:
        name: what they are, for the errors.
    """
    try:
        array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be numbers ({error})") from error
    if array.ndim == 1 and tuple(shape) == (1,):
        array = array[:, None]
    if array.shape[1:] != tuple(shape):
        wanted = ", ".join(map(str, ("M", *shape)))
        raise UserError(f"{name} have shape {array.shape}, and the model takes ({wanted})")
    if not len(array):
        raise UserError(f"{name}: 0 points, at least 1 is needed")
    if bad := int((~np.isfinite(array)).sum()):
        raise UserError(f"{name}: {bad} of {array.size} numbers are not finite")
    return torch.tensor(array)


def _separate(given: Any) -> list[Any]:
    """One image after the other."""
    if isinstance(given, Image.Image | str | bytes | dict):
        raise UserError(f"images must be a list of images or a stack of them, not one {type(given).__name__}")
    if not isinstance(given, Tensor) and hasattr(given, "__array__"):
        given = np.asarray(given)
    if isinstance(given, np.ndarray | Tensor) and given.dtype != object:
        _refuse_ambiguous(given)
    try:
        return list(given)
    except TypeError as error:
        raise UserError(f"images must be a list of images or a stack of them, not {type(given).__name__}") from error


def _refuse_ambiguous(stack: Tensor | NDArray[Any]) -> None:
    shape, tensor = tuple(stack.shape), isinstance(stack, Tensor)
    kind, order = ("tensors", "(M, C, H, W)") if tensor else ("arrays", "(M, H, W, C)")
    if len(shape) not in (3, 4):
        raise UserError(f"images of shape {shape}: {kind} are (M, H, W) or {order}")
    if len(shape) == 3 and shape[0 if tensor else -1] in _CHANNELS:
        raise UserError(
            f"images of shape {shape} may be one image with its channels, or {shape[0]} grey ones: give {kind} {order}"
        )


def _square(image: Any, number: int, channels: int, image_size: int) -> NDArray[np.uint8]:
    try:
        if isinstance(image, Image.Image):
            shown = as_shown(image).convert(MODES[channels])
        else:
            shown = Image.fromarray(_pixels(image, number, channels))
        return np.asarray(centred_square(shown, image_size))
    except UserError:
        raise
    except Exception as error:  # Pillow reads a file when its pixels are asked for, and raises whatever comes to it
        raise UserError(f"image {number} cannot be read ({error})") from error


def _pixels(image: Any, number: int, channels: int) -> NDArray[np.uint8]:
    """An array or a tensor as (H, W) uint8 of grey, (H, W, C) of colour."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.movedim(0, -1) if image.dim() == 3 else image
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {number} is of type {type(image).__name__}: give PIL images, arrays or tensors")
    if image.ndim not in (2, 3) or not image.size:
        raise UserError(f"image {number} has shape {image.shape}: arrays are (H, W) or (H, W, C), tensors (C, H, W)")
    found = 1 if image.ndim == 2 else image.shape[-1]
    if found != channels:
        raise UserError(
            f"image {number} has {found} channels and the model sees {channels} (arrays are (H, W, C), tensors "
            "(C, H, W)); PIL images of any mode are converted"
        )
    pixels = _eight_bits(image, number)
    return np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels)


def _eight_bits(image: NDArray[Any], number: int) -> NDArray[np.uint8]:
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    if np.issubdtype(image.dtype, np.floating):
        if bad := int((~np.isfinite(image)).sum()):
            raise UserError(f"image {number}: {bad} of {image.size} pixels are not finite")
        if image.min() < -_ROUNDING or image.max() > 1 + _ROUNDING:
            raise UserError(
                f"image {number} has {image.dtype} pixels from {image.min():g} to {image.max():g}: floats go from 0 to "
                "1 and uint8 from 0 to 255"
            )
        return (255 * image.astype(np.float64)).round().clip(0, 255).astype(np.uint8)
    if image.dtype != np.uint8 or image.max() == 1:
        raise UserError(
            f"image {number} has {image.dtype} pixels from {image.min()} to {image.max()}: floats go from 0 to 1 and "
            "uint8 from 0 to 255"
        )
    return image
