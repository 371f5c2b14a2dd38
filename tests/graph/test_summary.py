"""The per-layer table: golden files of the ImageNet networks, published costs, a small model.

UPDATE_GOLDEN=1 in the environment rewrites the files in tests/golden/.
"""

import os
from pathlib import Path

import keras
import pytest
from keras import layers

import keras_metamix as kmm
from keras_metamix import zoo

GOLDEN = Path(__file__).parent.parent / "golden"

# Millions of MACs, and billions of BOPs at A4/W4 with the ends at 8/8, at 224x224 and with 1000
# classes: MetaMix's tables (Kim et al., AAAI 2024, Eq. 6).
PUBLISHED = {
    "mobilenet_v2": (300.774, 5.394),
    "mobilenet_v3_large": (216.590, 3.787),
    "resnet18": (1814.07, 34.714),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def network(request):
    """Name and model; 224x224 and 1000 classes are the zoo's defaults."""
    return request.param, getattr(zoo, request.param)()


def test_macs_and_bops_are_the_published_ones(network):
    name, model = network
    macs, gigabops = PUBLISHED[name]
    found = sum(cost.macs for cost in kmm.layer_costs(model))
    assert found / 1e6 == pytest.approx(macs, abs=0.005 if name == "resnet18" else 0.0005)
    assert kmm.bops(model, kmm.uniform_assignment(model, 4, 4)) / 1e9 == pytest.approx(
        gigabops, abs=0.0005
    )


def test_the_table_is_the_golden_one(network):
    name, model = network
    text = kmm.summary(model, kmm.uniform_assignment(model, 4, 4))
    path = GOLDEN / f"{name}_a4w4.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(25, 1, name="first"),
            layers.DepthwiseConv2D(3, padding="same", name="middle"),
            layers.Flatten(name="flat"),
            layers.Dense(10, name="last"),
        ],
        name="three",
    )


@pytest.fixture
def bits(model):
    return kmm.uniform_assignment(model, 3, 4)


# By hand: 16 * 25, 16 * 25 * 9 and 400 * 10 MACs; times 64, 12 and 64 BOPs; 33,100 bits of
# kernels, and 60 channels with 8 bytes of scale and bias.
WITH_BITS = """\
layer   kind              MACs  weights  A bits  W bits     BOPs   share
------  ---------------  -----  -------  ------  ------  -------  ------
first   Conv2D             400       25       8       8   25,600    7.9%
middle  DepthwiseConv2D  3,600      225       3       4   43,200   13.3%
last    Dense            4,000    4,000       8       8  256,000   78.8%
------  ---------------  -----  -------  ------  ------  -------  ------
total                    8,000    4,250                  324,800  100.0%

average bits: A 3.00, W 4.00 (first and last layer left out)
model size: 4,618 bytes (kernels, scales and biases)
"""
WITHOUT_BITS = """\
layer   kind              MACs  weights
------  ---------------  -----  -------
first   Conv2D             400       25
middle  DepthwiseConv2D  3,600      225
last    Dense            4,000    4,000
------  ---------------  -----  -------
total                    8,000    4,250
"""


def test_a_table_by_hand(model, bits):
    assert kmm.summary(model) == WITHOUT_BITS
    assert kmm.summary(model, bits) == WITH_BITS


def test_a_metamix_model_shows_the_bits_that_it_has(model, bits):
    searchable = kmm.MetaMixModel.from_float(model, kmm.SearchSpace((4, 3), 4))
    searchable.assign_bits(bits)
    assert kmm.summary(searchable) == WITH_BITS
    wider = kmm.uniform_assignment(model, 4, 4)
    assert kmm.summary(searchable, wider) == kmm.summary(model, wider)


def test_bits_of_another_model_are_refused_by_name(model):
    with pytest.raises(ValueError, match="no bits.*first"):
        kmm.summary(model, kmm.BitAssignment({"other": 4}, {"other": 4}))
