"""Table 1's learning rate against its closed form."""

import math

import keras
import numpy as np
import pytest

from keras_metamix.metamix.schedule import SelectionThenCosine


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("selection", [0, 4])
def test_the_rate_is_constant_and_then_a_cosine(selection, floor):
    schedule = SelectionThenCosine(1e-4, selection, 5e-4, 12, floor)
    for step in range(15):
        part = min((step - selection) / (12 - selection), 1)
        cosine = 5e-4 * (floor + (1 - floor) * (1 + math.cos(math.pi * part)) / 2)
        expected = 1e-4 if step < selection else cosine
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    np.testing.assert_array_equal(restored(7), schedule(7))


def test_an_optimizer_with_it_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(SelectionThenCosine(1e-4, 1, 5e-4, 3)), "mse")
    model.fit(np.ones((4, 2)), np.ones(4), epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)


def test_selection_has_to_leave_steps():
    with pytest.raises(ValueError, match="selection_steps: expected fewer than steps=4, found 4"):
        SelectionThenCosine(1e-4, 4, 5e-4, 4)
