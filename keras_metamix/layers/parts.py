"""The layers of one kind in a network, including those that MAC layers own."""

from __future__ import annotations

import keras

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.mac import QuantizedMac


def batch_norms(network: keras.Model) -> list[FoldableBatchNormalization]:
    """The batch norms, in network order."""
    layers = (x.norm if isinstance(x, QuantizedMac) else x for x in network.layers)
    return [x for x in layers if isinstance(x, FoldableBatchNormalization)]


def activation_quantizers(network: keras.Model) -> list[ActivationQuantizer]:
    """The quantizers of activations, in network order."""
    layers = (x.input_quantizer if isinstance(x, QuantizedMac) else x for x in network.layers)
    return [x for x in layers if isinstance(x, ActivationQuantizer)]
