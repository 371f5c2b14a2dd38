"""Each diagnosis is provoked by the fault that it names, and measured beside NumPy."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
from keras_metamix.doctor.advice import of_sensitivity

SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).normal(size=(40, *SHAPE)).astype("f")


def float_network():
    keras.utils.set_random_seed(1)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="middle")(x)
    y = layers.Add(name="sum")([x, y])
    y = layers.DepthwiseConv2D(3, name="depthwise", activation="relu")(y)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(image, layers.Dense(5, name="logits")(y), name="net")


def quantized(activation_bits=8, weight_bits=8, model=None, rule="mse"):
    model = kmm.QuantizedModel.from_float(model or float_network(), activation_bits, weight_bits)
    kmm.calibrate(model, IMAGES, rule=rule)
    return model


@pytest.fixture(scope="module")
def healthy():
    """The diagnosis of a model of 8 bits, with the model."""
    model = quantized()
    return model, kmm.diagnose(model, IMAGES)


def symptoms(diagnosis, layer):
    return [found.symptom for found in diagnosis.findings if found.layer == layer]


def decibels(exact, found):
    exact, found = np.float64(exact), np.float64(found)
    return 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2))


def test_a_healthy_model_has_no_finding(healthy):
    model, found = healthy
    assert found.findings == ()
    assert "Nothing stands out" in str(found)
    assert found.images == 40
    assert {layer.name for layer in found.layers if layer.weights} == {
        layer.name for layer in model.mac_layers
    }
    sqnrs = [layer.output_sqnr for layer in found.layers]
    assert sqnrs == sorted(sqnrs) and min(sqnrs) > 30
    for layer in found.layers:
        assert 0.3 < layer.input.step_ratio < 3 or np.isnan(layer.input.step_ratio)


def test_numbers_are_those_of_numpy(healthy):
    """The first layer reads the images themselves: its error is computed here from their grid."""
    model, found = healthy
    stem, layer = model.network.get_layer("stem"), found.of("stem")
    step = float(stem.input_quantizer.step())
    rounded = np.rint(np.clip(IMAGES / step, -128, 127)) * step
    assert layer.input.sqnr == pytest.approx(decibels(IMAGES, rounded), abs=1e-3)
    assert layer.input.clipped == np.mean((IMAGES / step > 127.5) | (IMAGES / step < -128.5))
    kernel = np.asarray(stem.kernel)
    steps = np.asarray(stem.weight_quantizer.step())
    assert layer.weights.sqnr == pytest.approx(
        decibels(kernel, stem.integer_kernel() * steps), 1e-4
    )
    with kmm.quantizers_off():
        exact = np.asarray(model(IMAGES))
    assert found.output_sqnr == pytest.approx(decibels(exact, np.asarray(model(IMAGES))), abs=1e-3)


@pytest.mark.parametrize(
    ("layer", "factor"), [("stem", 1 / 50), ("depthwise", 50.0), ("logits", 50)]
)
def test_a_step_size_that_ran_away_is_named(layer, factor):
    """It alone: the layers behind it are judged on what they would read without it."""
    model = quantized()
    quantizer = model.network.get_layer(layer).input_quantizer
    quantizer.log_step.assign(quantizer.log_step + np.log(factor))
    found = kmm.diagnose(model, IMAGES)
    assert found.layers[0].name == layer, "the worst comes first"
    assert found.findings[0].layer == layer and found.findings[0].symptom == "step"
    assert factor / 2 < found.of(layer).input.step_ratio < factor * 2
    if factor < 1:
        assert found.of(layer).input.clipped > 0.2
        assert "are clipped" in found.findings[0].text
    assert [f for f in found.findings if f.symptom == "step"] == [found.findings[0]]


def test_the_remedy_of_a_step_size_works():
    """Of a tensor that two layers read, whose grid one of them shares: it is named once."""
    model = quantized()
    quantizer = model.network.get_layer("middle").input_quantizer.leader()
    quantizer.log_step.assign(quantizer.log_step + np.log(50))
    (finding,) = kmm.diagnose(model, IMAGES).findings
    text = finding.text
    assert finding.layer == quantizer.name
    assert "kmm.calibrate(model, images, rule='mse', overwrite=True)" in text
    kmm.calibrate(model, IMAGES, rule="mse", overwrite=True)
    assert kmm.diagnose(model, IMAGES).findings == ()


def test_step_sizes_of_weights_that_ran_away_are_named():
    model = quantized()
    quantizer = model.network.get_layer("middle").weight_quantizer
    quantizer.log_step.assign(quantizer.log_step + np.log(20))
    found = kmm.diagnose(model, IMAGES)
    assert symptoms(found, "middle") == ["step"] and "weights" in found.findings[0].text
    assert 10 < found.of("middle").weights.step_ratio < 40


def test_clipping_is_named():
    """A step of a third clips half of a uniform input's values."""
    model = quantized()
    quantizer = model.network.get_layer("stem").input_quantizer
    quantizer.log_step.assign(quantizer.log_step - np.log(3))
    found = kmm.diagnose(model, IMAGES)
    assert symptoms(found, "stem") == ["clipping"]
    assert found.of("stem").input.clipped > 0.05


def test_a_layer_of_two_bits_is_named():
    found = kmm.diagnose(quantized(2, 2), IMAGES)
    for name in ("middle", "depthwise"):
        assert "bits" in symptoms(found, name)
        layer = found.of(name)
        assert layer.weights.bits == 2 and layer.weights.more_bits == 4
        assert layer.weights.more_sqnr > layer.weights.best_sqnr + 6
    assert not symptoms(found, "stem")  # the first has 8
    worst = [layer.name for layer in found.layers[:2]]
    assert set(worst) == {"middle", "depthwise"}


def test_a_dead_channel_is_counted_and_named():
    model = float_network()
    middle = model.get_layer("middle")
    kernel, bias = middle.get_weights()
    kernel[..., 2], bias[2] = 0, -1  # behind the ReLU it is 0 everywhere
    middle.set_weights([kernel, bias])
    found = kmm.diagnose(quantized(model=model), IMAGES)
    assert (found.of("middle").dead, found.of("middle").dead_in_float) == (1, 1)
    (finding,) = found.findings
    assert (finding.layer, finding.symptom) == ("middle", "dead")
    assert "1 of its 8 output channels" in finding.text and "in float too" in finding.text


def test_a_channel_that_rounding_kills_is_told_from_one_that_was_dead():
    model = float_network()
    middle = model.get_layer("middle")
    kernel, bias = middle.get_weights()
    kernel[..., 2] *= 1e-4
    middle.set_weights([kernel, bias])
    found = kmm.diagnose(quantized(model=model), IMAGES)
    assert (found.of("middle").dead, found.of("middle").dead_in_float) == (1, 0)
    assert symptoms(found, "middle") == ["dead"] and "quantization alone" in found.findings[0].text


def test_bits_stand_beside_sensitivity():
    model = kmm.MetaMixModel.from_float(float_network(), kmm.SearchSpace((8, 2), (8, 2)))
    kmm.calibrate(model, IMAGES, rule="mse")
    names = [layer.name for layer in model.mac_layers]
    assert names == ["stem", "middle", "depthwise", "logits"]
    extra = {"stem": 0.5, "middle": 3.0, "depthwise": 0.1}
    bits = kmm.uniform_assignment(model, 8, 8)
    with pytest.raises(ValueError, match=r"sensitivity: expected names .* found \['nowhere'\]"):
        kmm.diagnose(_fixed(model, bits), IMAGES, sensitivity={"nowhere": 1.0})
    found = kmm.diagnose(_fixed(model, bits), IMAGES, sensitivity=extra)
    assert found.of("middle").sensitivity == 3.0 and np.isnan(found.of("logits").sensitivity)


def test_bits_that_do_not_fit_the_sensitivity_are_named():
    layers_ = {"a": (4.0, 9.0), "b": (64.0, 0.1), "c": (32.0, 3.0), "d": (8.0, 0.2)}
    found = {finding.layer: finding.text for finding in of_sensitivity(layers_)}
    assert set(found) == {"a", "b"}  # d is insensitive too, but has few bits as it is
    assert "number 1 by sensitivity (9)" in found["a"] and "give it more" in found["a"]
    assert "number 4 by sensitivity" in found["b"] and "with fewer" in found["b"]


def _fixed(model, bits):
    made = kmm.QuantizedModel(model.network, model.space)
    made.calibrated = True
    made.set_bits(bits)
    return made


def test_accuracies_say_whether_rounding_or_training_lost():
    model = float_network()
    logits = model.get_layer("logits")
    logits.bias.assign(-np.mean(model(IMAGES), axis=0))  # several classes, close to each other
    labels = np.asarray(model(IMAGES)).argmax(-1)  # the float model is right everywhere
    found = kmm.diagnose(quantized(model=model), (IMAGES, labels), model)
    assert found.accuracy["float"] == found.accuracy["quantizers off"] == 1.0
    poor = quantized(2, 2, model)
    found = kmm.diagnose(poor, (IMAGES, labels), model)
    assert found.accuracy["quantized"] == pytest.approx(found.agreement) and found.agreement < 0.95
    assert any("Rounding and clipping cost the accuracy" in note for note in found.notes)
    logits = poor.network.get_layer("logits")
    logits.kernel.assign(-logits.kernel)
    found = kmm.diagnose(poor, (IMAGES, keras.utils.to_categorical(labels, 5)), model)
    assert any("training moved the weights" in note for note in found.notes)


def test_statistics_of_batch_norm_that_lag_are_named_and_the_remedy_works():
    model = float_network()
    with_batches = keras.Model(model.input, [model.get_layer("stem").output, model.output])
    mean = np.asarray(with_batches(IMAGES)[0]).mean((0, 1, 2))
    variance = np.asarray(with_batches(IMAGES)[0]).var((0, 1, 2))
    norm = model.get_layer("stem_bn")
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    logits = model.get_layer("logits")
    logits.bias.assign(-np.mean(model(IMAGES), axis=0))  # several classes, close to each other
    labels = np.asarray(model(IMAGES)).argmax(-1)
    assert not any(
        "lag behind" in n for n in kmm.diagnose(quantized(model=model), (IMAGES, labels)).notes
    )
    norm.moving_mean.assign(mean + 2)
    lagging = quantized(model=model)
    found = kmm.diagnose(lagging, (IMAGES, labels))
    (note,) = (note for note in found.notes if "lag behind" in note)
    assert "kmm.reestimate_batch_norm(model, images)" in note
    assert set(found.accuracy) == {"quantized", "quantizers off"}
    kmm.reestimate_batch_norm(lagging, IMAGES)
    found = kmm.diagnose(lagging, (IMAGES, labels))
    assert not any("lag behind" in note for note in found.notes)
    assert found.accuracy["quantizers off"] > 0.8


def test_nothing_in_the_model_changes(healthy):
    model, _ = healthy
    before = [np.array(v) for v in model.variables]
    kmm.diagnose(model, (IMAGES[:3], np.zeros(3, int)), images=2)  # labels: in training mode too
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_lsq_s_start_is_no_step_size_that_ran_away(bits):
    """Of 8-bit weights it is many times the best one; what is far beyond it is named still."""
    model = quantized(bits, bits, rule="lsq")
    found = kmm.diagnose(model, IMAGES)
    assert found.of("stem").weights.step_ratio > 6 and found.of("stem").weights.gain > 12
    assert found.of("stem").weights.start_ratio == pytest.approx(1)
    assert "step" not in {finding.symptom for finding in found.findings}
    quantizer = model.network.get_layer("stem").weight_quantizer
    quantizer.log_step.assign(quantizer.log_step + np.log(5))
    assert symptoms(kmm.diagnose(model, IMAGES), "stem") == ["step"]


def test_lsq_s_start_of_activations_that_are_searched_is_known():
    model = kmm.MetaMixModel.from_float(float_network(), kmm.SearchSpace((8, 4), 8))
    kmm.calibrate(model, IMAGES)
    model.set_bits(kmm.uniform_assignment(model, 8, 8))
    found = kmm.diagnose(model, IMAGES)
    error = found.of("depthwise").input  # batch norm's statistics are others than in calibration
    assert error.step_ratio > 3 > error.start_ratio > 1 / 3
    assert "step" not in symptoms(found, "depthwise")


@pytest.mark.parametrize("kind", ["pair", "batches"])
def test_data_of_any_kind_give_the_same(healthy, kind):
    tf = pytest.importorskip("tensorflow")
    model, whole = healthy
    given = {
        "pair": (IMAGES, np.zeros(40, int)),
        "batches": tf.data.Dataset.from_tensor_slices(IMAGES).batch(16),
    }
    found = kmm.diagnose(model, given[kind])
    assert [layer.name for layer in found.layers] == [layer.name for layer in whole.layers]
    assert found.output_sqnr == pytest.approx(whole.output_sqnr)


def test_what_cannot_be_measured_is_refused(healthy):
    model, _ = healthy
    with pytest.raises(TypeError, match="diagnose: expected a QuantizedModel"):
        kmm.diagnose(float_network(), IMAGES)
    with pytest.raises(ValueError, match="no step sizes yet"):
        kmm.diagnose(kmm.QuantizedModel.from_float(float_network()), IMAGES)
    with pytest.raises(ValueError, match="expected the shape of the model's input"):
        kmm.diagnose(model, IMAGES[..., :1])
    with pytest.raises(ValueError, match="at least one image"):
        kmm.diagnose(model, IMAGES[:0])
    with pytest.raises(ValueError, match="NaN or Inf"):
        kmm.diagnose(model, np.full_like(IMAGES, np.nan))
    with pytest.raises(TypeError, match="data: expected images"):
        kmm.diagnose(model, "images.npz")
    with pytest.raises(TypeError, match="float_model: expected a Keras model"):
        kmm.diagnose(model, IMAGES, "float.keras")
    other = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(4, 3, name="stem"), layers.Flatten(), layers.Dense(5)]
    )
    with pytest.raises(ValueError, match="'stem' of 216 weights, found one of 108 weights"):
        kmm.diagnose(model, IMAGES, other)


def test_the_page_holds_what_the_object_holds(healthy, tmp_path):
    model = quantized(2, 2)
    found = kmm.diagnose(model, IMAGES)
    page = found.write_html(tmp_path / "page.html").read_text()
    for layer in found.layers:
        assert f">{layer.name}</td>" in page
    assert page.count("<tr>") == 2 + len(found.layers) + len(found.findings)
    assert "src=" not in page and "<script" not in page and "http" not in page


def test_a_model_that_was_never_trained_is_reported():
    """Neither its batch norms nor, with LSQ's rule, its step sizes; the remedy takes both away."""
    model = float_network()
    found = kmm.diagnose(quantized(model=model, rule="lsq"), IMAGES)
    assert any("initial statistics" in note for note in found.notes)
    assert any("rule='mse'" in note for note in found.notes)
    norm = model.get_layer("stem_bn")
    norm.moving_mean.assign(norm.moving_mean + 0.1)
    found = kmm.diagnose(quantized(model=model), IMAGES)
    assert len(found.notes) == 1 and found.findings == ()


def test_an_output_of_one_value_has_no_largest():
    image = keras.Input(SHAPE)
    x = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(image))
    found = kmm.diagnose(quantized(model=keras.Model(image, layers.Dense(1)(x))), IMAGES[:8])
    assert np.isnan(found.agreement) and "agree" not in str(found)


def test_the_text_names_the_worst_and_counts_the_others():
    found = kmm.diagnose(quantized(2, 2), IMAGES)
    longer = dataclasses.replace(found, findings=found.findings[:1] * 13)
    assert "\n10. " in str(longer) and "\n11. " not in str(longer)
    assert "And 3 more" in str(longer)
