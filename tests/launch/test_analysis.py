"""`metamix-report --analyse`: what it measures on a run's float network."""

import json

import keras
import numpy as np
import pytest
from ml_collections import config_flags  # noqa: F401  a config file takes it

from configs import bitmixer_quickstart, quickstart
from keras_metamix import data, zoo
from keras_metamix.launch import analysis, report
from keras_metamix.launch.config import complete
from keras_metamix.report import read_results


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What `metamix-train` leaves of a small float network that saw the data for a moment."""
    monkeypatch.setattr(analysis, "_MOST_STEPS", 3)
    monkeypatch.setattr(analysis, "_SAMPLES", 2)
    config = quickstart.get_config()
    config.train.batch_size = 64
    (tmp_path / "config.json").write_text(json.dumps(complete(config).to_dict()))
    (images, labels), _ = data.load_extract()
    keras.utils.set_random_seed(0)
    model = zoo.small_cnn(width=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    images = np.asarray(data.normalize(images[:500]))
    model.fit(images, labels[:500], batch_size=50, epochs=2, verbose=0)
    model.save(tmp_path / "float.keras")
    facts = {"config": {}, "date": "", "versions": {}, "machine": "", "command": "", "seconds": 1}
    empty = dict.fromkeys(("rows", "layers", "epochs", "notes"), [])
    metrics = {"title": "t", "metrics": ["accuracy"], "run": facts, **empty, "kept": "as it is"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


@pytest.mark.slow
def test_an_analysis_goes_into_the_metrics(run, command):
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
