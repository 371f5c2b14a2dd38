"""A table of Vela's estimates: what it predicts of mixed assignments against what Vela compiles."""

import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch import benchmark, profile
from metamix_tflite.devices import ethosu

pytestmark = pytest.mark.skipif(
    not Path(sys.executable).with_name("vela").exists(),
    reason="Vela is not installed (pip install ethos-u-vela)",
)
BITS = (8, 4, 2)
# Of predicted cycles: what was measured on other networks, docs/devices/ethosu.md.
TOLERANCE = {"ethos-u55-128": 0.01, "ethos-u85-256": 0.02}


@pytest.fixture(scope="module")
def source():
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu", name="stem")(image)
    y = layers.Conv2D(32, 3, padding="same", activation="relu", name="in")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(y)
    x = layers.Add(name="sum")([x, layers.Conv2D(16, 1, name="out")(y)])
    x = layers.Conv2D(64, 3, 2, "same", activation="relu", name="wide")(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="deep")(x)
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(name="pool")(x))
    return keras.Model(image, layers.Dense(7, name="logits")(x), name="mixed")


@pytest.fixture(scope="module")
def model(source):
    found = kmm.MetaMixModel.from_float(source, kmm.SearchSpace(8, BITS))
    kmm.calibrate(found, np.random.default_rng(2).normal(size=(8, 16, 16, 3)).astype("float32"))
    return found


@pytest.fixture(scope="module")
def mixed(source, model):
    """Random assignments, each with most layers at another bit-width, and a file of each."""
    rng, costs, found = np.random.default_rng(3), kmm.layer_costs(source), []
    for most in BITS:
        weight = {c.name: 8 if c.edge else int(rng.choice([*BITS, most, most])) for c in costs}
        bits = kmm.BitAssignment(dict.fromkeys(weight, 8), weight)
        model.set_bits(bits)
        found.append((bits, mt.convert(model, "ethosu", golden=0)))
    return found


@pytest.fixture(scope="module")
def tables(source, tmp_path_factory):
    """A folder with the model and a table for each accelerator."""
    folder = tmp_path_factory.mktemp("tables")
    source.save(folder / "float.keras")
    for accelerator in TOLERANCE:
        flags = ("--device=ethosu", f"--accelerator={accelerator}", "--weight_bits=8,4,2")
        flags += (f"--output={folder}/{accelerator}.json", str(folder / "float.keras"))
        profile.main(profile.parse_flags(["metamix-profile", *flags]))
    return folder


@pytest.mark.parametrize("accelerator", TOLERANCE)
def test_mixed_assignments_are_predicted(tables, source, model, mixed, accelerator):
    table = kmm.LatencyTable.load(tables / f"{accelerator}.json")
    vela = ethosu.compiler(ethosu.Options(accelerator))
    tolerance, costs = TOLERANCE[accelerator], kmm.layer_costs(source)
    priced = kmm.Latency(table, share=0.5).priced(model)
    flash = kmm.Priced(table.weight_bytes, share=0.5, fixed=table.fixed_bytes).priced(model)
    times = set()
    for bits, flat in mixed:
        compiled = vela.compile("mixed", flat)
        times.add(compiled.cycles)
        assert table.predict(costs, bits) == pytest.approx(compiled.microseconds, rel=tolerance)
        assert priced.total(bits) == pytest.approx(table.predict(costs, bits), rel=1e-12)
        assert flash.total(bits) == pytest.approx(compiled.read_only_bytes, rel=0.01)
    assert max(times) > 1.1 * min(times)  # else one price for all would have passed


def test_predictions_stand_beside_what_is_compiled(tables, command, source, mixed, monkeypatch):
    monkeypatch.chdir(tables)
    table = kmm.LatencyTable.load("ethos-u85-256.json")
    (bits, flat), *_ = mixed
    Path("chosen.tflite").write_bytes(flat)
    flags = ("chosen.tflite", "--device=ethosu", "--latency_table=ethos-u85-256.json")
    flags += ("--json=out.json", "--accelerator=ethos-u85-256")
    status, out, err = command(benchmark, *flags)
    assert (status, err) == (0, "")
    (row, *_), notes = (json.loads(Path("out.json").read_text())[k] for k in ("rows", "notes"))
    clock = row["cycles"] / row["time_us"]
    predicted = table.predict(kmm.layer_costs(source), bits) * clock
    assert row["predicted_cycles"] == pytest.approx(predicted, abs=1)
    pattern = r"chosen\.tflite: ([\d,]+) cycles predicted, ([\d,]+) compiled \([+-]0\.\d\d %\); "
    (told,) = (m for note in notes if (m := re.match(pattern, note)))
    assert told[2] == f"{row['cycles']:,}" and told[0] in out

    status, _, err = command(benchmark, *flags[:3])
    assert status == 1 and "u85-256.json: expected one of accelerator 'ethos-u55-256', sys" in err
    status, _, err = command(benchmark, "chosen.tflite", flags[2])
    assert status == 1 and "--latency_table: expected --device=ethosu beside it" in err
    flags = ("--output=ethos-u85-256.json", "--device=ethosu")
    status, _, err = command(profile, "float.keras", *flags)
    assert status == 1 and "--output=ethos-u85-256.json: is there" in err


def test_a_table_of_other_layers_or_bits_is_refused(tables):
    table = kmm.LatencyTable.load(tables / "ethos-u85-256.json")
    pairs = dict.fromkeys(table.layers, (8, 8))
    with pytest.raises(ValueError, match=r"layer 'deep': the table has no 8 activation and 5"):
        table.predict_file(pairs | {"deep": (8, 5)})
    with pytest.raises(ValueError, match="expected a table of the layers"):
        table.predict_file({"other": (8, 8)})
    image = keras.Input((16, 16, 3))
    x = layers.Flatten()(layers.Conv2D(4, 5, name="stem")(image))
    other = keras.Model(image, layers.Dense(2, name="logits")(x))
    with pytest.raises(ValueError, match=r"Layer 'stem': the latency table has no 'Conv2D 16x16x3"):
        table.prices(kmm.layer_costs(other))
