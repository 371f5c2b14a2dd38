"""Which images are held out: a function of their places, whatever the seed of a run."""

import numpy as np
import pytest

from keras_metamix.data import hold_out


@pytest.mark.parametrize(
    ("held", "size"), [(0, 0), (0.1, 100), (0.0004, 0), (0.999, 999), (1, 1), (250.0, 250)]
)
def test_every_image_is_on_one_side(held, size):
    trained, validated = hold_out(1000, held)
    assert len(validated) == size
    assert sorted([*trained, *validated]) == list(range(1000))
    for numbers, again in zip((trained, validated), hold_out(1000, held), strict=True):
        np.testing.assert_array_equal(numbers, again)
        assert (np.diff(numbers) > 0).all()


def test_more_are_the_same_and_others():
    few, more = (set(hold_out(1000, held)[1]) for held in (0.1, 0.2))
    assert few < more
