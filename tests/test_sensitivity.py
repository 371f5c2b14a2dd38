"""How much each layer alone at fewer bits costs, and the bits that are chosen by it."""

import numpy as np
import pytest

import keras_metamix as kmm

SPACE = kmm.SearchSpace((8, 4, 2), (8, 2))


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return generator.random((24, 8, 8, 3), dtype="float32"), generator.integers(0, 4, 24)


def network(images, method="metamix"):
    import keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name="first", activation="relu")(inputs)
    x = keras.layers.Conv2D(8, 3, name="middle", activation="relu")(x)
    x = keras.layers.Conv2D(8, 3, name="late", activation="relu")(x)
    x = keras.layers.Dense(4, name="last")(keras.layers.Flatten()(x))
    kind, space = {
        "metamix": (kmm.MetaMixModel, SPACE),
        "bitmixer": (kmm.BitMixerModel, kmm.SearchSpace((8, 4, 2), "same")),
    }[method]
    model = kind.from_float(keras.Model(inputs, x), space)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True
    )
    kmm.calibrate(model, images[0])
    return model


@pytest.mark.parametrize("method", ["metamix", "bitmixer"])
def test_a_score_is_the_fall_of_the_loss_with_one_layer_changed(images, method):
    model = network(images, method)
    before, phase = model.bit_assignment, getattr(model, "phase", None)
    scores = kmm.sensitivity(model, images, verbose=0)
    assert model.bit_assignment == before and getattr(model, "phase", None) == phase
    assert list(scores) == ["first", "middle", "late", "last"]
    highest = kmm.uniform_assignment(model, 8, 8)

    def loss(bits):
        model.assign_bits(bits)
        return float(model.evaluate(*images, verbose=0, return_dict=True)["loss"])

    top = loss(highest)
    changed = kmm.BitAssignment(
        dict(highest.activation_bits) | {"middle": 2}, dict(highest.weight_bits) | {"middle": 2}
    )
    assert scores["middle"][2, 2] == pytest.approx(top - loss(changed), rel=1e-6)
    assert scores["middle"][2, 2] != 0
    assert scores["middle"][8, 8] == scores["first"][8, 8] == scores["last"][8, 8] == 0


def test_the_knapsack_of_sensitivities_is_the_best_sum_within_the_budget(images):
    model = network(images)
    scores = kmm.sensitivity(model, images, verbose=0)
    budget = kmm.Bops(share=0.4)
    chosen = kmm.select_bits(model, budget, scores)
    priced = budget.priced(model)

    def score(bits):
        return sum(scores[n][bits[n].activation, bits[n].weight] for n in scores)

    assert 0.97 * priced.limit <= priced.total(chosen) <= priced.limit
    every = [
        kmm.BitAssignment(
            dict(chosen.activation_bits) | {"middle": a, "late": c},
            dict(chosen.weight_bits) | {"middle": b, "late": d},
        )
        for a, b in scores["middle"]
        for c, d in scores["late"]
    ]
    assert chosen in every
    within = [bits for bits in every if 0.97 <= priced.total(bits) / priced.limit <= 1]
    assert score(chosen) == max(map(score, within))
    assert kmm.select_bits(model, [budget, kmm.Bops(share=1.0)], scores)[0] == chosen


def test_scores_of_another_network_are_refused(images):
    model = network(images)
    scores = dict(kmm.sensitivity(model, images, verbose=0))
    with pytest.raises(ValueError, match="scores: expected one for each of .* layer 'late'"):
        kmm.select_bits(model, kmm.Bops(share=0.5), {n: scores[n] for n in scores if n != "late"})
    scores["extra"] = {(8, 8): 0.0}
    with pytest.raises(ValueError, match="layer 'extra'"):
        kmm.select_bits(model, kmm.Bops(share=0.5), scores)
    with pytest.raises(ValueError, match="give scores"):
        kmm.select_bits(model, kmm.Bops(share=0.5))
    with pytest.raises(TypeError, match="sensitivity: expected a QuantizedModel"):
        kmm.sensitivity(object(), images)


def test_weights_in_float_are_refused_where_their_bits_are_candidates(images):
    model = network(images)
    floats = kmm.MetaMixModel(model.network, model.space, meta_weights="float")
    floats.compile("sgd", model.loss)
    kmm.calibrate(floats, images[0])
    with pytest.raises(ValueError, match="has its weights in float in this phase"):
        kmm.sensitivity(floats, images, verbose=0)
    floats.set_bits(kmm.uniform_assignment(model, 8, 8))
    assert kmm.sensitivity(floats, images, verbose=0)["middle"][8, 2] != 0


@pytest.mark.parametrize("given", ["images", "tuple of images"])
def test_images_without_labels_are_refused(given, images):
    model = network(images)
    data = images[0] if given == "images" else images[:1]
    with pytest.raises(TypeError, match=r"expected \(images, labels\), or batches of both"):
        kmm.sensitivity(model, data)
