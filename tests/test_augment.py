"""Augmentation: right maps on the right images, in training only."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Compose

from fewshot.augment import Affine, Identity, InTurn, RotateClasses, RotateTask, maps_tensor, warp
from fewshot.build import build
from fewshot.errors import UserError

LABELS = np.tile(np.repeat(np.arange(5), 4), (400, 1))  # 400 tasks, 20 images of 5 classes


def draw(augmentation, seed: int = 0) -> np.ndarray:
    return augmentation.draw(np.random.default_rng(seed), LABELS)


def test_warp_by_quarter_turns_is_rot90() -> None:
    images = torch.rand(3, 4, 1, 28, 28)
    for quarter in range(4):
        angle = quarter * np.pi / 2
        cosine, sine = np.cos(angle), np.sin(angle)
        maps = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0]]).expand(3, 4, 2, 3)
        torch.testing.assert_close(warp(images, maps), images.rot90(quarter, (-2, -1)), atol=1e-4, rtol=0)


def test_warp_shifts_in_paper() -> None:
    images = torch.ones(1, 1, 1, 8, 8)
    maps = torch.tensor([[[[1.0, 0, 0.5], [0, 1, 0]]]])  # a quarter of the width
    moved = warp(images, maps)[0, 0, 0]
    assert torch.equal(moved[:, 6:], torch.zeros(8, 2))
    assert torch.equal(moved[:, :6], torch.ones(8, 6))


def test_rotate_turns_whole_tasks() -> None:
    maps = draw(RotateTask(degrees=90, probability=0.6))
    assert np.array_equal(maps, np.broadcast_to(maps[:, :1], maps.shape)), "support and queries alike"
    turned = ~np.isclose(maps[:, 0, 0, 1], 0)
    assert 0.5 < turned.mean() < 0.7
    angles = np.degrees(np.arctan2(maps[:, 0, 1, 0], maps[:, 0, 0, 0]))
    assert angles.min() < -70
    assert angles.max() > 70
    assert len(np.unique(angles[turned].round(6))) == turned.sum(), "every task by its own angle"


def test_rotate_classes_turns_every_class_by_its_own_quarter() -> None:
    maps = draw(RotateClasses())
    quarter = np.degrees(np.arctan2(maps[..., 1, 0], maps[..., 0, 0])).round() // 90 % 4
    by_class = quarter.reshape(400, 5, 4)
    assert (by_class == by_class[..., :1]).all(), "all images of a class share it"
    assert (by_class[:, 0, 0] != by_class[:, 1, 0]).mean() > 0.6, "classes of a task differ"
    assert np.allclose(np.bincount(by_class[..., 0].astype(int).ravel(), minlength=4) / 2000, 0.25, atol=0.05)


def test_affine_distorts_every_image_on_its_own() -> None:
    maps = draw(Affine(degrees=10, scale=0.2, shear=0.1, shift=0.07, probability=0.5))
    assert len(np.unique(maps.reshape(-1, 6).round(9), axis=0)) > 0.9 * maps.shape[0] * maps.shape[1]
    untouched = np.isclose(maps, [[1, 0, 0], [0, 1, 0]]).all((-1, -2)).mean()
    assert 0.03 < untouched < 0.1  # one half to the fourth
    size = np.linalg.det(maps[..., :2])
    assert size.min() > 1 / 1.2**2 - 1e-9
    assert size.max() < 1 / 0.8**2 + 1e-9
    assert np.abs(maps[..., 2]).max() <= 0.14


def test_in_turn_is_one_warp_after_the_other() -> None:
    quarter, affine = RotateClasses(), Affine(degrees=10, scale=0.2, shear=0.1, shift=0.1, probability=1.0)
    labels = np.arange(3).repeat(2)[None]
    both = InTurn(first=quarter, second=InTurn(first=Identity(), second=affine)).draw(np.random.default_rng(0), labels)
    rng = np.random.default_rng(0)
    first, second = (maps_tensor(part.draw(rng, labels)) for part in (quarter, affine))
    smooth = F.avg_pool2d(torch.rand(6, 1, 64, 64), 9, stride=1, padding=4)[None]  # two interpolations blur
    torch.testing.assert_close(warp(smooth, maps_tensor(both)), warp(warp(smooth, first), second), atol=0.02, rtol=0)
    assert InTurn(first=Identity(), second=Identity()).draw(rng, labels) is None


def test_refusals() -> None:
    with pytest.raises(UserError, match="aug.probability=1.5"):
        RotateTask(degrees=90, probability=1.5)
    with pytest.raises(UserError, match="aug.scale=1"):
        Affine(degrees=1, scale=1, shear=0, shift=0, probability=1)


def test_identity_draws_nothing() -> None:
    assert maps_tensor(None) is None


@pytest.mark.parametrize("aug", ["rotate", "rotate_classes", "affine", "rotate_classes_affine"])
def test_training_only(compose_cfg: Compose, aug: str) -> None:
    plain, augmented = (build(compose_cfg(f"aug={name}").data) for name in ("none", aug))
    for data in (plain, augmented):
        data.setup()
    for split in ("val", "test"):
        for a, b in zip(plain.task_batch(split, 0), augmented.task_batch(split, 0), strict=True):
            assert torch.equal(a, b)
    without, with_aug = plain.task_batch("train", 0), augmented.task_batch("train", 0)
    assert torch.equal(without.support_y, with_aug.support_y), "the same tasks are drawn"
    assert not torch.equal(without.support_x, with_aug.support_x)
    assert with_aug.support_x.min() >= 0
    assert with_aug.support_x.max() <= 1
    again = augmented.task_batch("train", 0)
    assert torch.equal(again.query_x, with_aug.query_x), "the same step is augmented the same way"
