"""The metrics of a made-up run of twelve layers."""

import math

import numpy as np
import pytest

from keras_metamix.report.pictures import encoded

LAYERS = [
    # name, MACs, weights, activation bits, weight bits, searched
    ("stem", 1_806_336, 288, 8, 8, False),
    ("block_1_expand", 1_605_632, 2_048, 4, 4, True),
    ("block_1_depthwise", 903_168, 576, 8, 4, True),
    ("block_1_project", 802_816, 1_024, 4, 4, True),
    ("block_2_expand", 1_204_224, 6_144, 3, 4, True),
    ("block_2_depthwise", 169_344, 864, 4, 4, True),
    ("block_2_project", 602_112, 3_072, 3, 4, True),
    ("block_3_expand", 903_168, 18_432, 4, 4, True),
    ("block_3_depthwise", 84_672, 1_728, 8, 4, True),
    ("block_3_project", 903_168, 18_432, 3, 4, True),
    ("head", 1_204_224, 24_576, 4, 4, True),
    ("logits", 2_560, 2_560, 8, 8, False),
]


def _row(name, accuracy, bops, bits, size, latency, parity, file):
    return {
        "name": name, "scores": {"accuracy": accuracy}, "bops": bops, "average_bits": bits,
        "file_bytes": size, "latency_us": latency,
        "latency_spread_us": [0.96 * latency, 1.11 * latency], "threads": 1, "parity": parity,
        "file": f"{file}.tflite",
    }  # fmt: skip


def _parity(differing, delegated=True):
    return {
        "differing": differing, "outputs": 20_000, "max_lsb": min(differing, 1),
        "top1_agreement": 1 - differing / 20_000, "delegated": delegated,
    }  # fmt: skip


def _layers():
    return [
        {
            "name": name, "kind": "DepthwiseConv2D" if "depthwise" in name else "Conv2D",
            "macs": macs, "bops": macs * a * w, "activation_bits": a, "weight_bits": w,
            "weights": weights, "container": "INT8" if w == 8 else "INT4", "searched": searched,
        }
        for name, macs, weights, a, w, searched in LAYERS
    ]  # fmt: skip


def _epochs():
    phases = ["bit_meta", "bit_search"] * 4 + ["weight_training"] * 12
    return [
        {
            "epoch": index, "phase": phase, "loss": 2 / (index + 2),
            "score": 0.92 - 0.4 / (index + 1) - (0.05 if phase == "bit_search" else 0),
            "validation_loss": 2.1 / (index + 2), "validation_score": 0.91 - 0.35 / (index + 1),
            "costs": {"bops": 270_000_000 if index < 8 else 189_000_000}, "seconds": 15.0,
        }
        for index, phase in enumerate(phases)
    ]  # fmt: skip


def _alphas():
    steps = list(range(0, 4000, 10))
    history = {}
    for place, (name, *_, bits, _, searched) in enumerate(LAYERS):
        if searched:
            history[name] = []
            for step in steps:
                pull = step / 1000 * (0.5 + 0.1 * place)
                weights = [math.exp(pull * (candidate == bits)) for candidate in (8, 4, 3)]
                history[name].append([weight / sum(weights) for weight in weights])
    return {"candidates": {name: [8, 4, 3] for name in history}, "history": history, "steps": steps}


@pytest.fixture
def latency_metrics(metrics):
    """Those of a search against a latency table."""
    for number, epoch in enumerate(metrics["epochs"]):
        epoch["costs"]["latency_us"] = 230.0 - number
    budget = {"cost": "latency_us", "limit": 220.0, "found": 211.0, "source": "t<able>.json"}
    metrics["search"]["budgets"] = [budget]
    return metrics


@pytest.fixture
def analysed_metrics(metrics):
    """Those that `metamix-report --analyse` leaves, of three layers."""
    names = [name for name, *_ in LAYERS[1:4]]
    states = [
        {
            "name": name, "weights": weights,
            "change": {layer: [0.01 * place, factor * place] for place, layer in enumerate(names)},
            "histogram": [[0.3, 0.4, 0.3], [0.25, 0.5, 0.25], [0.2, 0.6, 0.2]],
        }
        for name, factor in (("float network", 0.3), ("bit-meta", 0.2))
        for weights in ("float", "quantized")
    ]  # fmt: skip
    traces = {"8 bits": [1.0, 1.0], "random bits": [0.8, 0.7], "bit-meta": [0.9, 0.9]}
    instability = {
        "bits": [8, 4, 3], "weight_bits": "4 bits", "states": states, "steps": 2,
        "layer": names[1], "edges": [-1.5, -0.5, 0.5, 1.5], "traced": names[2], "traces": traces,
    }  # fmt: skip
    analysis = {
        "instability": instability,
        "gaussian": [{"grid": "signed", "rule": "lsq", "bits": [8, 2], "variance": [1.0, 1.08]}],
        "traces": {
            name: {"trace": trace, "error": 0.5}
            for name, trace in zip(names, (4.0, 2.0, -1.0), strict=True)
        },
        "note": "Estimates from 24 samples.",
    }
    return metrics | {"analysis": analysis}


@pytest.fixture
def mask_metrics(metrics):
    """Those of a segmentation: two metrics, and two test images of 4 x 6 pixels."""
    metrics["metrics"] = ["mean IoU", "pixel accuracy"]
    for row in metrics["rows"]:
        row["scores"] = {"mean IoU": 0.62, "pixel accuracy": row["scores"]["accuracy"]}
    numbers = np.arange(48, dtype=np.uint8).reshape(2, 4, 6, 1)
    names = ["images", "truth", "found"]
    pictures = dict(zip(names, (5 * numbers, numbers % 3, numbers % 2), strict=True))
    found = {name: encoded(pixels) for name, pixels in pictures.items()}
    masks = {"name": "MetaMix", "classes": ["ground", "t<op>", "bag"], **found}
    return metrics | {"masks": masks}


@pytest.fixture
def mixer_metrics(metrics):
    """Those of a Bit-Mixer with two operating points."""
    names = ("full", "eco")
    rows = [metrics["rows"][0]]
    for name, accuracy, bops in zip(
        names, (0.9102, 0.8950), (189_000_000, 70_000_000), strict=True
    ):
        rows.append(_row(name, accuracy, bops, [4.0, 4.0], 70_120, 216, _parity(0), "model"))
    for epoch in metrics["epochs"]:
        epoch["costs"] = {}
    front = [("", 150e6, 0.905), ("full", 189e6, 0.9104), ("eco", 70e6, 0.8951)]
    mixer = {
        "unit": "BOPs",
        "points": [
            {"name": name, "cost": cost, "budget": 1.01 * cost, "score": accuracy}
            for name, cost, accuracy in front
        ],
        "uniform": [
            {"bits": bits, "cost": cost, "score": 0.9} for bits, cost in ((4, 189e6), (2, 60e6))
        ],
        "separate_bytes": 132_000,
    }
    del metrics["search"]
    return metrics | {"rows": rows, "mixer": mixer}


@pytest.fixture
def metrics():
    final = {name: bits for name, *_, bits, _, _ in LAYERS}
    return {
        "title": "quickstart",
        "metrics": ["accuracy"],
        "run": {
            "config": {"train": {"batch_size": 64, "epochs": 20}, "space": {"bits": [8, 4, 3]}},
            "date": "2026-01-02", "versions": {"tensorflow": "2.21.0", "keras": "3.15.0"},
            "machine": "2 x Example CPU", "seconds": 300.0,
            "command": "metamix-train --config=configs/quickstart.py",
        },
        "rows": [
            _row("float", 0.9171, 10_435_461_120, [32.0, 32.0], 331_204, 412, None, "float"),
            _row("uniform A4W4", 0.8993, 163_061_760, [4.0, 4.0], 68_904, 215, _parity(0), "a4w4"),
            _row("MetaMix", 0.9102, 189_000_000, [4.62, 4.1667], 69_120, 216, _parity(0), "mixed"),
        ],
        "layers": _layers(),
        "epochs": _epochs(),
        "search": {
            "budgets": [{"cost": "bops", "limit": 190_000_000, "found": 189_000_000, "source": ""}],
            "argmax_bits": final | {"block_3_project": 4},
            "alphas": _alphas(),
        },
        "notes": ["Latency is of this machine, with XNNPACK."],
    }  # fmt: skip
