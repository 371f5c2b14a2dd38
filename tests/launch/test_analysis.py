"""`metamix-report --analyse`: what it measures on a run's float network."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from ml_collections import config_flags  # noqa: F401  a config file takes it

from configs import bitmixer_quickstart, quickstart
from keras_metamix.launch import analysis, report
from keras_metamix.launch.config import complete
from keras_metamix.report import read_results


@pytest.fixture
def run(tmp_path):
    """The config and the metrics of a run."""
    config = quickstart.get_config()
    config.train.batch_size = 32
    (tmp_path / "config.json").write_text(json.dumps(complete(config).to_dict()))
    facts = {"config": {}, "date": "", "versions": {}, "machine": "", "command": "", "seconds": 1}
    empty = {key: [] for key in ("rows", "layers", "epochs", "notes")}
    metrics = {"title": "t", "metrics": ["accuracy"], "run": facts, **empty, "kept": "as it is"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def _network():
    """Four MAC layers, untrained; what is between the ends is searched."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((28, 28, 1), name="image")
    for name, strides in (("stem", 4), ("first", 1), ("second", 2)):
        x = layers.Conv2D(4, 3, strides, "same", use_bias=False, name=name)(x)
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="small")


@pytest.mark.slow
def test_an_analysis_goes_into_the_metrics(run, command, monkeypatch):
    for name, value in {"_MOST_STEPS": 3, "_SAMPLES": 2, "_BATCHES": 2}.items():
        monkeypatch.setattr(analysis, name, value)
    _network().save(run / "float.keras")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    status, printed, _ = command(report, str(run), "--analyse")
    assert status == 0 and "activation instability: 3 steps, bit-meta" in printed
    found = read_results(run).analysis
    assert json.loads((run / "metrics.json").read_text())["kept"] == "as it is"
    for name in ("config.json", "float.keras"):
        assert (run / name).read_bytes() == before[name]

    instability = found.instability
    assert instability.bits == [8, 4, 3] and instability.weight_bits == "4 bits"
    assert [(state.name, state.weights) for state in instability.states] == [
        (name, weights)
        for name in ("float network", "random bits", "bit-meta")
        for weights in ("float", "quantized")
    ]
    for state in instability.states:
        first, *others = state.change.values()
        assert first == [0, 0]  # its input has 8 bits whatever is searched
        assert all(three > 0 and four > 0 for four, three in others)
        assert np.mean([change[1] for change in others]) > np.mean([c[0] for c in others])
        assert all(0.95 < sum(shares) <= 1 for shares in state.histogram)
    assert {name: len(curve) for name, curve in instability.traces.items()} == dict.fromkeys(
        ("8 bits", "random bits", "bit-meta"), 3
    )
    assert instability.traced in instability.states[0].change
    assert [*found.traces][-1] == "logits" and all(t.error > 0 for t in found.traces.values())
    assert found.gaussian[0].variance[0] == pytest.approx(1, abs=0.01)
    page = (run / "report.html").read_text()
    assert "Activation instability" in page and "Running variance of" in page


def test_what_an_analysis_needs_is_said(run, command):
    config = complete(bitmixer_quickstart.get_config())
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    status, _, said = command(report, str(run), "--analyse")
    assert status == 1 and "expected a run of MetaMix, found config.method='bitmixer'" in said
    (run / "config.json").unlink()
    status, _, said = command(report, str(run), "--analyse")
    assert status == 1
    assert f"--analyse={run}: expected what metamix-train leaves there, found no config" in said
