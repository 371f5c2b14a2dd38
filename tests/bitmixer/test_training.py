"""What one step of each stage changes, what is drawn, whole fits, files in each stage."""

import itertools
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import log_softmax

import keras_metamix as kmm
from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.bitmixer.callback import BitMixerCallback
from keras_metamix.bitmixer.model import STAGES, BitMixerModel
from keras_metamix.graph.transitions import TRANSITION_RULES
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms

BITS = (4, 3, 2)
# The network's variables in groups.
MACS, SEARCHED = ("stem", "depthwise", "project", "logits"), ("depthwise", "project")
KERNELS = {f"{n}/kernel" for n in MACS}
BIASES = {"logits/bias"}
NORMS = {f"{n}/{n}_bn/{v}" for n in MACS[:3] for v in ("gamma", "beta")}
STATISTICS = {f"{n}/{n}_bn/moving_{v}" for n in MACS[:3] for v in ("mean", "variance")}
STEPS = {f"{n}/{n}_input/log_step" for n in MACS}
STREAM_STEPS = {f"{n}_stream/log_step" for n in ("stem_relu", "project_bn", "logits")}
WEIGHT_STEPS = {f"{n}/weight_quantizer/log_step" for n in MACS}
UNUSED = {f"{n}/{n}_input/alpha" for n in SEARCHED}
# The batch norm between the two searched layers has a set for each pair of bit-widths.
DIAGONAL, MIXED = [(0, 0), (1, 1), (2, 2)], [(0, 1), (1, 2), (2, 0)]
PAIRED = {"feeding": "project_bn", "following": "depthwise_bn"}


@pytest.fixture
def next_draw():
    """What the next step of a model draws, in network order, as numbers."""

    def read(model):
        return tuple(int(number) for number in model.draw().values())

    return read


@pytest.fixture(scope="module")
def untrained(mixer):
    """For tests that leave a model as it is."""
    return mixer(calibrated=False)


def test_the_groups_above_are_all_variables(untrained):
    found = {v.path for v in untrained.network.variables if v.name not in ("bit_index", "signed")}
    groups = (KERNELS, BIASES, NORMS, STATISTICS, STEPS, STREAM_STEPS, WEIGHT_STEPS, UNUSED)
    assert found == set().union(*groups)
    assert len(found) == sum(map(len, groups))


# --- from a float model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_norm", "sets"),
    [
        ("feeding", {"stem_bn": (1, 1), "depthwise_bn": (1, 3), "project_bn": (3, 3)}),
        ("following", {"stem_bn": (1, 3), "depthwise_bn": (3, 3), "project_bn": (3, 1)}),
        ("switchable", {"stem_bn": (1, 1), "depthwise_bn": (1, 3), "project_bn": (1, 3)}),
        ("shared", {"stem_bn": (1, 1), "depthwise_bn": (1, 1), "project_bn": (1, 1)}),
    ],
)
def test_with_quantizers_off_it_is_the_float_model_exactly(batch_norm, sets, tiny_model, data):
    source = tiny_model()
    generator = np.random.default_rng(0)
    for layer in source.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.2, 2.0, v.shape) for v in layer.weights])
    before = source.get_weights()
    model = BitMixerModel.from_float(source, batch_norm=batch_norm)
    assert model.bit_assignment == model.uniform_bits(4)
    expected = np.asarray(source(data[0]))
    for bits in BITS:  # every set starts as the float model's
        model.set_bits(model.uniform_bits(bits))
        with quantization_mode(FLOAT):
            found = np.asarray(model(data[0]))
        assert np.max(np.abs(found - expected)) == 0.0
    for value, original in zip(source.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, original)
    assert (model.name, model.batch_norm, model.stage) == ("tiny_bitmixer", batch_norm, STAGES[0])
    assert model.space == SearchSpace(BITS, "same")
    assert {norm.name: norm.sets for norm in batch_norms(model.network)} == sets


# --- one step ------------------------------------------------------------------------------------


def rows_of(path, batch_norm, drawn):
    """Rows of a variable, one for each candidate or set, that a step with this draw trains."""
    layer, name = path.split("/")[-2:]
    depthwise, project = drawn
    if name == "log_step":
        mac = path.split("/")[0]
        return {{"depthwise": depthwise, "project": project}.get(mac, 0)}
    own = {"stem_bn": 0, "depthwise_bn": depthwise, "project_bn": project}[layer]
    if batch_norm == "shared" or (batch_norm == "switchable" and layer == "stem_bn"):
        return {0}
    if layer == PAIRED.get(batch_norm):
        return {3 * depthwise + project}
    if batch_norm == "following" and layer == "stem_bn":
        return {depthwise}
    return {own}


@pytest.mark.parametrize("batch_norm", TRANSITION_RULES)
def test_a_step_trains_what_its_stage_says_at_the_bit_widths_drawn(
    batch_norm, mixer, batch, changes, next_draw
):
    """Before the last stage one number serves the whole network, so that of a batch norm between
    two searched layers only the diagonal trains."""
    model = mixer(batch_norm, optimizer=keras.optimizers.SGD(0.3))
    for stage in STAGES:
        model.stage = stage
        model.layer_wise_share.assign(float(stage == "layer_wise"))
        wanted = {"activations": DIAGONAL[1:], "network_wide": DIAGONAL, "layer_wise": MIXED}[stage]
        steps = {}
        for step in range(25):
            model.optimizer.iterations.assign(step)
            steps.setdefault(next_draw(model), step)
        assert stage == "layer_wise" or set(steps) == set(DIAGONAL)
        allowed = KERNELS | BIASES | NORMS | STATISTICS | STEPS
        allowed |= set() if stage == "activations" else STREAM_STEPS | WEIGHT_STEPS
        seen = set()
        for drawn in wanted:
            model.optimizer.iterations.assign(steps[drawn])
            changed = changes(model, lambda: model.train_step(batch))
            assert KERNELS | BIASES | NORMS | STATISTICS <= set(changed) <= allowed
            for path, found in changed.items():
                if "_bn/" in path or path.endswith("log_step"):
                    rows = set(np.flatnonzero(np.any(found.reshape(len(found), -1), axis=1)))
                    assert rows == rows_of(path, batch_norm, drawn), (path, drawn)
            seen |= set(changed)
        assert seen == allowed


@pytest.mark.parametrize("stage", ["activations", "layer_wise"])
def test_a_step_s_gradient_is_that_of_the_network_at_the_bit_widths_drawn(
    stage, mixer, batch, loss, next_draw
):
    """Against a tape of its own, with the candidates assigned by hand."""
    rate = 0.3
    model, twin = (mixer(stage=stage, optimizer=keras.optimizers.SGD(rate)) for _ in range(2))
    model.layer_wise_share.assign(1.0)
    while len({0, *next_draw(model)}) < 3:  # two different ones, neither the highest
        model.optimizer.iterations.assign_add(1)
    drawn = next_draw(model)
    bits = {"stem": 8, "logits": 8} | {n: BITS[i] for n, i in zip(SEARCHED, drawn, strict=True)}
    twin.set_bits(BitAssignment(bits, bits))
    variables = twin.trainable_variables
    quantized = stage != "activations"
    mode = QuantizationMode("assigned", "assigned" if quantized else "off", streams=quantized)
    with tf.GradientTape() as tape, quantization_mode(mode):
        value = loss(batch[1], twin.network(batch[0], training=True))
    gradients = tape.gradient(value, [v.value for v in variables])
    before = [np.array(v) for v in variables]
    logs = model.train_step(batch)
    assert float(logs["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert 0 <= float(logs["accuracy"]) <= 1
    moved = 0
    for variable, start, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        slope = 0.0 if gradient is None else tf.convert_to_tensor(gradient).numpy()
        moved += np.any(slope != 0)
        np.testing.assert_allclose(
            variable, start - rate * slope, rtol=2e-4, atol=2e-6, err_msg=variable.path
        )
    assert moved > 10
    for name in STATISTICS:
        mac, _, variable = name.split("/")
        ours, theirs = (getattr(m.network.get_layer(mac).norm, variable) for m in (model, twin))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


# --- draws ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws(mixer, deep_model):
    """The draws of steps 0 to `count` - 1 at a share, shape (count, layers)."""
    models = {seed: mixer(source=deep_model, draws=seed, calibrated=False) for seed in (0, 1)}

    def collect(share, count=3000, seed=0):
        model = models[seed]
        model.layer_wise_share.assign(share)

        @tf.function
        def many():
            found = tf.TensorArray(tf.int32, count)
            for step in tf.range(count):
                model.optimizer.iterations.assign(tf.cast(step, "int64"))
                found = found.write(step, tf.stack(list(model.draw().values())))
            return found.stack()

        return many().numpy()

    return collect


def equally_often(*columns):
    """Whether every combination of numbers occurs equally often: a chi-square test's p."""
    cells = np.ravel_multi_index(columns, [3] * len(columns))
    return stats.chisquare(np.bincount(cells, minlength=3 ** len(columns))).pvalue


def test_at_share_0_one_number_serves_the_whole_network(draws):
    found = draws(0.0)
    assert found.shape == (3000, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    assert equally_often(found[:, 0]) > 1e-3
    assert equally_often(found[:-1, 0], found[1:, 0]) > 1e-3  # nor does a step follow the last


def test_at_share_1_candidates_are_equally_often_and_layers_independent(draws):
    found = draws(1.0)
    for layer in found.T:
        assert equally_often(layer) > 1e-3
        assert equally_often(layer[:-1], layer[1:]) > 1e-3
    for one, other in itertools.combinations(found.T, 2):
        assert equally_often(one, other) > 1e-3
    assert equally_often(*found.T) > 1e-3
    for one, other in itertools.combinations([*found.T, draws(0.0)[:, 0]], 2):
        assert equally_often(one, other) > 1e-3  # of the common number, too


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_between_a_layer_switches_with_probability_share(share, draws):
    """Two layers agree where neither switched, and else in a third of the steps."""
    found, common = draws(share), draws(0.0)[:, 0]
    neither = (1 - share) ** 2
    expected = neither + (1 - neither) / 3
    for one, other in itertools.combinations(found.T, 2):
        # Four standard deviations of a binomial of 3000.
        assert np.mean(one == other) == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(3000))
    for layer in found.T:
        assert np.mean(layer != common) == pytest.approx(share * 2 / 3, abs=4 * 0.5 / np.sqrt(3000))
        assert equally_often(layer) > 1e-3


def test_a_draw_follows_from_the_seed_and_the_step(draws, mixer, deep_model):
    first = draws(0.7, 60)
    np.testing.assert_array_equal(first, draws(0.7, 60))
    other = draws(0.7, 60, seed=1)
    assert np.mean(first == other) < 0.6  # a third, by chance
    again = mixer(source=deep_model, calibrated=False)
    again.layer_wise_share.assign(0.7)
    for step in (0, 7, 59):
        again.optimizer.iterations.assign(step)
        assert [int(n) for n in again.draw().values()] == list(first[step])
    choices = [layer.input_quantizer.choice for layer in again.mac_layers]
    assert list(again.draw()) == choices[1:-1]


# --- in-place distillation -----------------------------------------------------------------------


def divergence(teacher, student):
    """KL of each image, in float64."""
    t, s = (log_softmax(np.asarray(a, np.float64), -1) for a in (teacher, student))
    return np.sum(np.exp(t) * (t - s), -1)


@pytest.mark.parametrize(
    ("share", "weights"), [(0.4, [1, 0, 2, 0.5, 1, 1, 0, 3]), (1.0, None)], ids=str
)
def test_in_place_distillation_is_the_sum_of_its_parts(
    share, weights, mixer, batch, loss, next_draw
):
    """Each part's value and gradient by itself: the highest's task loss, the drawn's, their KL."""
    rate, stage = 0.3, "network_wide"
    model, twin = (
        mixer(stage=stage, optimizer=keras.optimizers.SGD(rate), in_place_distillation=share)
        for _ in range(2)
    )
    while next_draw(model) != (2, 2):
        model.optimizer.iterations.assign_add(1)
    x, y = batch
    weights = None if weights is None else np.array(weights, np.float32)
    variables = [v.value for v in twin.trainable_variables]

    def forward(number):
        with quantization_mode(QuantizationMode("forced", "forced", True, number, number)):
            return twin.network(x, training=True)

    with tf.GradientTape(persistent=True) as tape:
        drawn, highest = forward(2), forward(0)
        task_drawn, task_highest = (loss(y, p, sample_weight=weights) for p in (drawn, highest))
        p = tf.nn.log_softmax(tf.stop_gradient(highest))
        each = tf.reduce_sum(tf.exp(p) * (p - tf.nn.log_softmax(drawn)), -1)
        kl = tf.reduce_mean(each if weights is None else each * weights)
    np.testing.assert_allclose(each, divergence(highest, drawn), rtol=1e-4, atol=1e-6)
    parts = [tape.gradient(value, variables) for value in (task_highest, task_drawn, kl)]
    before = [np.array(v) for v in twin.trainable_variables]
    logs = model.train_step(batch if weights is None else (*batch, weights))
    expected = (task_highest + (1 - share) * task_drawn + share * kl) / 2
    assert float(logs["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(kl) > 1e-3
    for i, (variable, start) in enumerate(zip(model.trainable_variables, before, strict=True)):
        slopes = [0.0 if g[i] is None else tf.convert_to_tensor(g[i]).numpy() for g in parts]
        slope = (slopes[0] + (1 - share) * slopes[1] + share * slopes[2]) / 2
        np.testing.assert_allclose(
            variable, start - rate * slope, rtol=5e-4, atol=5e-6, err_msg=variable.path
        )


def test_at_share_1_the_bit_widths_drawn_see_no_labels(mixer, batch, next_draw):
    """Only the highest learns them: variables that it does not use do not depend on them."""
    x, y = batch
    found = []
    for labels in (y, (y + 1) % 4):
        model = mixer(in_place_distillation=1.0)
        while next_draw(model) != (2, 2):
            model.optimizer.iterations.assign_add(1)
        model.train_step((x, labels))
        norm = model.network.get_layer("project").norm
        found.append((np.array(norm.gamma), np.array(model.network.get_layer("logits").kernel)))
    np.testing.assert_array_equal(found[0][0][8], found[1][0][8])
    assert np.any(found[0][0][0] != found[1][0][0])
    assert np.any(found[0][1] != found[1][1])


def test_without_it_there_is_one_pass(mixer, batch):
    plain, zero = mixer(), mixer(in_place_distillation=0.0)
    assert float(plain.train_step(batch)["loss"]) == float(zero.train_step(batch)["loss"])
    for ours, theirs in zip(plain.network.variables, zero.network.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- assignments ---------------------------------------------------------------------------------


@pytest.fixture
def counted():
    """Counts how often train_step, test_step and predict_step are traced."""

    def count(model):
        traces = Counter()
        for name in ("train", "test", "predict"):
            step = getattr(model, f"{name}_step")

            def traced(batch, name=name, step=step):
                traces[name] += 1
                return step(batch)

            setattr(model, f"{name}_step", traced)
        return traces

    return count


def test_switching_bit_widths_changes_the_outputs_without_a_trace(mixer, data, counted, assignment):
    """Only the stage that begins to quantize weights is traced anew."""
    model = mixer(metrics=None)  # Keras makes a metric's variables in a first trace of their own
    generator = np.random.default_rng(0)
    for norm in batch_norms(model.network):
        norm.set_weights([generator.uniform(0.5, 1.5, v.shape) for v in norm.weights])
    traces = counted(model)

    def use(*chosen):
        model.set_bits(assignment(model, *chosen))
        found = model.predict(data[0], batch_size=24, verbose=0)
        # Outside of Keras' compiled functions it is the same network.
        np.testing.assert_allclose(found, model(data[0]), atol=2e-2)
        return found, float(model.evaluate(*data, batch_size=24, verbose=0))

    floats = [use(bits, bits) for bits in BITS]
    assert traces == {"test": 1, "predict": 1}
    model.stage = "network_wide"
    outputs = {}
    for chosen in [*itertools.product(BITS, repeat=2), (4, 4)]:
        found = use(*chosen)
        np.testing.assert_array_equal(found[0], outputs.setdefault(chosen, found)[0])
    assert traces == {"test": 2, "predict": 2}
    model.stage = "layer_wise"
    np.testing.assert_array_equal(use(2, 3)[0], outputs[2, 3][0])
    assert traces == {"test": 2, "predict": 2}
    every = [*floats, *outputs.values()]
    for (one, loss), (other, another) in itertools.combinations(every, 2):
        assert np.max(np.abs(one - other)) > 1e-3
        assert loss != another


def test_weight_bits_act_once_weights_are_quantized(mixer, data):
    """Before, the activations' bit-widths alone do."""
    model = mixer(space=SearchSpace((4,), "same"))
    kernel = model.network.get_layer("project").kernel
    outputs = {}
    for stage in STAGES:
        model.stage = stage
        outputs[stage] = np.asarray(model(data[0]))
    np.testing.assert_array_equal(outputs["network_wide"], outputs["layer_wise"])
    assert np.any(outputs["activations"] != outputs["network_wide"])
    quantizer = model.network.get_layer("project").weight_quantizer
    model.stage = "network_wide"
    kernel.assign(quantizer.integers(kernel) * quantizer.step())
    np.testing.assert_allclose(model(data[0]), outputs["network_wide"], atol=1e-4)


def test_uniform_bits_leave_the_ends_at_8(mixer, untrained):
    bits = untrained.uniform_bits(3)
    assert dict(bits.activation_bits) == {"stem": 8, "depthwise": 3, "project": 3, "logits": 8}
    assert bits.weight_bits == bits.activation_bits
    fixed = mixer(calibrated=False, space=SearchSpace((8, 2), 4, edge_bits=5))
    bits = fixed.uniform_bits(2)
    assert dict(bits.activation_bits) == {"stem": 5, "depthwise": 2, "project": 2, "logits": 5}
    assert dict(bits.weight_bits) == {"stem": 5, "depthwise": 4, "project": 4, "logits": 5}
    fixed.set_bits(bits)
    assert fixed.bit_assignment == bits


@pytest.mark.parametrize(
    ("activation", "weight", "message"),
    [
        ({"other": 4}, {"other": 4}, r"another model than 'tiny_bitmixer'"),
        ({"depthwise": 8}, {"depthwise": 8}, r"'depthwise': 8 activation bits.*\[4, 3, 2\]"),
        ({"stem": 4}, {"stem": 4}, r"'stem': 4 activation bits.*\[8\]"),
        ({}, {"project": 2}, r"'project': SearchSpace\(weight_bits='same'\) needs 3 weight bits"),
    ],
    ids=str,
)
def test_bits_that_do_not_fit_are_refused_and_change_nothing(
    untrained, activation, weight, message
):
    model = untrained
    base = model.uniform_bits(3)
    bits = BitAssignment(base.activation_bits | activation, base.weight_bits | weight)
    with pytest.raises(ValueError, match=message):
        model.set_bits(bits)
    assert model.bit_assignment == model.uniform_bits(4)


# --- whole fits ----------------------------------------------------------------------------------


class Record(keras.callbacks.Callback):
    """Shares at each step, and the paired batch norm as each epoch begins."""

    def __init__(self):
        super().__init__()
        self.shares, self.sets = [], []

    def on_epoch_begin(self, epoch, logs=None):
        norm = self.model.network.get_layer("project").norm
        self.sets.append([np.array(v) for v in norm.weights])

    def on_train_batch_end(self, batch, logs=None):
        self.shares.append(float(self.model.layer_wise_share))


@pytest.fixture(scope="module")
def fitted(mixer, data):
    """A fit of 3 steps an epoch through all stages."""
    model = mixer(calibrated=False, optimizer=keras.optimizers.Adam(1e-2))
    traces, step = Counter(), model.train_step

    def counted(batch):
        traces[model.stage] += 1
        return step(batch)

    model.train_step = counted
    callback, record = BitMixerCallback((1, 1, 2), verbose=0), Record()
    history = model.fit(
        *data, batch_size=8, epochs=4, callbacks=[callback, record], validation_data=data, verbose=0
    )
    return model, callback, record, history.history, traces


def test_a_fit_goes_through_the_stages(fitted):
    model, callback, _, history, _ = fitted
    assert callback.stages == ["activations", "network_wide", "layer_wise", "layer_wise"]
    assert model.stage == "layer_wise"
    assert model.calibrated
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert len(history[name]) == 4
        assert np.all(np.isfinite(history[name]))
    assert model.bit_assignment == model.uniform_bits(4)


def test_training_is_traced_once_for_float_and_once_for_quantized_weights(fitted):
    assert dict(fitted[4]) == {"activations": 1, "network_wide": 1}


def test_the_share_rises_linearly_to_1_over_the_last_stage(fitted):
    model, _, record, _, _ = fitted
    np.testing.assert_allclose(record.shares, [0] * 6 + [i / 6 for i in range(1, 7)], rtol=1e-6)
    assert float(model.layer_wise_share) == 1.0


def test_off_diagonal_sets_start_as_copies_of_the_diagonal(fitted):
    _, _, record, _, _ = fitted
    own = [0, 4, 8] * 3  # "feeding": of the layer's own bit-width, the second
    for variable, before in zip(record.sets[2], record.sets[1], strict=True):
        np.testing.assert_array_equal(variable, variable[own])
        assert np.any(before != before[own])
    for variable, before in zip(record.sets[3], record.sets[2], strict=True):
        assert np.any(variable != variable[own])  # they train from then on
        assert np.any(variable != before)


def test_a_second_fit_goes_on_in_the_last_stage_without_a_trace(fitted, data):
    model, _, _, _, traces = fitted
    steps = [np.array(layer.weight_quantizer.log_step) for layer in model.mac_layers]
    again = BitMixerCallback((0, 0, 1), verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[again], verbose=0)
    assert again.stages == ["layer_wise"]
    assert dict(traces) == {"activations": 1, "network_wide": 1}
    for layer, before in zip(model.mac_layers, steps, strict=True):  # trained, not set anew
        np.testing.assert_allclose(layer.weight_quantizer.log_step, before, atol=0.1)


@pytest.mark.parametrize(
    ("epochs", "stages"),
    [((0, 0, 1), ["layer_wise"]), ((1, 0, 0), ["activations"])],
    ids=str,
)
def test_stages_without_epochs_are_passed_through(epochs, stages, mixer, data, capsys):
    model = mixer(run_eagerly=True)
    steps = [np.array(layer.weight_quantizer.log_step) for layer in model.mac_layers]
    for layer in model.mac_layers:
        layer.kernel.assign(2 * layer.kernel)
    callback = BitMixerCallback(epochs, statistics_batches=1)
    model.fit(*data, batch_size=24, epochs=sum(epochs), callbacks=[callback], verbose=0)
    assert callback.stages == stages
    assert capsys.readouterr().out == f"[Bit-Mixer] stage {stages[0]} from epoch 1\n"
    # Weights that begin to be quantized have steps of the kernels as they are then.
    moved = 0.0 if stages == ["activations"] else np.log(2)
    for layer, before in zip(model.mac_layers, steps, strict=True):
        np.testing.assert_allclose(layer.weight_quantizer.log_step, before + moved, atol=0.1)


def test_statistics_of_every_bit_width_are_those_of_the_quantized_network(mixer, data):
    """As weights begin to be quantized: one batch's own mean and variance, by hand."""
    model = mixer(run_eagerly=True, optimizer=keras.optimizers.SGD(0.0))
    record = Record()
    callback = BitMixerCallback((0, 1, 0), statistics_batches=1, verbose=0)
    model.fit(*data, batch_size=24, callbacks=[callback, record], verbose=0, shuffle=False)
    project = model.network.get_layer("project")
    before = keras.Model(model.network.input, project.input)
    values = dict(zip([v.name for v in project.norm.weights], record.sets[0], strict=True))
    for number, bits in enumerate(BITS):
        model.set_bits(model.uniform_bits(bits))
        with quantization_mode(QuantizationMode(statistics="frozen")):
            x = project.input_quantizer(before(data[0], training=True))
            x = project.multiply(x, project.weight_quantizer(project.kernel))
            x = np.asarray(x).reshape(-1, 3)
        row = 4 * number  # on the diagonal
        np.testing.assert_allclose(values["moving_mean"][row], x.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(values["moving_variance"][row], x.var(0), rtol=1e-3, atol=1e-4)


def test_fit_takes_a_dataset_and_several_steps_per_execution(mixer, data):
    model = mixer(calibrated=False, steps_per_execution=2, run_eagerly=True)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)  # the third step is alone
    record = Record()
    callback = BitMixerCallback((0, 0, 2), statistics_batches=1, verbose=0)
    model.fit(dataset, epochs=2, callbacks=[callback, record], verbose=0, shuffle=False)
    assert model.calibrated
    np.testing.assert_allclose(record.shares, [2 / 6, 4 / 6, 5 / 6, 1.0], rtol=1e-6)


def test_a_fit_that_begins_at_a_later_epoch_is_in_that_epoch_s_stage(mixer, data):
    model = mixer(run_eagerly=True)
    callback = BitMixerCallback((1, 1, 1), statistics_batches=1)
    model.fit(*data, batch_size=24, epochs=3, initial_epoch=1, callbacks=[callback], verbose=0)
    assert callback.stages == ["network_wide", "layer_wise"]


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "batch_norm", "share"),
    [
        ("activations", "feeding", 0.0),
        ("network_wide", "shared", 0.5),
        ("layer_wise", "following", 0.0),
    ],
)
def test_a_model_saved_in_a_stage_goes_on_as_if_it_had_not_been(
    stage, batch_norm, share, mixer, data, batch, tmp_path, assignment
):
    model = mixer(
        batch_norm,
        stage,
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        draws=5,
        in_place_distillation=share,
    )
    model.layer_wise_share.assign(0.75)
    model.train_step(batch)
    model.set_bits(assignment(model, 3, 2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is BitMixerModel
    assert (loaded.stage, loaded.batch_norm, loaded.seed) == (stage, batch_norm, 5)
    assert (loaded.space, loaded.calibrated) == (model.space, True)
    assert loaded.bit_assignment == model.bit_assignment
    assert float(loaded.layer_wise_share) == 0.75
    for chosen in ((3, 2), (2, 4)):
        for m in (model, loaded):
            m.set_bits(assignment(m, *chosen))
        np.testing.assert_array_equal(loaded(data[0]), model(data[0]))
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=b.path)
    model.reset_metrics()
    for _ in range(2):
        assert [int(n) for n in loaded.draw().values()] == [int(n) for n in model.draw().values()]
        logs, expected = loaded.train_step(batch), model.train_step(batch)
        assert float(logs["loss"]) == float(expected["loss"]) > 0
    for a, b in zip(loaded.network.variables, model.network.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=b.path)


def test_weights_load_into_a_fresh_model(mixer, data, tmp_path, assignment):
    model, other = (mixer(seed=s, stage="layer_wise") for s in (0, 1))
    model.set_bits(assignment(model, 2, 3))
    assert np.max(np.abs(np.asarray(model(data[0])) - np.asarray(other(data[0])))) > 1e-2
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    assert other.bit_assignment == model.bit_assignment
    np.testing.assert_array_equal(other(data[0]), model(data[0]))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_arrays_is_named(value, untrained, data):
    x = data[0].copy()
    x[3, 2, 1, 0] = value
    with pytest.raises(ValueError, match="training images hold 1 NaN or Inf of 1536 values"):
        untrained.fit(x, data[1], verbose=0)
    assert not untrained.calibrated


def test_nan_in_a_dataset_is_named_with_the_stage(mixer, data):
    x, y = np.tile(data[0], (2, 1, 1, 1)), np.tile(data[1], 2)
    x[33] = np.nan  # behind what sets the steps
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model = mixer(run_eagerly=True)
    message = r"step 5 of epoch 1, stage network_wide: the images hold 64 NaN"
    with pytest.raises(ValueError, match=message):
        callback = BitMixerCallback((0, 1, 0), statistics_batches=0, verbose=0)
        model.fit(dataset, shuffle=False, epochs=1, callbacks=[callback], verbose=0)
    bad_first = tf.data.Dataset.from_tensor_slices((x[32:], y[32:])).batch(8)
    with pytest.raises(ValueError, match="calibration images hold 64 NaN or Inf"):
        mixer(calibrated=False).fit(bad_first, verbose=0, shuffle=False)


def test_the_callback_refuses_other_models(tiny_model, data, loss):
    model = tiny_model()
    model.compile("sgd", loss)
    with pytest.raises(TypeError, match=r"BitMixerCallback trains a BitMixerModel.*Functional"):
        model.fit(*data, callbacks=[BitMixerCallback((1, 0, 0))], verbose=0)


def test_the_callback_refuses_another_number_of_epochs(mixer, data, changes):
    model = mixer()

    def fit():
        with pytest.raises(ValueError, match=r"fit\(epochs=2\).*\(1, 1, 1\).* needs 3"):
            callback = BitMixerCallback((1, 1, 1), verbose=0)
            model.fit(*data, epochs=2, callbacks=[callback], verbose=0)

    assert changes(model, fit) == {}
    assert model.stage == "activations"


@pytest.mark.parametrize(
    "epochs", [(1, 1), (1, 1, 1, 1), (-1, 2, 1), (1.5, 1, 1), ("1", 1, 1), (0, 0, 0)], ids=str
)
def test_the_callback_refuses_bad_stage_epochs(epochs):
    with pytest.raises(ValueError, match="stage_epochs: expected three numbers of epochs, found"):
        BitMixerCallback(epochs)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_distillation_weight_out_of_range_is_refused(share, untrained):
    with pytest.raises(ValueError, match=r"in_place_distillation: expected a number in \[0, 1\]"):
        untrained.compile("sgd", untrained.loss, in_place_distillation=share)


def test_an_unknown_stage_is_refused(untrained):
    model = untrained
    with pytest.raises(ValueError, match=r"stage: expected one of \['activations'.*'warm_up'"):
        model.stage = "warm_up"
    assert model.stage == "activations"


@pytest.mark.parametrize("bits", [8, 5, "4", None])
def test_uniform_bits_that_are_no_candidate_are_refused(bits, untrained):
    with pytest.raises(ValueError, match=rf"{bits!r} bits are no candidate.*\[4, 3, 2\]"):
        untrained.uniform_bits(bits)


def test_from_float_names_what_it_does_not_take(tiny_model):
    source = tiny_model()
    with pytest.raises(ValueError, match=r"batch_norm: expected one of \['feeding'.*'own'"):
        BitMixerModel.from_float(source, batch_norm="own")
    with pytest.raises(ValueError, match=r"SearchSpace.weight_bits: expected 'same'.*\[4, 2\]"):
        BitMixerModel.from_float(source, SearchSpace((4, 2), (4, 2)))
    image = keras.Input((4, 4, 1))
    odd = keras.layers.Conv2DTranspose(2, 2, dilation_rate=2, name="odd")(
        keras.layers.Conv2D(2, 1)(image)
    )
    with pytest.raises(ValueError, match="'odd'"):
        BitMixerModel.from_float(keras.Model(image, odd))

    class Subclassed(keras.Model):
        pass

    with pytest.raises(TypeError, match="no graph"):
        BitMixerModel.from_float(Subclassed())


def test_batch_renormalization_is_refused_by_name():
    """It keeps further statistics, which no set has."""
    image = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1)(image)
    x = keras.layers.BatchNormalization(renorm=True, name="again")(x)
    with pytest.raises((TypeError, ValueError), match="'again': expected renorm=False"):
        BitMixerModel.from_float(keras.Model(image, x))


def test_a_network_of_float_weights_cannot_be_folded(mixer):
    model = mixer()
    with pytest.raises(ValueError, match=r"quantized weights, found stage 'activations'"):
        kmm.fold_batch_norm(model)
    model.stage = "network_wide"
    assert kmm.fold_batch_norm(model).name == "tiny_folded"
