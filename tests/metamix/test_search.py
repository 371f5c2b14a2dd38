"""What a search leaves behind: bits chosen before validation, at a fit's end, for any budget."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.assignment import SearchSpace
from keras_metamix.metamix.callback import MetaMixCallback
from metamix_tflite import convert, parity, verify

PAIRS = SearchSpace((8, 4, 2), (8, 4, 2))
LIMITS = (43_000, 45_000, 60_000)


class Validated(keras.callbacks.Callback):
    """The bits that each epoch is validated at, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.bits = []

    def on_test_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.bits.append(self.model.bit_assignment)


@pytest.fixture(scope="module")
def searched(metamix, data):
    """A fit that ends with its search; its callback, and the bits that were validated."""
    model = metamix(PAIRS, optimizer=keras.optimizers.Adam(1e-2))
    callback = MetaMixCallback(budget=kmm.Bops(45_000), meta_epochs=2, search_epochs=2, verbose=0)
    seen = Validated()
    history = model.fit(
        *data,
        batch_size=8,
        epochs=4,
        validation_data=data,
        callbacks=[callback, seen],
        verbose=0,
    ).history
    return model, callback, seen.bits, history


def test_an_epoch_is_validated_at_the_bits_whose_cost_it_logs(searched):
    model, callback, bits, history = searched
    assert history["bops"] == [kmm.bops(model, b) for b in bits]
    assert len(bits) == 4
    assert bits[-1] == callback.assignment


def test_the_bits_are_those_that_are_validated_without_validation_data_too(metamix, data):
    model = metamix(PAIRS, run_eagerly=True)
    callback = MetaMixCallback(45_000, meta_epochs=1, search_epochs=0, verbose=0)
    history = model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0).history
    assert history["bops"] == [kmm.bops(model, callback.assignment)]


def test_a_fit_that_ends_with_the_search_has_selected(searched, data):
    model, callback, _, _ = searched
    assert callback.phases == ["bit_meta"] * 2 + ["bit_search"] * 2
    assert model.phase == "weight_training"
    assert model.bit_assignment == callback.assignment
    assert 0.97 * 45_000 <= kmm.bops(model, callback.assignment) <= 45_000
    flat = convert(model)  # without any weight training
    verify(flat, callback.assignment)
    assert parity(flat, model, data[0]).differing == 0
    again = MetaMixCallback(45_000, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[again], verbose=0)
    assert again.phases == ["weight_training"]
    assert model.bit_assignment == callback.assignment


def test_a_fit_that_stops_within_the_search_has_not(metamix, data):
    model = metamix(run_eagerly=True)
    callback = MetaMixCallback(48_000, meta_epochs=0, search_epochs=2, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    assert (model.phase, callback.assignment) == ("bit_search", None)


def test_one_search_gives_the_bits_for_several_budgets(searched, data):
    model, callback, _, _ = searched
    before = model.bit_assignment, [np.array(v) for v in model.variables]
    found = kmm.select_bits(model, [kmm.Bops(limit) for limit in LIMITS])
    for bits, limit in zip(found, LIMITS, strict=True):
        assert 0.97 * limit <= kmm.bops(model, bits) <= limit
        assert kmm.select_bits(model, kmm.Bops(limit)) == bits
    assert found[1] == callback.assignment == kmm.select_bits(model, 45_000)
    assert model.bit_assignment == before[0]
    for variable, value in zip(model.variables, before[1], strict=True):
        np.testing.assert_array_equal(variable, value)
    model.set_bits(found[0])
    kmm.prepare_weight_training(model, data[0], batches=2)
    assert parity(convert(model), model, data[0]).differing == 0


def test_a_tuple_is_one_budget_of_several_parts(searched):
    model = searched[0]
    size = kmm.Size(share=0.3)
    bits = kmm.select_bits(model, (kmm.Bops(60_000), size))
    priced = size.priced(model)
    assert kmm.bops(model, bits) <= 60_000
    assert priced.total(bits) <= priced.limit
    with pytest.raises(ValueError, match=r"Bops\(10\): expected at least"):
        kmm.select_bits(model, (kmm.Bops(10), size))


def test_a_search_under_several_budgets_meets_all(metamix, data):
    model = metamix(PAIRS, run_eagerly=True)
    budgets = [kmm.Bops(share=0.5), kmm.Size(share=0.5)]
    callback = MetaMixCallback(budgets, meta_epochs=0, search_epochs=1, verbose=0)
    history = model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0).history
    priced = [budget.priced(model) for budget in budgets]
    costs = [budget.total(callback.assignment) for budget in priced]
    assert all(cost <= p.limit for cost, p in zip(costs, priced, strict=True))
    assert any(cost >= 0.97 * p.limit for cost, p in zip(costs, priced, strict=True))
    assert [history["bops"][-1], history["size_bytes"][-1]] == costs


def test_a_budget_of_bytes_is_that_of_the_file(metamix, data):
    model = metamix(PAIRS, run_eagerly=True)
    callback = MetaMixCallback(kmm.Size(share=0.0), meta_epochs=0, search_epochs=1, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    size = callback.budgets[0].priced(model).total(model.bit_assignment)
    assert size == pytest.approx(len(convert(model)), abs=100)


def test_before_the_search_there_is_nothing_to_select(metamix, tiny_model):
    with pytest.raises(ValueError, match="searched, found phase 'bit_meta'"):
        kmm.select_bits(metamix(), kmm.Bops(48_000))
    with pytest.raises(TypeError, match="MetaMixModel .*, found Functional"):
        kmm.select_bits(tiny_model(), kmm.Bops(48_000))
    with pytest.raises(TypeError, match="MetaMixModel .*, found Functional"):
        kmm.prepare_weight_training(tiny_model(), None)


def test_a_budget_above_the_most_bits_is_reported_and_takes_them(metamix, data):
    model = metamix(run_eagerly=True)
    callback = MetaMixCallback(1e6, meta_epochs=0, search_epochs=1, verbose=0)
    with pytest.warns(UserWarning, match=r"Bops\(1e\+06\) is above 58368 BOPs.*costs 46848 BOPs"):
        model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    assert model.bit_assignment == kmm.uniform_assignment(model, 8, 4)


def test_a_callback_without_a_budget_names_some(data):
    with pytest.raises(ValueError, match=r"expected a budget, such as .*Bops\(share=0.5\)"):
        MetaMixCallback()
    with pytest.raises(ValueError, match="expected at least one, found none"):
        MetaMixCallback([])
