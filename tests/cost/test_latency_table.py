"""A latency table's prices, what it lacks, and the search and the choice of bits that read it."""

import itertools
import json

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.cost.latency_table import FORMAT
from keras_metamix.graph.layer_costs import layer_costs

FIXED = 40.0
PAIRS = tuple(itertools.product((8, 4, 3), (8, 4)))


@pytest.fixture(scope="module")
def content(float_model):
    """A table by hand, in which 4-bit weights are the slower ones and activations do not count."""
    operations = {}
    for number, cost in enumerate(layer_costs(float_model)):
        pairs = ((8, 8),) if cost.edge else PAIRS
        prices = {f"{a}/{w}": 10.0 * (number + 1) + (5 if w == 4 else 0) for a, w in pairs}
        (text,) = cost.operations
        operations[text] = {"macs": cost.macs, "prices": prices}
    return {
        "format": FORMAT,
        "origin": {"device": "local", "cpu": "a processor"},
        "operations": operations,
        "network": list(operations),
        "fixed_us": FIXED,
    }


@pytest.fixture
def load(tmp_path):
    """load(content) -> LatencyTable.load of a file that holds it."""

    def call(content, **options):
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return kmm.LatencyTable.load(path, **options)

    return call


def priced(table, model):
    return kmm.Latency(table, share=1.0).priced(model)


def changed(content, **fields):
    return json.loads(json.dumps(content)) | fields


def without(content, text, bits=None):
    """The content without an operation, or one of its times."""
    copy = changed(content)
    if bits is None:
        del copy["operations"][text]
    else:
        del copy["operations"][text]["prices"][bits]
    return copy


def test_operations_say_what_a_call_computes(float_model):
    found = {cost.name: cost.operations for cost in layer_costs(float_model)}
    assert found == {
        "conv1": ("Conv2D 8x8x1, kernel 3x3x1x4, strides 1x1, same",),
        "conv2": ("Conv2D 4x4x4, kernel 3x3x4x8, strides 1x1, same",),
        "conv3": ("Conv2D 2x2x8, kernel 3x3x8x16, strides 1x1, same",),
        "logits": ("Dense 16, kernel 16x4",),
    }


def test_a_layer_called_twice_costs_each_call(load):
    image = keras.Input((8, 8, 2))
    shared = keras.layers.Conv2D(2, 3, 2, "same", dilation_rate=1, name="shared")
    x = keras.layers.Flatten()(shared(shared(image)))
    model = keras.Model(image, keras.layers.Dense(3, name="logits")(x))
    first, second = layer_costs(model)[0].operations
    assert (first.split(",")[0], second.split(",")[0]) == ("Conv2D 8x8x2", "Conv2D 4x4x2")
    rows = {text: {"macs": 9, "prices": {"8/8": us}} for text, us in ((first, 7), (second, 2))}
    rows |= {"Dense 8, kernel 8x3": {"macs": 24, "prices": {"8/8": 1, "4/8": 1}}}
    table = load({"format": FORMAT, "origin": {}, "operations": rows, "network": [], "fixed_us": 0})
    assert table.prices(layer_costs(model)) == {
        "shared": {(8, 8): 9},
        "logits": {(8, 8): 1, (4, 8): 1},
    }


def test_prices_of_a_float_model_and_of_a_search(load, content, float_model):
    table = load(content)
    prices = table.prices(layer_costs(float_model))
    assert list(prices) == ["conv1", "conv2", "conv3", "logits"]
    assert prices["conv1"] == {(8, 8): 10.0}
    assert prices["conv2"] == {(a, w): 20.0 + 5 * (w == 4) for a, w in PAIRS}
    searched = priced(table, kmm.MetaMixModel.from_float(float_model)).prices
    assert searched == {
        "conv1": {(8, 8): 10.0},
        "conv2": {(8, 4): 25.0, (4, 4): 25.0, (3, 4): 25.0},
        "conv3": {(8, 4): 35.0, (4, 4): 35.0, (3, 4): 35.0},
        "logits": {(8, 8): 40.0},
    }


def test_a_whole_inference_is_the_sum_and_the_fixed_cost(load, content, float_model):
    table = load(content)
    bits = kmm.uniform_assignment(float_model, 4, 4)
    assert table.predict(layer_costs(float_model), bits) == FIXED + 10 + 25 + 35 + 40
    assert (
        table.predict(layer_costs(float_model), kmm.uniform_assignment(float_model, 8, 8))
        == FIXED + 100
    )
    with pytest.raises(TypeError, match="expected a BitAssignment"):
        table.predict(layer_costs(float_model), {"conv1": 8})


CONV2 = "Conv2D 4x4x4, kernel 3x3x4x8, strides 1x1, same"
CONV3 = "Conv2D 2x2x8, kernel 3x3x8x16, strides 1x1, same"


def test_what_is_missing_is_named(load, content, float_model):
    model = kmm.MetaMixModel.from_float(float_model)
    with pytest.raises(ValueError, match=r"Layer 'conv2': .* no 'Conv2D 4x4x4, kernel 3x3x4x8"):
        priced(load(without(content, CONV2)), model)
    with pytest.raises(ValueError, match=r"Layer 'conv3': .* no 3 activation and 4 weight bits of"):
        priced(load(without(content, CONV3, "3/4")), model)
    other = changed(content, network=content["network"][:-1])
    with pytest.raises(ValueError, match="MAC layers are not those of the profiled model"):
        priced(load(other), model)
    assert load(other).prices(layer_costs(model))  # the layers' are known all the same


def test_interpolation_is_by_weight_bits_and_then_by_macs(load, content, float_model):
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace((8, 5), (8, 5)))
    prices = priced(load(content, interpolate=True), model).prices
    # 5 weight bits lie nearest to 4, whatever the activation.
    assert prices["conv2"] == {(8, 8): 20.0, (8, 5): 25.0, (5, 8): 20.0, (5, 5): 25.0}
    # conv2 has 16 * 8 * 36 MACs, as conv3 has 4 * 16 * 72; conv1 half of them, 64 * 4 * 9.
    table = load(without(without(content, CONV2), CONV3), interpolate=True)
    assert priced(table, model).prices["conv3"][8, 8] == pytest.approx(10.0 * 4608 / 2304)
    nothing = changed(content, operations={})
    with pytest.raises(ValueError, match="Layer 'conv1': the latency table has no Conv2D layer"):
        priced(load(nothing, interpolate=True), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, r"expected a file of metamix-profile"),
        ({"fixed_us": None}, r"expected a finished table.*goes on"),
        ({"fixed_us": -1}, r"not a whole latency table.*at least 0"),
        ({"fixed_us": "1"}, r"not a whole latency table"),
        ({"operations": [1]}, r"not a whole latency table"),
        ({"operations": {"Dense 1": {"macs": 1, "prices": {"8": 1}}}}, "not a whole latency table"),
        ({"operations": {"Dense 1": {"macs": 1}}}, "not a whole latency table.*prices"),
        ({"network": None}, "not a whole latency table"),
    ],
)
def test_files_that_are_no_table_are_named(load, content, change, message):
    with pytest.raises(ValueError, match=rf"table\.json: .*{message}|table\.json: {message}"):
        load(changed(content, **change))


def test_text_is_no_table(load, tmp_path):
    with pytest.raises(ValueError, match=r"table\.json: expected JSON"):
        load("{")
    with pytest.raises(FileNotFoundError, match="absent"):
        kmm.LatencyTable.load(tmp_path / "absent.json")


# --- the search ------------------------------------------------------------------------------


def test_a_latency_takes_a_table_and_one_limit(load, content):
    table = load(content)
    for call, error, message in (
        (lambda: kmm.Latency("table.json", 90.0), TypeError, r"LatencyTable.load.*'table.json'"),
        (lambda: kmm.Latency(table), ValueError, "Latency: .* found neither"),
        (lambda: kmm.Latency(table, 9.0, share=0.5), ValueError, "Latency: .* found both"),
        (lambda: kmm.Latency(table, -9.0), ValueError, "Latency: .*above 0, found -9.0"),
        (
            lambda: kmm.MetaMixCallback(kmm.Latency(table, 90.0), target_bops=1e6),
            ValueError,
            r"found both: Latency\(90\) and 1000000.0",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def compiled(float_model):
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace((8, 4), (8, 4)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    return model


def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(16, 8, 8, 1)).astype("float32"), generator.integers(0, 4, 16)


def test_a_latency_that_cannot_be_met_is_refused(load, content, float_model):
    model, least = compiled(float_model), FIXED + 100
    callback = kmm.MetaMixCallback(kmm.Latency(load(content), least - 1), verbose=0)
    with pytest.raises(ValueError, match=rf"Latency\(139\): expected at least {least:g} us"):
        model.fit(*data(), epochs=1, callbacks=[callback], verbose=0)


def test_a_search_against_a_latency(load, content, float_model, capsys):
    """In this table 8-bit weights are the fast ones: BOPs would choose the others."""
    model = compiled(float_model)
    callback = kmm.MetaMixCallback(
        kmm.Latency(load(content), FIXED + 100.0), meta_epochs=1, search_epochs=1
    )
    model.fit(*data(), batch_size=8, epochs=3, callbacks=[callback], verbose=0)
    bits = model.bit_assignment
    assert (bits["conv2"].weight, bits["conv3"].weight) == (8, 8)
    assert "us " in capsys.readouterr().out
    history = model.history.history
    assert history["latency_us"][-1] == FIXED + 100.0
    assert history["bops"][-1] == kmm.bops(model, bits)


# --- the choice from a Bit-Mixer -------------------------------------------------------------


def test_a_choice_under_a_latency(load, content, float_model):
    mixer = kmm.BitMixerModel.from_float(float_model)  # 4, 3 and 2 bits, weights as activations
    mixer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kmm.calibrate(mixer, data()[0])
    mixer.stage = "layer_wise"
    fast = changed(content)
    for text in (CONV2, CONV3):
        fast["operations"][text]["prices"] |= {
            f"{a}/{w}": 10.0 * w for a, w in itertools.product((4, 3, 2), (4, 3, 2))
        }
    table = load(fast)
    least = FIXED + 10 + 40
    highest = kmm.choose_bits(mixer, data(), kmm.Latency(table, least + 80), verbose=0)
    assert highest.cost <= least + 80
    lowest = kmm.choose_bits(mixer, data(), kmm.Latency(table, least + 40), verbose=0)
    assert lowest.cost == least + 40 == table.predict(layer_costs(mixer), lowest.bits)
    assert [lowest.bits[n].activation for n in ("conv2", "conv3")] == [2, 2]
    with pytest.raises(ValueError, match=rf"expected at least {least + 40:.6g}"):
        kmm.choose_bits(mixer, data(), kmm.Latency(table, least + 39), verbose=0)
    budgets = [kmm.Latency(table, share=s) for s in (0, 0.5, 1)]
    costs = [point.cost for point in kmm.pareto_front(mixer, data(), budgets, verbose=0)]
    assert all(least + 40 <= cost <= least + 80 for cost in costs)
