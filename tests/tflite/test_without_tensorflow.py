"""Running, verifying and timing files needs neither TensorFlow nor Keras."""

import subprocess
import sys
import textwrap

import numpy as np

import metamix_tflite as mt

PROGRAM = """
    import json
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("tensorflow", "keras", "jax", "torch"):
                raise ModuleNotFoundError(f"{name} is not installed here", name=name)

    sys.meta_path.insert(0, Refuse())
    import numpy as np
    import metamix_tflite as mt

    folder = Path(sys.argv[1])
    flat = (folder / "model.tflite").read_bytes()
    layers = json.loads((folder / "bits.json").read_text())["layers"]
    bits = SimpleNamespace(
        activation_bits={name: entry["activation_bits"] for name, entry in layers.items()},
        weight_bits={name: entry["weight_bits"] for name, entry in layers.items()},
    )
    graph = mt.verify(flat, bits)
    assert len(graph.metadata["layers"]) == len(bits.weight_bits)
    images = np.load(folder / "images.npy")
    found = mt.Runner(flat, batch_size=5).predict(images)
    np.testing.assert_array_equal(found, np.load(folder / "outputs.npy"))
    report = mt.benchmark(flat, runs=3, warmup=1)
    assert report.delegated and report.runs == 3
    switching = mt.OperatingPointRunner((folder / "points.tflite").read_bytes())
    assert [*switching.measure(runs=2, warmup=0)] == ["same"]
    np.testing.assert_array_equal(switching.predict(images[:3]), found[:3])
    loaded = {m.partition(".")[0] for m in sys.modules} & {"tensorflow", "keras"}
    assert not loaded, loaded
    print("ran without TensorFlow")
"""


def test_a_device_needs_litert_alone(tmp_path, resnet):
    model, images, flat, bits = resnet
    (tmp_path / "model.tflite").write_bytes(flat)
    points = mt.convert(model, operating_points={"same": bits})
    (tmp_path / "points.tflite").write_bytes(points)
    bits.save(tmp_path / "bits.json")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "outputs.npy", mt.Runner(flat).predict(images))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "ran without TensorFlow"
