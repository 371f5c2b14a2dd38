"""metamix-train against a latency table: the budget, its refusals, and what a run tells of it."""

import itertools
import json
import runpy
import sys
from pathlib import Path

import keras
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.cost.latency_table import FORMAT
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.launch import budget, train
from keras_metamix.launch.config import complete
from keras_metamix.launch.session import CHECKPOINTS, Session
from keras_metamix.report import read_results
from keras_metamix.zoo import small_cnn
from metamix_tflite.devices import ethosu

needs_vela = pytest.mark.skipif(
    not Path(sys.executable).with_name("vela").exists(),
    reason="Vela is not installed (pip install ethos-u-vela)",
)
CONFIGS = Path(__file__).parents[2] / "configs"
FIXED = 40.0
EDGES = 10.0 + 40.0  # of the first and the last of the four layers
BITS = (8, 4, 3, 2)


def price(number, activation, weight):
    """Microseconds of a layer: weights of 8 bits are the fast ones, activations count a little."""
    return 10.0 * (number + 1) + 5 * (8 - weight) + activation


@pytest.fixture(scope="module")
def network():
    """The float network that the configs below name."""
    return small_cnn((28, 28, 1), width=4, stem_strides=2)


@pytest.fixture
def content(network):
    """A table of it, by hand."""
    operations = {}
    for number, cost in enumerate(layer_costs(network)):
        pairs = itertools.product(BITS, BITS)
        prices = {f"{a}/{w}": price(number, a, w) for a, w in pairs}
        if cost.edge:
            prices = {"8/8": 10.0 * (number + 1)}
        (text,) = cost.operations
        operations[text] = {"macs": cost.macs, "prices": prices}
    return {
        "format": FORMAT,
        "origin": {"device": "local", "cpu": "a processor", "container": "fast"},
        "operations": operations,
        "network": list(operations),
        "fixed_us": FIXED,
    }


@pytest.fixture
def written(tmp_path):
    """written(content) -> the path of a file that holds it."""

    def write(content):
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def load(name):
    """A config of the repository, of a network and a schedule of seconds."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.model.name, config.model.width, config.model.stem_strides = "small_cnn", 4, 2
    config.float.epochs, config.export.runs = 0, 3
    # Small graphs, as in the smoke runs of the recipes.
    config.train.update(batch_size=1000, optimizer="sgd", clip_norm=0.0)
    config.train.update(validate_every=3, optimize_graphs=False)
    return config


@pytest.fixture
def config(content, written):
    """MetaMix against 8 and 4 bits of weights."""
    config = load("quickstart")
    config.train.epochs, config.train.uniform = 3, False
    config.space.weight_bits = (8, 4)
    config.search.latency_table = written(content)
    return config


@pytest.fixture
def mixer(content, written):
    config = load("bitmixer_quickstart")
    config.mixer.stage_epochs = (1, 1, 1)
    config.mixer.images, config.mixer.front = 1000, 0
    config.mixer.operating_points = {"full": 1.0, "eco": 0.3}
    config.mixer.latency_table = written(content)
    return config


# --- the budget ------------------------------------------------------------------------------


def target(config, network):
    config = complete(config)
    (found,) = budget.search_budgets(config, budget.load_table(config), network)
    return found.limit


def test_a_target_is_of_the_unit_that_is_searched_against(config, network):
    a4w4 = FIXED + EDGES + price(1, 4, 4) + price(2, 4, 4)
    assert target(config, network) == pytest.approx(0.9 * a4w4)
    config.search.target_bops = 5e9  # as the recipes give it: of a search without a table
    assert target(config, network) == pytest.approx(0.9 * a4w4)
    config.search.target_latency = 150.0
    assert target(config, network) == 150.0
    config.search.latency_table, config.search.target_latency = "", None
    assert target(config, network) == 5e9


def test_every_config_takes_a_table_by_flag():
    for file in CONFIGS.glob("*.py"):
        config = runpy.run_path(str(file))["get_config"]()
        if "mixer" in config:
            config.mixer.latency_table = "table.json"
        else:
            config.search.latency_table, config.search.target_latency = "table.json", 8500.0
            config.search.accelerator = config.search.budget = ""
            config.space.weight_bits = (8, 4)
        complete(config)


# --- what is refused -------------------------------------------------------------------------

OTHER = "MAC layers are not those of the profiled model"


@pytest.mark.parametrize("name", ["quickstart", "bitmixer_quickstart"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: "{", "table.json: expected JSON"),
        (lambda c: "{}", "table.json: expected a file of metamix-profile"),
        (lambda c: c | {"fixed_us": None}, "expected a finished table"),
        (lambda c: c | {"network": c["network"][:-1]}, OTHER),
        (lambda c: c | {"operations": {}}, "Layer 'conv1': the latency table has no 'Conv2D 28x28"),
        (
            lambda c: c | {"origin": {"container": "smallest"}},
            "expected a table of weight container 'fast', .* found one of 'smallest'",
        ),
    ],
    ids=["no JSON", "other JSON", "unfinished", "other network", "no layer", "container"],
)
def test_a_bad_table_is_refused_before_training(
    name, spoil, message, config, mixer, content, written, tmp_path, capsys
):
    path = written(spoil(content))
    given, section = (config, "search") if name == "quickstart" else (mixer, "mixer")
    with pytest.raises(ValueError, match=message) as caught:
        train.run_experiment(given, tmp_path / "run")
    text = str(caught.value)
    assert text.startswith(f"config.{section}.latency_table={path!r}: ") and "\n" not in text
    assert "epoch" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"search.target_latency": 1.0}, r"target_latency=1.0: .*expected at least \d+(\.\d+)? us"),
        ({"search.target_ratio": 0.1}, r"target_ratio=0.1: .*expected at least \d+(\.\d+)? us"),
        (
            {"space.activation_bits": (8, 5)},
            "Layer 'conv2': the latency table has no 5 activation and 8 weight bits",
        ),
        ({"space.edge_bits": 4}, "Layer 'conv1': .* no 4 activation and 4 weight bits"),
    ],
)
def test_what_the_table_does_not_allow_is_refused(config, fields, message, tmp_path):
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=rf"latency_table='.*table.json': .*{message}"):
        train.run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_of_bits_that_were_not_measured_is_refused(config, content, written, tmp_path):
    for row in content["operations"].values():
        row["prices"] = {pair: us for pair, us in row["prices"].items() if "4" not in pair}
    written(content)
    config.space.activation_bits, config.space.weight_bits = (8, 3), 8
    with pytest.raises(ValueError, match=r"table.json': Layer 'conv2': .*4 activation and 4 wei"):
        train.run_experiment(config, tmp_path / "run")
    config.search.target_latency = 200.0  # what A4W4 takes does not matter then
    assert target(config, None) == 200.0


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, [kmm.Bops]),
        ({"target_size": "20 kB"}, [kmm.Size]),
        ({"target_bops": 1e6, "target_size": 2e4}, [kmm.Size]),  # a recipe's target_bops
        ({"budget": "bops,size", "target_bops": 1e6}, [kmm.Bops, kmm.Size]),
        ({"target_size": "20 kB"}, [kmm.Size, kmm.Latency]),
        ({"budget": "latency,bops"}, [kmm.Latency, kmm.Bops]),
    ],
    ids=str,
)
def test_a_config_s_budgets_are_of_the_kinds_that_it_gives(fields, kinds, config, network):
    if kmm.Latency not in kinds:
        config.search.latency_table = ""
    config.search.update(fields)
    given = complete(config)
    found = budget.search_budgets(given, budget.load_table(given), network)
    assert [type(one) for one in found] == kinds
    uniform = kmm.QuantizedModel.from_float(network, 4, 4)
    for one in found:
        target = {kmm.Bops: fields.get("target_bops"), kmm.Size: fields.get("target_size")}
        if (expected := target.get(type(one))) is None:  # 0.9 of what A4W4 costs
            cost = type(one)(one.table, 1.0) if isinstance(one, kmm.Latency) else type(one)(1.0)
            expected = 0.9 * cost.priced(uniform).total(uniform.bit_assignment)
        assert one.limit == pytest.approx(20e3 if expected == "20 kB" else expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"search.budget": "latency"}, "latency_table: expected the file of metamix-profile"),
        (
            {"search.budget": "bops", "search.target_size": 2e4},
            "budget: expected size in it beside",
        ),
        ({"search.budget": "joules"}, "budget: expected some of bops, size, latency, .*'joules'"),
        ({"search.budget": "bops,bops"}, "budget: .*each once"),
        ({"search.target_size": "3 apples"}, "target_size: Size: expected bytes.*'3 apples'"),
        ({"search.target_size": "1 kB"}, r"target_size=1 kB: Size\(1000\): expected at least"),
        (
            {"search.budget": "bops,size", "search.target_size": 9e9, "search.target_bops": 1.0},
            "target_bops=1.0: .*expected at least",
        ),
    ],
    ids=str,
)
def test_bad_budgets_are_refused_before_training(fields, message, config, tmp_path):
    config.search.latency_table = ""
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=rf"config\.(search\.)?{message}"):
        train.run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_table_is_the_only_cost_of_operating_points(mixer, tmp_path):
    mixer.mixer.budget = "size"
    message = r"config.mixer.budget: expected latency .*latency_table='.*found 'size'"
    with pytest.raises(ValueError, match=message):
        train.run_experiment(mixer, tmp_path / "run")


def test_a_table_without_a_target_is_refused(config, tmp_path):
    with config.ignore_type():
        config.search.target_bops, config.search.target_ratio = 1e9, None
    with pytest.raises(
        ValueError, match="config.search.target_latency: expected it, or target_ratio"
    ):
        train.run_experiment(config, tmp_path / "run")


# --- prices by Vela --------------------------------------------------------------------------


@pytest.fixture
def npu(config):
    """The config with an accelerator in the place of a table, and what its files have to be."""
    config.search.latency_table, config.search.accelerator = "", "ethos-u55-128"
    config.space.activation_bits, config.export.weight_container = (8,), "int8"
    config.model.width = 16
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accelerator": "ethos-u55"}, "accelerator: expected one of .*ethos-u55-32.*'ethos-u55'"),
        ({"latency_table": "a.json"}, "accelerator: expected no latency_table .*found 'a.json'"),
        ({"budget": "bops"}, "budget: expected latency in it beside accelerator='ethos-u55-128'"),
    ],
    ids=str,
)
def test_an_accelerator_is_the_only_source_of_prices(fields, message, npu):
    npu.search.update(fields)
    with pytest.raises(ValueError, match=f"config.search(: |.){message}"):
        complete(npu)


@needs_vela
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"export.weight_container": "fast"}, "weight container 'fast', .*found one of 'int8'"),
        ({"search.target_latency": 0.1}, "target_latency=0.1: Latency.*expected at least .* us"),
        ({"space.weight_bits": (8, 3)}, "the latency table has no 8 activation and 4 weight bits"),
    ],
    ids=str,
)
def test_what_an_accelerator_does_not_allow_is_refused(fields, message, npu, tmp_path, capsys):
    npu.update_from_flattened_dict(fields)
    where = "config.search.accelerator='ethos-u55-128': "
    with pytest.raises(ValueError, match=f"{where}.*{message}"):
        train.run_experiment(npu, tmp_path / "run")
    assert "epoch" not in capsys.readouterr().out and not (tmp_path / "run").exists()


@needs_vela
@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_priced_by_its_own_float_network(npu, tmp_path, capsys):
    npu.float.epochs, npu.search.target_ratio = 1, 1.0
    train.run_experiment(npu, tmp_path)
    (found,) = read_results(tmp_path).search.budgets
    assert found.source == budget.TABLE and found.origin["accelerator"] == "ethos-u55-128"
    table = kmm.LatencyTable.load(tmp_path / budget.TABLE)
    model = keras.models.load_model(tmp_path / "model.keras")
    costs, bits = layer_costs(model), kmm.BitAssignment.load(tmp_path / "bits.json")
    assert table.predict(costs, bits) == found.found <= found.limit
    assert found.limit == table.predict(costs, kmm.uniform_assignment(model, 8, 4))
    vela = ethosu.compiler(ethosu.Options("ethos-u55-128"))
    compiled = vela.compile("model", (tmp_path / "model.tflite").read_bytes())
    assert found.written == compiled.microseconds
    assert found.written == pytest.approx(found.found, rel=0.05)  # weights have moved
    floats = keras.models.load_model(tmp_path / "float.keras")
    anew = budget.npu_table(complete(npu), floats)
    assert kmm.LatencyTable.of(anew, "").layers == table.layers
    assert f"{found.written:,.1f} us compiled, of {found.limit:,.1f} us" in capsys.readouterr().out


# --- a folder of another run -----------------------------------------------------------------


def opened(config, folder):
    config = complete(config)
    Session(config, None, folder, table=budget.load_table(config)).open()


def test_a_folder_holds_the_run_of_one_table(config, content, written, tmp_path):
    folder = tmp_path / "run"
    opened(config, folder)
    (folder / CHECKPOINTS).mkdir()
    opened(config, folder)
    written(json.dumps(content | {"date": "2026-01-01"}, indent=1))  # the same times
    opened(config, folder)
    written(content | {"fixed_us": FIXED + 1})
    with pytest.raises(ValueError, match=r"config.search.latency_table='.*SHA-256 \w+\).*, found "):
        opened(config, folder)


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_a_run_tells_of_its_latency(config, tmp_path, capsys):
    least = FIXED + EDGES + price(1, 3, 8) + price(2, 3, 8)
    config.search.target_latency = least + 2.0  # not even two activations of 4 bits more
    train.run_experiment(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"MetaMix: budget {least + 2:,.1f} us" in printed
    results = read_results(tmp_path / "run")
    bits = kmm.BitAssignment.load(tmp_path / "run" / "bits.json")
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    mt.verify((tmp_path / "run" / "model.tflite").read_bytes(), bits)
    layers = [bits[name] for name in ("conv2", "conv3")]
    assert [layer.weight for layer in layers] == [8, 8]
    predicted = FIXED + EDGES
    predicted += sum(price(n, b.activation, b.weight) for n, b in enumerate(layers, 1))
    (found,) = results.search.budgets
    assert (found.cost, found.limit, found.found) == ("latency_us", least + 2, predicted)
    assert found.source == config.search.latency_table
    assert found.origin == {"device": "local", "cpu": "a processor", "container": "fast"}
    table = budget.load_table(complete(config))
    assert predicted == table.predict(layer_costs(model), bits) <= least + 2
    assert results.epochs[-1].costs["latency_us"] == predicted
    assert results.epochs[-1].costs["bops"] == kmm.bops(model, bits)
    assert f"latency {predicted:,.1f} us of {least + 2:,.1f} us; " in printed
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"budget {least + 2:.0f} µs of predicted latency (" in page
    assert page.count(f"; {predicted:.0f} µs predicted, ") == 1


@pytest.mark.slow
@pytest.mark.long  # half a minute, and `test_a_run_tells_of_its_latency` goes the same way
def test_operating_points_are_of_the_table(mixer, tmp_path):
    train.run_experiment(mixer, tmp_path / "run")
    table = budget.load_table(complete(mixer))
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    costs = {
        name: table.predict(
            layer_costs(model), kmm.BitAssignment.load(tmp_path / "run" / f"{name}.bits.json")
        )
        for name in ("full", "eco")
    }
    # In this table the most bits are the fastest: each halving of the weights costs more.
    uniform = [table.predict(layer_costs(model), model.uniform_bits(bits)) for bits in (4, 3, 2)]
    low, high = min(uniform), max(uniform)
    assert low <= costs["eco"] <= low + 0.3 * (high - low) and costs["full"] <= high
    notes = read_results(tmp_path / "run").notes
    for name, us in costs.items():
        assert any(f"{name!r}: {us:,.1f} us predicted" in note for note in notes), notes
