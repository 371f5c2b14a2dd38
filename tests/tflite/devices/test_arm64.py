"""`arm64`: LiteRT's aarch64 kernels under emulation, and what is said where that cannot be."""

import json
import os
import shutil
import sys
from pathlib import Path

import keras
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.devices import DeviceUnavailable, arm64_root, measure
from metamix_tflite.devices.arm64_cpu import CPUS, show
from metamix_tflite.devices.arm64_root import ready_root

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import arm64_operators

emulated = pytest.mark.skipif(
    "ARM64_TESTS" not in os.environ or shutil.which("qemu-aarch64-static") is None,
    reason="downloads 100 MB and emulates: set ARM64_TESTS=1 and install qemu-user-static",
)


def gates():
    """A network with an operator of each kind but the sums."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Cropping2D(1, name="crop")(layers.ZeroPadding2D(1, name="pad")(image))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish", name="stem")(x)
    scale = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    scale = layers.Conv2D(4, 1, activation="relu", name="squeeze")(scale)
    scale = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(scale)
    x = layers.Multiply(name="scaled")([x, scale])
    x = layers.DepthwiseConv2D(3, padding="same", activation="tanh", name="depthwise")(x)
    x = layers.Activation("hard_swish", name="hard")(layers.Conv2D(8, 1, name="pointwise")(x))
    x = layers.Concatenate(name="both")([x, layers.MaxPooling2D(3, 1, "same", name="most")(x)])
    x = layers.AveragePooling2D(2, name="average")(x)
    x = layers.BatchNormalization(name="lone")(x)
    x = layers.Flatten(name="flat")(layers.ReLU(6.0, name="relu6")(x))
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="gates")


def moves():
    """A network that moves values, and reduces axes, in all ways that files have."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.ops.concatenate([image[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    left, right = keras.ops.split(x, 2, axis=-1)
    x = keras.ops.stack([left, layers.Conv2D(4, 1, name="half")(right)], axis=-1)
    x = layers.Conv2D(8, 1, name="shuffled")(layers.Reshape((4, 4, 8))(x))
    gates = [f(x, -1, keepdims=True) for f in (keras.ops.mean, keras.ops.max, keras.ops.sum)]
    x = x * layers.Conv2D(1, 3, padding="same", name="gate")(keras.ops.concatenate(gates, -1))
    x = layers.Dense(5, name="rows")(layers.Permute((3, 1, 2), name="turned")(x))
    return keras.Model(
        image, layers.Dense(5, name="logits")(keras.ops.min(x, (1, 2))), name="moves"
    )


@emulated
@pytest.mark.slow
def test_arm_s_kernels_give_the_trained_integers(quantized):
    from keras_metamix.zoo.small import small_mobilenet, small_resnet

    files = {}
    for make in (gates, moves, small_mobilenet, small_resnet):
        for seed in range(2):  # the fixture's networks have dead channels, and all bit-widths
            keras.utils.set_random_seed(seed)
            model, _ = quantized(make(), seed)
            files[f"{make.__name__} {seed}"] = mt.convert(model)
    report = measure("arm64", files)
    assert [(row["file"], row["cpu"]) for row in report.rows] == [
        (name, cpu) for name in files for cpu in CPUS
    ]
    assert [row["differing"] for row in report.rows] == [0] * len(CPUS) * len(files)
    assert all(row["delegated"] and row["values"] > 0 for row in report.rows)


@emulated
@pytest.mark.slow
def test_each_form_of_operator_gives_the_trained_integers_on_plain_neon():
    files = {name: arm64_operators.convert(form, 1) for name, form in arm64_operators.FORMS.items()}
    rows = {row["file"]: row for row in measure("arm64", files, cpus=["cortex-a53"]).rows}
    assert {name: row["differing"] for name, row in rows.items()} == dict.fromkeys(files, 0)
    assert [name for name, row in rows.items() if not row["delegated"]] == ["GELU"]


@emulated
@pytest.mark.slow
def test_builtin_kernels_round_otherwise_on_arm_too(resnet):
    report = measure("arm64", {"model": resnet[2]}, kernels=["builtin"], cpus=["cortex-a53"])
    assert [(row["kernels"], row["delegated"]) for row in report.rows] == [("builtin", False)]
    assert report.rows[0]["values"] == 20


@emulated
@pytest.mark.slow
def test_a_file_that_the_emulated_litert_refuses_is_named(resnet, remake):
    def edit(model):
        model.operatorCodes[0].version = 99

    with pytest.raises(OSError, match=r"model: the emulated LiteRT fails: .+"):
        measure("arm64", {"model": remake(resnet[2], edit)})


def test_without_the_emulator_it_says_how_to_get_it(resnet, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceUnavailable, match=r"qemu-aarch64-static is not on the PATH: .*apt"):
        measure("arm64", {"model": resnet[2]})


def test_a_file_without_golden_outputs_is_named(resnet):
    with pytest.raises(ValueError, match="^plain: The file holds no golden outputs"):
        measure("arm64", {"plain": mt.convert(resnet[0], golden=0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": ["fast"]}, "kernels: expected one of .* found 'fast'"),
        ({"cpus": ["m1"]}, "--cpus: expected some of cortex-a53, neoverse-n1, armv8.6, found 'm1'"),
        ({"cpus": []}, "--cpus: expected some of"),
        ({"timeout": 0}, "timeout: expected at least 1, found 0"),
        ({"threads": 2}, "--threads: device 'arm64' takes --kernels"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        measure("arm64", {}, **options)


# --- the folder ----------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """tools(name, script) puts a program on the PATH, where nothing else is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def test_a_ready_folder_is_taken_as_it_is(tmp_path, tools, monkeypatch):
    monkeypatch.setattr(arm64_root.importlib.metadata, "version", lambda _: "2.3.0")
    held = {"python": "usr/bin/python3.11", "ai-edge-litert": "2.3.0"}
    (tmp_path / "keras-metamix.json").write_text(json.dumps(held))
    assert ready_root(tmp_path) == held  # no tool is there that could make it anew


def test_somebody_s_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="--arm64_root: expected an empty folder or one of ours"):
        ready_root(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "arm64: apt-get is not on the PATH"),
        ("echo 'Temporary failure resolving' >&2; exit 100", "apt-get fails: Temporary failure"),
        ("exit 7", "apt-get fails: nothing"),
        ("exit 0", "apt-get downloaded no package"),
    ],
)
def test_where_debian_cannot_be_reached_nothing_is_left(script, message, tmp_path, tools):
    if script is not None:
        tools("apt-get", script)
    root = tmp_path / "cache" / "arm64"
    with pytest.raises(DeviceUnavailable, match=message):
        ready_root(root)
    assert not list(root.parent.iterdir())


def test_a_folder_is_made_of_packages_and_wheels(tmp_path, tools, monkeypatch):
    # apt-get leaves a package in its cache, dpkg-deb unpacks it, pip's command is recorded.
    tools(
        "apt-get",
        """case "$*" in *download-only*)
           while IFS= read -r line; do
             case "$line" in Dir::Cache*) cache=${line#*\\"};; esac
           done < "$APT_CONFIG"
           : > "${cache%%\\"*}/archives/python3_arm64.deb";; esac""",
    )
    tools("dpkg-deb", '/bin/mkdir -p "$3/usr/bin" && : > "$3/usr/bin/python3.11"')
    tools("python", f'echo "$*" > {tmp_path}/pip')
    monkeypatch.setattr(arm64_root.sys, "executable", "python")
    monkeypatch.setattr(arm64_root.importlib.metadata, "version", lambda _: "2.3.0")
    root = tmp_path / "cache" / "arm64"
    held = ready_root(root)
    assert held == {"python": "usr/bin/python3.11", "ai-edge-litert": "2.3.0"}
    assert (root / held["python"]).is_file()
    assert [p.name for p in root.parent.iterdir()] == ["arm64"]
    pip = (tmp_path / "pip").read_text()
    for argument in ("--python-version=3.11", "_aarch64", "--only-binary=:all:", "litert==2.3.0"):
        assert argument in pip

    monkeypatch.setattr(arm64_root.importlib.metadata, "version", lambda _: "2.4.0")
    assert ready_root(root)["ai-edge-litert"] == "2.4.0"  # of another version: made anew
    assert [p.name for p in root.parent.iterdir()] == ["arm64"]


@pytest.mark.parametrize("cpu", CPUS)
def test_a_cpu_s_files_stand_beside_the_folder_s(cpu, tmp_path):
    root, view = tmp_path / "root", tmp_path / "view"
    for folder in (root / "usr" / "bin", root / "proc", view):
        folder.mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text("another")
    show(root, cpu, view)
    assert (view / "usr" / "bin").is_dir()
    info = dict(
        line.split("\t: ") for line in (view / "proc/cpuinfo").read_text().splitlines()[:-1]
    )
    assert info["CPU part"] == CPUS[cpu].part and info["processor"] == "0"
    features = {"asimddp", "i8mm"} & set(info["Features"].split())
    assert len(features) == [*CPUS].index(cpu)
    assert (view / "sys/devices/system/cpu/online").read_text() == "0\n"
    assert (root / "proc" / "cpuinfo").read_text() == "another"


def test_levels_of_a_dead_channel_fit_arm(quantized):
    # Its scale is small and its bias large: INT4 kernels for ARM hold 16 times the sum.
    from keras_metamix.layers.integer import IntegerMac
    from keras_metamix.zoo.small import small_mobilenet

    model, _ = quantized(small_mobilenet(), 0)
    sums = [
        layer.largest_sum()
        for layer in kmm.fold_batch_norm(model).layers
        if isinstance(layer, IntegerMac)
    ]
    assert 2**26 < max(sums) < 2**27
