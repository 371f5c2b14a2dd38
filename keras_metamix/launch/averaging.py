"""Averages of the weights during weight training, which then become the weights."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.calibration import reestimate_batch_norm
from keras_metamix.layers.mode import quantization_mode


class AveragedWeights(keras.callbacks.Callback):
    """Lets the optimizer's moving average (`use_ema`) begin and end well; put it behind
    `MetaMixCallback`.

    Keras averages from the first step on and takes the averages as weights when `fit` ends. But
    what selection leaves behind is no part of the network as chosen, and its weight steps are set
    anew then: here the average begins with weight training. And the batch-norm statistics of the
    last steps are not those of averaged weights: they are estimated again from training batches.

    Args:
      batches: how many batches estimate them.
    """

    def __init__(self, batches: int = 32):
        super().__init__()
        self.batches = batches
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        model: Any = self.model
        if self._begun or model.phase != "weight_training":
            return
        self._begun = True
        # As keras.callbacks.SwapEMAWeights reaches them: Keras has no public name for the averages.
        averages = model.optimizer._model_variables_moving_average
        for variable, average in zip(model.trainable_variables, averages, strict=True):
            average.assign(variable)

    def on_train_end(self, logs: dict | None = None) -> None:
        model: Any = self.model
        with quantization_mode(model.evaluation_mode()):
            reestimate_batch_norm(model.network, model.training_batches(self.batches))
