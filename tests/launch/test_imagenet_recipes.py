"""The ImageNet configs: Table 1's values, networks that build, runs, and what is refused."""

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from ml_collections import ConfigDict

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data, zoo
from keras_metamix.data import imagenet_sample
from keras_metamix.launch import config as config_fields
from keras_metamix.launch import datasets, optimization, training
from keras_metamix.launch.train import run_experiment
from keras_metamix.report import read_results

CONFIGS = Path(__file__).parents[2] / "configs"
# The paper's Table 1 and Sec. 4: candidates, epochs, lambda; and the BOPs of A4/W4.
PUBLISHED = {
    "metamix_mobilenet_v2": ((8, 4, 3), 140, 1.0, 5.394e9),
    "metamix_mobilenet_v3": ((8, 4, 3), 140, 4.0, 3.787e9),
    "metamix_resnet18": ((8, 4, 2), 90, 0.4, 34.714e9),
    "metamix_pairs_842": ((8, 4, 2), 90, 0.4, 34.714e9),  # the supplement's
    "metamix_pairs_642": ((6, 4, 2), 90, 0.4, 34.714e9),
}
RESNET18 = [name for name in PUBLISHED if "mobilenet" not in name]
PAIRS = [name for name in PUBLISHED if "pairs" in name]


def load(name: str, argument: str = ""):
    """A config as the launcher loads it."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


@pytest.fixture
def smoke(tmp_path):
    """smoke(name) -> the config of a smoke run, in a folder of the test's own."""

    def make(name="metamix_resnet18"):
        config = load(name, "smoke")
        config.data.dir = str(tmp_path / "tfds")
        return config

    return make


@pytest.fixture
def small(smoke):
    """A run of seconds that takes ImageNet's pipeline: a network of four layers."""
    config = smoke()
    config.model = ConfigDict({"name": "small_cnn", "width": 4, "stem_strides": 2})
    return config


# --- configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_values(name):
    config = config_fields.complete(load(name))
    candidates, epochs, strength, uniform_bops = PUBLISHED[name]
    assert config.space.activation_bits == candidates
    assert config.space.weight_bits == (candidates if name in PAIRS else 4)
    assert (config.space.edge_bits, config.space.edge_weight_bits) == (8, None)
    assert (config.search.meta_epochs, config.search.search_epochs) == (1, 1)
    assert config.train.epochs == epochs
    assert (config.search.cost, config.search.cost_strength) == ("paper", strength)
    assert config.search.learning_rate == config.train.selection_learning_rate == 1e-4
    assert (config.train.learning_rate, config.train.weight_decay) == (5e-4, 5e-6)
    assert (config.train.optimizer, config.train.clip_norm) == ("adam", 10.0)
    assert config.train.batch_size == 256
    assert 0.85 < config.search.target_bops / uniform_bops < 1
    load(name).search.target_bops = 1.5e9  # a flag may set it


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipes_network_is_searchable(name):
    """At 32 pixels and a tenth of the width."""
    config = config_fields.complete(load(name))
    assert config.data.pixels == ("standardized" if name in RESNET18 else "minus_one_to_one")
    model = getattr(zoo, config.model["name"])((32, 32, 3), 10, width=0.1)
    metamix = kmm.MetaMixModel.from_float(model, training.search_space(config))
    searched = {tuple(pairs) for pairs in metamix.cost_table.candidates.values()}
    weights = config.space.weight_bits if name in PAIRS else (4,)
    assert tuple((a, w) for a in config.space.activation_bits for w in weights) in searched


@pytest.mark.parametrize("name", PUBLISHED)
def test_another_argument_is_refused(name):
    with pytest.raises(ValueError, match="config argument: expected 'smoke', .* found 'quick'"):
        load(name, "quick")


def test_fields_are_checked():
    config = load("metamix_resnet18")
    with pytest.raises(ValueError, match=r"config\.train\.teachr: no such field; .*'teacher'"):
        with config.unlocked():
            config.train.teachr = ""
        config_fields.complete(config)
    config = load("metamix_resnet18")
    del config.search["meta_epochs"]
    with pytest.raises(ValueError, match=r"config\.search\.meta_epochs is missing"):
        config_fields.complete(config)


def test_quickstart_gets_the_defaults_that_leave_it_as_it_was():
    config = config_fields.complete(load("quickstart"))
    assert (config.train.optimizer, config.train.clip_norm) == ("adamw", 10.0)
    assert (config.search.cost, config.search.learning_rate) == ("relative", None)
    assert config.train.selection_learning_rate is None
    assert not (config.train.ema or config.train.teacher or config.train.label_smoothing)


# --- optimization -----------------------------------------------------------------------------


@pytest.fixture
def compiled(small):
    """compiled(**config.train's fields) -> a MetaMixModel, compiled for 3 epochs of 10 steps."""

    def make(**fields):
        small.train.optimizer = "adam"
        small.train.update(fields)
        config = config_fields.complete(small)
        model = kmm.MetaMixModel.from_float(zoo.small_cnn((16, 16, 3), 8, 4))
        optimization.compile_quantized(model, config, 10, 2)
        return model

    return make


def test_kernels_alone_decay(compiled):
    model = compiled(weight_decay=5e-6, clip_norm=10.0)
    decayed = {v.path for v in model.trainable_variables if model.optimizer._use_weight_decay(v)}
    assert decayed == {f"{name}/kernel" for name in ("conv1", "conv2", "conv3", "logits")}
    assert model.optimizer.weight_decay == 5e-6 and model.optimizer.global_clipnorm == 10


def test_alphas_have_the_papers_optimizer(compiled):
    search = compiled().search_optimizer
    assert float(search.learning_rate) == pytest.approx(1e-4)
    assert (search.beta_1, search.beta_2, search.weight_decay) == (0.5, 0.999, 1e-3)


def test_selection_has_a_rate_of_its_own(compiled):
    schedule = compiled().optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 19, 20, 30)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 5e-4, 5e-6], rtol=1e-5)


def test_an_unknown_optimizer_and_teacher_are_named(small, tmp_path):
    small.train.optimizer = "adamant"
    with pytest.raises(ValueError, match="adamant"):
        run_experiment(small, tmp_path / "run")
    small.train.optimizer, small.train.teacher = "adam", "big.keras"
    with pytest.raises(FileNotFoundError, match=r"config\.train\.teacher: .*'big\.keras'"):
        run_experiment(small, tmp_path / "run")
    small.train.teacher, small.model.widht = "", 3
    with pytest.raises(ValueError, match=r"config\.model\.widht: small_cnn has no such argument"):
        run_experiment(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_three_sets_of_images(small):
    found = datasets.load_data(config_fields.complete(small))
    assert found.counts == {"training": 16, "validation": 2, "test": 16} and found.steps == 2
    small.data.augment = False
    found = datasets.load_data(config_fields.complete(small))
    trained, validated, tested = (
        {image.tobytes() for images, _ in batches.as_numpy_iterator() for image in images}
        for batches in (found.train.take(2), found.validation, found.test)
    )
    assert [len(trained), len(validated), len(tested)] == [16, 2, 16]
    assert not trained & validated and not (trained | validated) & tested


def test_float_weights_come_from_a_file(small, tmp_path):
    config = config_fields.complete(small)
    found = datasets.load_data(config)
    source = training.float_network(config, found)
    source.save_weights(tmp_path / "float.weights.h5")
    small.float.weights = str(tmp_path / "float.weights.h5")
    config = config_fields.complete(small)
    for ours, theirs in zip(
        training.float_network(config, found).weights, source.weights, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    small.float.weights = "none.weights.h5"
    config = config_fields.complete(small)
    with pytest.raises(FileNotFoundError, match=r"config\.float\.weights: .*'none\.weights\.h5'"):
        training.float_network(config, found)


# --- averages ---------------------------------------------------------------------------------


class _Recorder(keras.callbacks.Callback):
    """The trainable variables as weight training begins, and after each of its steps."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.phase == "weight_training" and not self.values:
            self.on_train_batch_end(batch)

    def on_train_batch_end(self, batch, logs=None):
        if self.model.phase == "weight_training":
            self.values.append([np.array(v) for v in self.model.trainable_variables])


@pytest.mark.slow
def test_weights_are_averaged_from_the_begin_of_weight_training(compiled):
    momentum = 0.7
    model = compiled(ema=momentum)
    images = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype("float32")
    labels = np.arange(16) % 8
    recorder = _Recorder()
    bits = kmm.uniform_assignment(model, 4, 4)
    callback = kmm.MetaMixCallback(kmm.bops(model, bits), verbose=0)
    model.fit(images, labels, batch_size=8, epochs=4, callbacks=[callback, recorder], verbose=0)
    assert len(recorder.values) == 5  # two epochs of two steps
    expected = recorder.values[0]
    for values in recorder.values[1:]:
        pairs = zip(expected, values, strict=True)
        expected = [momentum * average + (1 - momentum) * value for average, value in pairs]
    for variable, average in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, average, rtol=1e-4, atol=1e-6, err_msg=variable.path)


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sample_can_be_learned(tmp_path):
    """Eight classes by colour and shape: what the pipeline gives belongs to its labels."""
    imagenet_sample.write_sample(tmp_path, 256, 64)
    train, validation = data.open_imagenet(tmp_path, name=imagenet_sample.NAME)
    form = data.Form(32)
    keras.utils.set_random_seed(0)
    model = zoo.small_cnn((32, 32, 3), 8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    batches = data.imagenet_training(train, 32, form, seed=0)
    model.fit(batches, epochs=12, steps_per_epoch=8, verbose=0)
    assert model.evaluate(data.imagenet_evaluation(validation, 32, form), verbose=0)[1] > 0.6


@pytest.mark.slow
@pytest.mark.long
def test_a_run_with_every_option(small, tmp_path, capsys):
    small.float.epochs, small.train.ema, small.train.teacher = 1, 0.9, "float"
    small.train.label_smoothing, small.train.uniform, small.data.randaugment = 0.1, True, 1
    run_experiment(small, tmp_path / "run")
    assert re.search(r"weight_training +epoch 3/3", capsys.readouterr().out)
    results = read_results(tmp_path / "run")
    assert [row.name for row in results.rows] == ["float", "uniform A4W4", "MetaMix"]
    assert "of the first 16 of 16 test images" in results.notes[-1]
    for row in results.rows[1:]:
        assert row.parity.differing == 0


@pytest.mark.slow
@pytest.mark.long  # minutes each
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_smoke_run_writes_an_exact_file(name, smoke, tmp_path, capsys):
    run_experiment(smoke(name), tmp_path / "run")
    printed = capsys.readouterr().out
    for phase in ("bit_meta", "bit_search", "weight_training"):
        assert re.search(rf"{phase} +epoch", printed), phase
    results = read_results(tmp_path / "run")
    ours = results.rows[-1]
    assert ours.bops <= results.search.budgets[0].limit
    assert ours.parity.differing == 0 and ours.parity.delegated
    bits = kmm.BitAssignment.load(tmp_path / "run" / "bits.json")
    mt.verify((tmp_path / "run" / "model.tflite").read_bytes(), bits)
    loaded = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert loaded.bit_assignment == bits
