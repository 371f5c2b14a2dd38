"""Many budgets from one search: its points, what they cost, and a front that was interrupted."""

import json

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.assignment import SearchSpace
from keras_metamix.metamix import front
from metamix_tflite import convert, parity

SPACE = SearchSpace(8, (8, 4, 3, 2), edge_weight_bits=(8, 4))
BUDGETS = [kmm.Bops(share=share) for share in (0.2, 0.9, 0.5)]


@pytest.fixture(scope="module")
def searched(metamix):
    """A model whose search ended, by alphas set at random."""
    model = metamix(SPACE, run_eagerly=True)
    generator = np.random.default_rng(0)
    for alpha in model.architecture_variables:
        alpha.assign(generator.normal(size=alpha.shape))
    model.phase = "bit_search"
    return model


def test_a_front_is_one_search_s_and_leaves_the_model_alone(searched, data, tmp_path):
    before = [np.array(v) for v in searched.variables]
    plot = tmp_path / "front.png"
    points = kmm.pareto_front(searched, data, BUDGETS, train=data, plot=plot, verbose=0)
    assert plot.stat().st_size > 0
    chosen = kmm.select_bits(searched, BUDGETS)
    assert [p.cost for p in points] == sorted(p.cost for p in points)
    assert all(p.bits in chosen and p.epochs == 0 for p in points)
    for variable, value in zip(searched.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert searched.phase == "bit_search"


def test_trained_points_leave_the_optimizers_alone(searched, data):
    optimizers = [optimizer for optimizer, _ in searched.optimizers()]
    before = [np.array(v) for optimizer in optimizers for v in optimizer.variables]
    kmm.pareto_front(searched, data, BUDGETS[:1], train=data, epochs=1, verbose=0)
    found = [np.array(v) for optimizer in optimizers for v in optimizer.variables]
    assert len(found) > 2
    for value, expected in zip(found, before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_point_is_the_model_at_its_bits(searched, data, tmp_path):
    points = front.trace_front(searched, data, BUDGETS, data, folder=tmp_path, verbose=0)
    limits = [budget.priced(searched).limit for budget in BUDGETS]
    for point, limit in zip(points, limits, strict=True):
        assert 0.97 * limit <= point.cost <= limit
        assert point.images == 2 * len(data[0])  # for the streams' steps, and for batch norm
        model = keras.models.load_model(point.file)
        assert model.bit_assignment == point.bits
        assert model.evaluate(*data, verbose=0, return_dict=True) == pytest.approx(point.metrics)
        assert parity(convert(model), model, data[0][:8]).differing == 0


def test_points_are_trained_from_their_neighbour_s_weights_and_resumed(
    searched, data, tmp_path, monkeypatch
):
    seen = []
    made = front._made

    def spy(model, *arguments):
        kernel = np.array(model.mac_layers[1].kernel)
        point = made(model, *arguments)
        seen.append((kernel, np.array(model.mac_layers[1].kernel)))
        if len(seen) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return point

    monkeypatch.setattr(front, "_made", spy)
    arguments = (searched, data, BUDGETS, data, 1, None, tmp_path / "front")
    with pytest.raises(KeyboardInterrupt):
        front.trace_front(*arguments, verbose=0)
    points = front.trace_front(*arguments, verbose=0)
    first, _, second, third = seen  # the one that was stopped was not kept
    np.testing.assert_array_equal(first[0], searched.mac_layers[1].kernel)
    np.testing.assert_array_equal(second[0], first[1])
    np.testing.assert_array_equal(third[0], second[1])
    assert not np.array_equal(*third)
    assert [p.epochs for p in points] == [1, 1, 1]
    assert len(json.loads((tmp_path / "front" / front.FILE).read_text())) == 3
    assert front.trace_front(*arguments, verbose=0) == points and len(seen) == 4
    with pytest.raises(ValueError, match="expected point . of this search, trained for 2 epochs"):
        front.trace_front(*arguments[:4], 2, *arguments[5:], verbose=0)


def test_what_a_front_needs_is_said(searched, data, tiny_model):
    with pytest.raises(ValueError, match="train: expected the training data"):
        kmm.pareto_front(searched, data, BUDGETS)
    with pytest.raises(TypeError, match="MetaMixModel or BitMixerModel, found Functional"):
        kmm.pareto_front(tiny_model(), data, BUDGETS)
    with pytest.raises(ValueError, match="epochs, folder: expected none for a BitMixerModel"):
        kmm.pareto_front(kmm.BitMixerModel.from_float(tiny_model()), data, epochs=1)
