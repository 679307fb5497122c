import pytest
import torch
import torch.nn.functional as F

from quantenv.core.errors import QuantenvError
from quantenv.training.augmentation import augment

IMAGES = torch.arange(1.0, 1 + 40 * 3 * 5 * 4).view(40, 3, 5, 4)


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (1, True)])
def test_every_image_is_a_window_of_its_padded_self_maybe_mirrored(crop, flip):
    before = IMAGES.clone()
    augmented = augment(IMAGES, crop, flip, torch.Generator().manual_seed(0))
    assert torch.equal(IMAGES, before)
    assert augmented.shape == IMAGES.shape
    seen = set()
    for image, padded in zip(augmented, F.pad(IMAGES, [crop] * 4), strict=True):
        windows = {
            (top, left): padded[:, top : top + 5, left : left + 4]
            for top in range(2 * crop + 1)
            for left in range(2 * crop + 1)
        }
        found = [(*place, False) for place, window in windows.items() if torch.equal(image, window)]
        found += [(*place, True) for place, window in windows.items() if torch.equal(image, window.flip(2))]
        assert len(found) == 1
        seen.update(found)
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if flip else {False})
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(2 * crop + 1))


def test_only_images_are_augmented():
    with pytest.raises(QuantenvError, match=r"the inputs are \(7, 3\)"):
        augment(torch.zeros(7, 3), 1, False, torch.Generator())
