"""Data of every kind that `fit` takes, and step sizes from several batches."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix.batches import Replay, first_batches, image_batches, informative, merged
from keras_metamix.layers.parts import activation_quantizers

SIGNATURE = (tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,), tf.int32))


class Parts(keras.utils.PyDataset):
    """Images and labels in batches."""

    def __init__(self, x, y, size=8):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


class Loader:
    """What PyTorch's DataLoader looks like: lists, read from the start by each `iter`."""

    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return iter([list(self.parts[i]) for i in range(len(self.parts))])


def endless(parts):
    while True:
        yield from (parts[index] for index in range(len(parts)))


def of_unknown_length(parts):
    def once():
        yield from (parts[index] for index in range(len(parts)))

    return tf.data.Dataset.from_generator(once, output_signature=SIGNATURE)


def dataset(parts):
    return tf.data.Dataset.from_tensor_slices((parts.x, parts.y)).batch(parts.size)


# Name -> the `x` of a fit on Parts, and what else it needs.
KINDS = {
    "arrays": (lambda p: p.x, lambda p: {"y": p.y, "batch_size": p.size}),
    "weighted": (
        lambda p: p.x,
        lambda p: {"y": p.y, "batch_size": p.size, "sample_weight": np.ones(len(p.y))},
    ),
    "split": (
        lambda p: np.concatenate([p.x, p.x]),
        lambda p: {"y": np.tile(p.y, 2), "batch_size": p.size, "validation_split": 0.5},
    ),
    "PyDataset": (lambda p: p, lambda _: {}),
    "dataset": (dataset, lambda _: {}),
    "of unknown length": (of_unknown_length, lambda _: {}),
    "endless": (lambda p: dataset(p).repeat(), lambda p: {"steps_per_epoch": len(p)}),
    "generator": (endless, lambda p: {"steps_per_epoch": len(p)}),
}


@pytest.fixture(scope="module")
def make(tiny_model, loss):
    source = tiny_model()

    def build(kind=kmm.MetaMixModel, of=source, space=None, **compile):
        keras.utils.set_random_seed(0)
        model = kind.from_float(of, *([space] if space else []))
        model.compile(keras.optimizers.SGD(0.05), loss, **({"run_eagerly": True} | compile))
        return model

    return build


@pytest.fixture
def search():
    def build(**arguments):
        arguments = {"statistics_batches": 4, "verbose": 0} | arguments
        return kmm.MetaMixCallback(kmm.Bops(share=0.5), **arguments)

    return build


@pytest.fixture(scope="module")
def parts(data):
    """32 images, four batches."""
    x, y = data
    return Parts(np.concatenate([x, 1.5 * x[:8]]), np.concatenate([y, y[:8]]))


@pytest.fixture(scope="module")
def searched_on_arrays(make, parts):
    """The weights after a search on arrays."""
    model = make()
    ours = kmm.MetaMixCallback(kmm.Bops(share=0.5), statistics_batches=4, verbose=0)
    model.fit(parts.x, parts.y, parts.size, epochs=3, verbose=0, callbacks=[ours], shuffle=False)
    return [np.asarray(v) for v in model.network.variables]


def log_steps(model):
    quantizers = activation_quantizers(model.network)
    # One that follows a stream has its step.
    return {q.name: np.asarray(q.log_step) for q in quantizers if hasattr(q, "log_step")}


def assert_close(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, log_step in expected.items():
        np.testing.assert_allclose(found[name], log_step, atol=tolerance, err_msg=name)


# --- fit ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_trains_alike(kind, make, search, parts, searched_on_arrays):
    read, arguments = KINDS[kind]
    model, ours = make(), search()
    model.fit(read(parts), epochs=3, verbose=0, callbacks=[ours], shuffle=False, **arguments(parts))
    assert ours.phases == ["bit_meta", "bit_search", "weight_training"]
    for found, expected in zip(model.network.variables, searched_on_arrays, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=found.path)


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_a_search_without_meta_epochs_counts_its_steps(make, search, parts):
    model = make()
    model.fit(
        of_unknown_length(parts),
        epochs=1,
        verbose=0,
        callbacks=[search(meta_epochs=0)],
        shuffle=False,
    )
    assert float(model.search_optimizer.learning_rate) == pytest.approx(1 / len(parts))
    generator = (parts[index] for index in range(len(parts)))
    with pytest.raises(ValueError, match=r"number of steps.*pass fit\(steps_per_epoch"):
        make().fit(generator, verbose=0, callbacks=[search(meta_epochs=0)], shuffle=False)


@pytest.mark.parametrize(
    "compiled",
    [{"steps_per_execution": 2}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
    ids=["steps_per_execution", "jit_compile"],
)
def test_compiled_otherwise_the_search_is_the_same(
    compiled, make, search, parts, searched_on_arrays
):
    model, ours = make(**({"run_eagerly": False} | compiled)), search()
    model.fit(parts.x, parts.y, parts.size, epochs=3, verbose=0, callbacks=[ours], shuffle=False)
    for found, expected in zip(model.network.variables, searched_on_arrays, strict=True):
        if not found.path.endswith("log_step"):
            np.testing.assert_allclose(found, expected, atol=0.05, err_msg=found.path)


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.parametrize("read", [of_unknown_length, endless])
def test_the_share_of_a_mixer_grows_whatever_the_data(read, make, parts):
    class Shares(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            shares.append(float(self.model.layer_wise_share))

    shares = []
    model = make(kmm.BitMixerModel)
    ours = kmm.BitMixerCallback((1, 0, 1), statistics_batches=0, verbose=0)
    steps = {"steps_per_epoch": len(parts)} if read is endless else {}
    model.fit(read(parts), epochs=2, verbose=0, callbacks=[ours, Shares()], shuffle=False, **steps)
    np.testing.assert_allclose(shares[len(parts) :], [0.25, 0.5, 0.75, 1], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_a_generator_is_trained_on_in_its_order(make, parts):
    """Keras' adapter takes each batch once, and so do we."""

    class Seen(kmm.QuantizedModel):
        def train_step(self, data):
            seen.append(np.asarray(data[0]))
            return super().train_step(data)

    seen = []
    model = make(Seen)
    model.fit((parts[index] for index in range(len(parts))), verbose=0, shuffle=False)
    np.testing.assert_array_equal(np.concatenate(seen), parts.x)


def test_one_image_at_a_time(make, search, parts):
    model, ours = make(), search()
    model.fit(parts.x[:4], parts.y[:4], 1, epochs=3, verbose=0, callbacks=[ours])
    assert model.phase == "weight_training"
    other = make()  # steps as from all of the images at once
    other.fit(parts.x[:12], parts.y[:12], 12, verbose=0, epochs=0)
    third = make()
    third.fit(parts.x[:12], parts.y[:12], 1, verbose=0, epochs=0)
    assert_close(log_steps(third), log_steps(other))


# --- batches --------------------------------------------------------------------------------------


def test_what_was_looked_at_is_not_lost():
    replay = Replay(iter(range(6)))
    assert list(replay.peek(2)) == [0, 1]
    assert list(replay.peek(3)) == [0, 1, 2]
    given = replay.generator()
    assert [next(given) for _ in range(4)] == [0, 1, 2, 3]
    assert list(replay.peek(9)) == [4, 5, 0, 1, 2, 3]  # the last ones again where none are left
    assert list(given) == [4, 5]
    assert list(replay.peek(2)) == [4, 5]


@pytest.mark.parametrize(
    "read", [lambda p: p, dataset, Loader, of_unknown_length, lambda p: Replay(endless(p))]
)
def test_images_of_the_first_batches(read, parts):
    found = [np.asarray(batch) for batch in image_batches(read(parts), 2)]
    np.testing.assert_array_equal(found, [parts.x[:8], parts.x[8:16]])


@pytest.mark.parametrize("bad", [None, "text", iter([1]), [1, 2], {"a": [1]}])
def test_what_cannot_be_read_twice_is_refused(bad):
    with pytest.raises(TypeError, match="arrays or batches that can be read twice.* found "):
        list(first_batches(bad, 1))


def test_small_batches_are_joined_and_blank_ones_left_out():
    ones, mixed = np.ones((2, 3, 3, 2), "f"), np.arange(36, dtype="f").reshape(2, 3, 3, 2)
    two_colours = ones * [1.0, 5.0]
    assert [len(b) for b in merged([mixed] * 5, 4)] == [4, 4, 2]
    assert next(merged([mixed], 9)) is mixed
    assert list(map(id, informative([ones, two_colours, mixed, ones]))) == [id(mixed)]
    assert list(map(id, informative([ones, two_colours]))) == [id(ones)]


# --- step sizes -----------------------------------------------------------------------------------


def test_a_black_first_batch_sets_no_step(make, parts):
    black = Parts(np.concatenate([np.zeros_like(parts.x[:8]), parts.x]), np.tile(parts.y, 2)[:40])
    for read, arguments in (KINDS["arrays"], KINDS["generator"]):
        found, expected = make(kmm.QuantizedModel), make(kmm.QuantizedModel)
        found.fit(read(black), epochs=0, verbose=0, **arguments(black))
        kmm.calibrate(expected, parts.x)
        assert_close(log_steps(found), log_steps(expected))


def test_a_branch_that_the_first_images_leave_dead_is_seen_later(make):
    """The second input is 0 at first: its step is not the one of a quantizer that saw nothing."""
    inputs = [keras.Input((4,), name="a"), keras.Input((4,), name="b")]
    outputs = [keras.layers.Dense(2, name=f"of_{i.name}")(i) for i in inputs]
    source = keras.Model(inputs, keras.layers.Add()(outputs))
    model = make(kmm.QuantizedModel, source)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(96, 4)).astype("f") for _ in inputs]
    x[1][:64] = 0
    model.fit(x, np.zeros(96), batch_size=32, epochs=0, verbose=0)
    late, early = (make(kmm.QuantizedModel, source) for _ in range(2))
    kmm.calibrate(late, [a[64:] for a in x])
    kmm.calibrate(early, [a[:32] for a in x])
    found, expected = (
        log_steps(model),
        log_steps(early) | {"of_b_input": log_steps(late)["of_b_input"]},
    )
    for name in ("of_a_input", "of_b_input"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    "several",
    [
        lambda p: [p[0][0], p[1][0], p[2][0], p[3][0]],
        lambda p: [p[0], p[1], p[2], p[3]],
        lambda p: p,
        dataset,
        of_unknown_length,
        Loader,
        lambda p: (p[index] for index in range(4)),
    ],
)
def test_calibrate_takes_several_batches(several, make, parts):
    """32 images: they are joined into one batch, so that the steps are exactly its own."""
    model, expected = make(kmm.QuantizedModel), make(kmm.QuantizedModel)
    kmm.calibrate(model, several(parts))
    kmm.calibrate(expected, parts.x)
    assert_close(log_steps(model), log_steps(expected))


def test_several_passes_are_put_together(make, parts):
    """Means are those of all images; the first layer's input knows no batch norm."""
    x = np.concatenate([parts.x, 3 * parts.x, -parts.x])  # 96: three passes
    space = kmm.SearchSpace((4, 2), 4, edge_bits=8)
    model, whole = make(space=space), make(space=space)
    kmm.calibrate(model, x, batch_size=40)
    kmm.calibrate(whole, x)
    name = model.mac_layers[0].input_quantizer.name
    np.testing.assert_array_equal(log_steps(model)[name], log_steps(whole)[name])
    assert model.mac_layers[0].input_quantizer.sign == "signed"
    assert_close(log_steps(model), log_steps(whole), tolerance=0.2)


# --- what statistics are taken from ---------------------------------------------------------------

# What gives the 32 images in batches of 8 again: the same statistics and steps.
STATISTICS = {
    "images and labels": lambda p: (p.x, p.y),
    "images, labels and weights": lambda p: (p.x, p.y, np.ones(len(p.y))),
    "generator": endless,
    "generator that ends": lambda p: (batch for batch in [(p.x, p.y)]),
    "iterator": lambda p: iter([(p.x, p.y)]),
    "iterator of a data set": lambda p: iter(dataset(p)),
    "PyDataset": lambda p: p,
    "dataset": dataset,
}


def callback_of(kind, **arguments):
    if kind is kmm.MetaMixModel:
        return kmm.MetaMixCallback(kmm.Bops(share=0.5), verbose=0, **arguments)
    return kmm.BitMixerCallback((1, 1, 1), verbose=0, **arguments)


@pytest.fixture(scope="module")
def on_the_training_data(make, parts):
    """on_the_training_data(kind) -> the weights after a fit whose statistics are of its images."""

    def train(kind):
        model = make(kind)
        ours = callback_of(kind)
        model.fit(parts.x, parts.y, epochs=3, verbose=0, callbacks=[ours], shuffle=False)
        return [np.asarray(v) for v in model.network.variables]

    return functools.cache(train)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kmm.MetaMixModel, "images and labels"),
        (kmm.MetaMixModel, "iterator"),
        (kmm.BitMixerModel, "generator that ends"),
    ],
)
def test_statistics_are_those_of_the_images_given(kind, name, make, parts, on_the_training_data):
    model, ours = make(kind), callback_of(kind, statistics_data=STATISTICS[name](parts))
    model.fit(parts.x, parts.y, epochs=3, verbose=0, callbacks=[ours], shuffle=False)
    for found, expected in zip(model.network.variables, on_the_training_data(kind), strict=True):
        np.testing.assert_array_equal(np.asarray(found), expected, err_msg=found.path)


@pytest.mark.parametrize("name", STATISTICS)
def test_weight_training_is_prepared_on_data_of_every_kind(name, make, parts):
    def prepared(data, batches):
        model = make()
        kmm.calibrate(model, parts.x)
        model.set_bits(kmm.uniform_assignment(model, 4, 4))
        kmm.prepare_weight_training(model, data, batches, batch_size=8)
        return model

    whole = name in ("generator that ends", "iterator")
    model = prepared(STATISTICS[name](parts), 1 if whole else 4)
    expected = prepared(dataset(parts).unbatch().batch(32) if whole else parts.x, 1 if whole else 4)
    for found, other in zip(model.network.variables, expected.network.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(other), err_msg=found.path)


BAD_STATISTICS = {
    "of another size": (lambda p: p.x[:, :5], ValueError, r"expected the shape of the model's"),
    "pair of another size": (lambda p: (p.x[:, :5], p.y), ValueError, r"expected the shape of the"),
    "generator of another size": (lambda p: (b[:, :5] for b in [p.x]), ValueError, "the shape of"),
    "labels alone": (lambda p: p.y, ValueError, r"expected the shape of the model's input"),
    "NaN": (lambda p: p.x * np.nan, ValueError, "images hold 2048 NaN or Inf"),
    "no image": (lambda p: p.x[:0], ValueError, "at least one batch, found none"),
    "empty generator": (lambda p: (b for b in ()), ValueError, "at least one batch, found none"),
    "path": (lambda p: "images.npy", TypeError, "found str"),
    "number": (lambda p: 7, TypeError, "found int"),
}


@pytest.mark.parametrize("kind", [kmm.MetaMixModel, kmm.BitMixerModel])
@pytest.mark.parametrize("name", BAD_STATISTICS)
def test_bad_statistics_data_are_refused_before_training(name, kind, make, parts):
    data, error, message = BAD_STATISTICS[name]
    model = make(kind)
    with pytest.raises(error, match=f"statistics_data: .*{message}"):
        model.fit(
            parts.x, parts.y, epochs=3, callbacks=[callback_of(kind, statistics_data=data(parts))]
        )
    assert model.progress.epochs == 0


EMPTY = {"iterator": lambda: iter(()), "generator": lambda: (b for b in ())}


@pytest.mark.parametrize("name", EMPTY)
def test_no_batch_calibrates_nothing(name, make):
    with pytest.raises(ValueError, match="at least one batch, found none.*make the generator or"):
        kmm.calibrate(make(), EMPTY[name]())


# --- models that are not ready, or have nothing to search -----------------------------------------

UNREADY = {
    "call": lambda m, x, y: m(x),
    "own loop": lambda m, x, y: tf.function(lambda: m(x, training=True))(),
    "predict": lambda m, x, y: m.predict(x, verbose=0),
    "evaluate": lambda m, x, y: m.evaluate(x, y, verbose=0),
    "train_on_batch": lambda m, x, y: m.train_on_batch(x, y),
    "test_on_batch": lambda m, x, y: m.test_on_batch(x, y),
    "predict_on_batch": lambda m, x, y: m.predict_on_batch(x),
}


@pytest.fixture(scope="module")
def uncalibrated(make):
    return make(run_eagerly=False)


@pytest.mark.parametrize("use", UNREADY)
def test_a_model_without_step_sizes_says_so(use, uncalibrated, parts):
    with pytest.raises(ValueError, match=r"no step sizes yet: call keras_metamix.calibrate\("):
        UNREADY[use](uncalibrated, *parts[0])


def test_what_needs_no_step_sizes_works(uncalibrated, tiny_model, parts, tmp_path):
    uncalibrated.summary(print_fn=lambda *_, **__: None)
    image = keras.Input((8, 8, 1))
    assert keras.Model(image, uncalibrated(image)).output_shape == (None, 4)
    with kmm.quantizers_off():
        np.testing.assert_array_equal(uncalibrated(parts.x), tiny_model()(parts.x))
        uncalibrated.predict(parts.x, verbose=0)
    uncalibrated.save(tmp_path / "m.keras")
    assert not keras.models.load_model(tmp_path / "m.keras").calibrated


def of_two_layers():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(3, 3, activation="relu")(image)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("source", ["two layers", "one candidate"])
@pytest.mark.parametrize("kind", [kmm.MetaMixModel, kmm.BitMixerModel])
def test_nothing_to_search_is_said_and_trained(kind, source, make, tiny_model, parts):
    model = (
        make(kind, of_two_layers())
        if source == "two layers"
        else make(kind, tiny_model(), kmm.SearchSpace((4,), 4))
    )
    if kind is kmm.MetaMixModel:
        ours = kmm.MetaMixCallback(kmm.Bops(share=1.0), verbose=0)
        progress, last = "phase", "weight_training"
    else:
        ours = kmm.BitMixerCallback((1, 1, 1), verbose=0)
        progress, last = "stage", "layer_wise"
    with pytest.warns(UserWarning) as warned:
        model.fit(parts.x, parts.y, epochs=3, verbose=0, callbacks=[ours])
    said = [str(w.message) for w in warned if "nothing to" in str(w.message)]
    assert len(said) == 1 and "has bits to choose" in said[0]
    assert getattr(model, progress) == last
    model.require_quantized()
