"""What is said of a float model before training is what then becomes of it."""

import keras
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo import small_cnn

SHAPE = (8, 8, 3)


def two_refused():
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(4, 3, name="stem")(image)
    x = layers.GroupNormalization(2, name="group")(x)
    x = layers.Conv2D(4, 3, activation="softplus", name="soft")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x), name="odd")


def test_costs_are_those_of_the_files():
    model = small_cnn((12, 12, 1), 4, 4)
    found = kmm.checkup(model)
    assert found.whole and found.refused == {}
    assert [(c.activation_bits, c.weight_bits) for c in found.costs][:3] == [(8, 8), (8, 4), (4, 4)]
    images = keras.random.normal((4, 12, 12, 1), seed=0)
    for cost in found.costs[1:3]:
        bits = kmm.uniform_assignment(model, cost.activation_bits, cost.weight_bits)
        assert cost.bops == kmm.bops(model, bits)
        quantized = kmm.QuantizedModel.from_float(model, cost.activation_bits, cost.weight_bits)
        kmm.calibrate(quantized, images)
        assert cost.file_bytes == pytest.approx(len(mt.convert(quantized)), abs=120, rel=0.02)
    assert "can be quantized whole" in str(found)


def test_all_refusals_are_reported_at_once_with_remedies(tmp_path):
    found = kmm.checkup(two_refused())
    assert not found.whole and set(found.refused) == {"group", "soft_activation"}
    assert found.costs == ()
    with pytest.raises(ValueError, match="group") as raised:
        kmm.QuantizedModel.from_float(two_refused())
    for said in found.refused.values():
        assert said in str(found)
        assert said.split(": ", 1)[1][:40] in str(raised.value)
    page = found.write_html(tmp_path / "page.html").read_text()
    assert "2 layers keep the model from being exported" in page and ">group</td>" in page


def test_a_model_that_cannot_be_read_is_reported_all_the_same():
    image = keras.Input((None, None, 3), name="image")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    found = kmm.checkup(keras.Model(image, layers.Dense(3)(x)))
    assert not found.whole and "keras.Input((224, 224, 3))" in found.refused["image"]
    assert "Refused, 1 in all" in str(found)


def test_advice_is_measured():
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.BatchNormalization(name="alone")(layers.Add(name="sum")([x, layers.ReLU()(x)]))
    x = layers.Activation("gelu", name="gelu")(x)
    x = layers.Conv2D(8, 3, name="large")(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten()(x)))
    told = {line.partition(":")[0]: line for line in kmm.checkup(model).advice}
    assert {"alone", "gelu", "stem"} <= set(told)
    assert "XNNPACK" in told["gelu"] and "of its own" in told["alone"]
    macs = {cost.name: cost.macs for cost in kmm.layer_costs(model)}
    assert f"{macs['stem'] / sum(macs.values()):.1%}"[:-1] in told["stem"]
    assert "logits" not in told


def test_a_layer_left_in_float_keeps_the_model_from_being_whole():
    found = kmm.checkup(two_refused(), float_layers=["group", "soft"])
    assert not found.whole and found.refused["group"] == "left in float, as asked"
    with pytest.raises(ValueError, match="nowhere"):
        kmm.checkup(two_refused(), float_layers=["nowhere"])
