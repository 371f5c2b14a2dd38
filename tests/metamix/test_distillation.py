"""The teacher's part of the loss against closed forms, and that the teacher stays outside."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from keras_metamix.distillation import Divergence, Taught
from keras_metamix.metamix.model import PHASES, MetaMixModel

WEIGHT = 0.3


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """KL of each image, in float64."""
    t, s = (log_softmax(np.asarray(a, np.float64), -1) for a in (teacher, student))
    return np.sum(np.exp(t) * (t - s), -1)


@pytest.fixture
def logits():
    generator = np.random.default_rng(3)
    return [generator.normal(size=(5, 4)).astype(np.float32) * 3 for _ in range(2)]


def test_divergence_is_kl(logits):
    expected = divergence(*logits)
    assert float(Divergence()(*logits)) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(Divergence()(logits[0], logits[0])) == pytest.approx(0, abs=1e-6)
    weights = np.array([1, 0, 2, 0, 0.5], np.float32)
    found = float(Divergence()(*logits, sample_weight=weights))
    assert found == pytest.approx((expected * weights).sum() / 5, rel=1e-5)


def test_its_gradient_is_the_difference_of_probabilities(logits):
    teacher, student = map(tf.constant, logits)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = Divergence()(teacher, student)
    expected = (softmax(logits[1], -1) - softmax(logits[0], -1)) / 5
    np.testing.assert_allclose(tape.gradient(value, student), expected, atol=1e-6)


def test_the_loss_is_the_weighted_sum(metamix, tiny_model, batch, loss):
    teacher = tiny_model(7)
    model = metamix(phase="weight_training", teacher=teacher, distillation=WEIGHT)
    x, y = batch
    student = np.asarray(model(x))
    taught = Taught(y, teacher(x))
    task, kl = float(loss(y, student)), divergence(teacher(x), student).mean()
    found = float(model.compute_loss(x, taught, student))
    assert found == pytest.approx((1 - WEIGHT) * task + WEIGHT * kl, rel=1e-5)
    # Evaluation has no teacher: its loss is comparable with that of any other model.
    assert float(model.compute_loss(x, y, student)) == pytest.approx(task, rel=1e-5)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_learns_from_the_teacher_alone_at_weight_1(phase, metamix, tiny_model, batch):
    """Then labels mean nothing: any others give the same variables."""
    x, y = batch
    results = []
    for labels in (y, (y + 1) % 4):
        model = metamix(phase=phase, teacher=tiny_model(7), distillation=1.0)
        model.train_step((x, labels))
        results.append([np.array(v) for v in model.network.variables])
    plain = metamix(phase=phase)
    plain.train_step((x, y))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(
        np.any(np.array(v) != a) for v, a in zip(plain.network.variables, results[0], strict=True)
    )


@pytest.mark.parametrize("phase", PHASES)
def test_a_teacher_equal_to_an_untaught_model_changes_the_loss_as_said(
    phase, metamix, tiny_model, batch
):
    """The reported loss is the weighted sum; the metrics are of labels."""
    teacher = tiny_model(7)
    values = {}
    for weight in (WEIGHT, 1.0):
        model = metamix(phase=phase, teacher=teacher, distillation=weight)
        logs = model.train_step(batch)
        values[weight] = float(logs["loss"])
        assert 0 <= float(logs["accuracy"]) <= 1
    untaught = float(metamix(phase=phase).train_step(batch)["loss"])
    expected = (1 - WEIGHT) * untaught + WEIGHT * values[1.0]
    assert values[WEIGHT] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_teacher_is_no_part_of_the_model(metamix, tiny_model, data, tmp_path):
    teacher = tiny_model(7)
    before = [np.array(v) for v in teacher.variables]
    model = metamix(phase="weight_training", teacher=teacher)
    plain = metamix(phase="weight_training")
    assert [v.path for v in model.variables] == [v.path for v in plain.variables]
    assert not any(layer is teacher for layer in model._flatten_layers())
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    for variable, value in zip(teacher.variables, before, strict=True):  # statistics included
        np.testing.assert_array_equal(variable, value)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded._teacher is None
    np.testing.assert_array_equal(loaded(data[0]), model(data[0]))
    loaded.fit(*data, batch_size=8, verbose=0)
    loaded.compile("sgd", model.loss, teacher=teacher)
    loaded.fit(*data, batch_size=8, verbose=0)


def test_a_quantized_network_can_teach(metamix, batch):
    teacher = metamix(phase="weight_training", seed=3)
    expected = np.asarray(teacher(batch[0]))
    model = metamix(phase="bit_meta", teacher=teacher)
    np.testing.assert_array_equal(model._teacher.teach(batch)[1].logits, expected)
    model.train_step(batch)


@pytest.mark.parametrize("weight", [0, -0.1, 1.1])
def test_weights_out_of_range_are_refused(weight, metamix, tiny_model):
    with pytest.raises(ValueError, match=r"distillation: expected a number in \(0, 1\], found"):
        metamix(teacher=tiny_model(), distillation=weight)


def test_a_teacher_that_does_not_fit_is_named(metamix):
    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(image)
    outputs = {
        r"'wide': expected .* of 'tiny_metamix', of shapes \(\(8, 8, 1\), \(4,\)\)": (
            "wide",
            5,
            "",
        ),
        r"expected logits from 'soft', found the softmax of 'end'": ("soft", 4, "softmax"),
    }
    for message, (name, classes, activation) in outputs.items():
        end = keras.layers.Dense(classes, activation=activation or None, name="end")(x)
        with pytest.raises(ValueError, match=message):
            metamix(teacher=keras.Model(image, end, name=name))
    two = keras.Model(image, [keras.layers.Dense(4)(x), keras.layers.Dense(4)(x)], name="two")
    with pytest.raises(ValueError, match=r"'two': .* found \(\(8, 8, 1\), \(4,\), \(4,\)\)"):
        metamix(teacher=two)


def test_a_student_that_ends_in_softmax_is_refused(tiny_model):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
            keras.layers.Softmax(),
        ]
    )
    model = MetaMixModel.from_float(network)
    with pytest.raises(ValueError, match="expected logits"):
        model.compile("sgd", "sparse_categorical_crossentropy", teacher=tiny_model())
