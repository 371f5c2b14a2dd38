"""Averages of the weights during weight training, which then become the weights."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.calibration import reestimate_batch_norm
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.training import training_batches


class AveragedWeights(keras.callbacks.Callback):
    """Lets the optimizer's moving average (`use_ema`) end well; put it behind `MetaMixCallback`.

    Keras takes the averages as weights when `fit` ends. But the batch-norm statistics of the last
    steps are not those of averaged weights: they are estimated again from training batches.

    Args:
      batches: how many batches estimate them.
      data: what these are taken from; default: what `fit` trains on.
    """

    def __init__(self, batches: int = 32, data: Any = None):
        super().__init__()
        self.batches = batches
        self.data = data

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        with quantization_mode(model.evaluation_mode()):
            batches = training_batches(model, self.data, self.batches)
            reestimate_batch_norm(model.network, batches)
