"""Whole networks that people have: no output differs, one XNNPACK partition, nothing in float."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo

SIZE = 64
NETWORKS = {
    "mobilenet_v2": lambda: zoo.mobilenet_v2((SIZE, SIZE, 3), 20, width=0.35),
    "mobilenet_v3_large": lambda: zoo.mobilenet_v3_large((SIZE, SIZE, 3), 20, width=0.5),
    "resnet18": lambda: zoo.resnet18((SIZE, SIZE, 3), 20, width=0.25),
    "MobileNetV3Small": lambda: application("MobileNetV3Small"),
}
# The layer up to which a deep network has every kind of its blocks: the rest repeats them.
DEEP = {
    "EfficientNetB0": "block3b_add",
    "DenseNet121": "pool2_pool",
    "ResNet50V2": "conv3_block1_out",
}
NETWORKS |= {f"begin of {name}": lambda name=name: begin(name) for name in DEEP}
WHOLE = {name: lambda name=name: application(name) for name in DEEP}


def application(name):
    constructor = getattr(keras.applications, name)
    return constructor(weights=None, classes=20, input_shape=(SIZE, SIZE, 3))


def begin(name):
    whole = application(name)
    x = keras.layers.GlobalAveragePooling2D(name="features")(whole.get_layer(DEEP[name]).output)
    return keras.Model(whole.input, keras.layers.Dense(20, name="logits")(x), name=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.long) for name in WHOLE)]
)
def test_networks_are_exact_at_random_bits(name, quantized):
    keras.utils.set_random_seed(1)
    # The search for the weights' steps takes minutes on millions of weights, and adds nothing here.
    model, images = quantized((NETWORKS | WHOLE)[name](), seed=1, images=8, rule="lsq")
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    graph = mt.verify(flat, model.bit_assignment)  # refuses any float op between input and output
    report = mt.parity(flat, model, images)
    assert (report.differing, report.max_lsb, report.delegated) == (0, 0, True)
    assert {o.op for o in graph.operators} >= {"QUANTIZE", "DEQUANTIZE"}
    levels = np.asarray(folded(images))
    assert len(np.unique(levels)) > 10  # a network that computes something
