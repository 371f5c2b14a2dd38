"""keras.applications, as a user has them: untrained here, since weights need a network."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.layers.mode import FLOAT, quantization_mode

# Family -> smallest image that it takes, and arguments of its own.
FAMILIES = {
    "MobileNet": (32, {}),
    "MobileNetV2": (32, {"alpha": 0.35}),
    "MobileNetV3Small": (32, {}),
    "MobileNetV3Large": (32, {"minimalistic": True}),
    "EfficientNetB0": (32, {}),
    "EfficientNetV2B0": (32, {}),
    "ResNet50": (32, {}),
    "ResNet50V2": (32, {}),
    "DenseNet121": (32, {}),
    "NASNetMobile": (32, {}),
    "Xception": (71, {}),
    "InceptionV3": (75, {}),
    "ConvNeXtTiny": (32, {}),
}
# What is left in float, so that a family is not exported; `explain` names the layers.
NOT_EXPORTED = {
    "ConvNeXtTiny": {"LayerNormalization"},
}


# The first takes a minute; of the others' kinds of blocks the rest has all.
LONG = {"NASNetMobile", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "DenseNet121"}
LONG |= {"Xception"}


@pytest.fixture
def family():
    """family(name) -> (float model, images)."""

    def build(name):
        size, arguments = FAMILIES[name]
        keras.utils.set_random_seed(0)
        constructor = getattr(keras.applications, name)
        model = constructor(weights=None, classes=10, input_shape=(size, size, 3), **arguments)
        return model, np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in FAMILIES],
)
def test_quantizers_off_change_nothing_and_explain_says_what_cannot_be_exported(name, family):
    source, images = family(name)
    explanation = kmm.explain(source)
    classes = {row.layer_class for row in explanation.rows if row.outcome == "refused"}
    assert classes == NOT_EXPORTED.get(name, set())
    assert sum(row.bops_share for row in explanation.rows) == pytest.approx(1)
    model = kmm.MetaMixModel.from_float(source, float_layers=explanation.refused)
    with quantization_mode(FLOAT):
        found = np.asarray(model.network(images, training=False))
    np.testing.assert_array_equal(found, np.asarray(source(images, training=False)))
    assert not any(isinstance(layer, keras.Model) for layer in model.network.layers)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_phase_takes_a_step_and_a_loaded_model_computes_the_same(name, family, tmp_path):
    source, images = family(name)
    model = kmm.MetaMixModel.from_float(source, float_layers=kmm.explain(source).refused)
    # Without graphs: building one takes longer than a step, and other tests build them.
    # Clipped: two images and no training make gradients of any size.
    optimizer = keras.optimizers.SGD(1e-3, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    kmm.calibrate(model, images)
    model.set_objective(kmm.bops(model, kmm.uniform_assignment(model, 4, 4)))
    for phase in ("bit_meta", "bit_search", "weight_training"):
        model.phase = phase
        before = [np.asarray(v) for v in model.network.trainable_variables]
        history = model.fit(images, np.array([1, 2]), batch_size=2, verbose=0)
        assert np.isfinite(history.history["loss"][0])
        after = [np.asarray(v) for v in model.network.trainable_variables]
        assert any(np.any(a != b) for a, b in zip(after, before, strict=True))

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        np.asarray(loaded(images, training=False)), np.asarray(model(images, training=False))
    )
