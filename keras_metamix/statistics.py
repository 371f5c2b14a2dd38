"""Batch norm's statistics for the network as it is evaluated, once its weights are trained."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.batches import readable
from keras_metamix.calibration import replace_statistics
from keras_metamix.checks import require_whole
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.network_model import NetworkModel, require_quantized_model
from keras_metamix.training import check_statistics_data, input_batches, training_batches


def reestimate_batch_norm(
    model: Any, data: Any = None, batches: int = 32, batch_size: int | None = None
) -> int:
    r"""Estimates the moving statistics of batch norm anew, from training batches.

    Each becomes the plain mean over \(n\) batches of the network with its present weights,

    \[ \mu = \frac{1}{n} \sum_i \mu_i, \qquad \sigma^2 = \frac{1}{n} \sum_i \sigma_i^2, \]

    where training leaves a moving average over weights that still changed. Weights of few bits
    oscillate between two codes until the last step, which such an average does not follow; see
    Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022. Weights and
    step sizes stay as they are.

    Args:
      model: a QuantizedModel, MetaMixModel or BitMixerModel that was calibrated or trained. Of a
        BitMixerModel the sets of parameters that its present bits use are estimated. Or a float
        model, whose statistics lag after few steps: 0.99 of a batch norm's first values remain
        after one, 0.37 after a hundred.
      data: images, `(images, labels)`, or what `fit` takes as `x`; None, within a `fit`, is what
        that trains on.
      batches: at most so many are read.
      batch_size: images in a batch where `data` is arrays; default 32.

    Returns:
      How many images were read.

    Raises:
      TypeError: no Keras model, or data that cannot be read twice; of a float model, no data.
    """
    require_whole("batches", batches)
    if isinstance(model, keras.Model) and not isinstance(model, NetworkModel):
        if data is None:
            raise TypeError("reestimate_batch_norm: expected images for a float model, found None.")
        return replace_statistics(model, input_batches(model, readable(data), batches, batch_size))
    require_quantized_model("reestimate_batch_norm", model)
    with quantization_mode(model.evaluation_mode()):
        found = training_batches(model, readable(data), batches, batch_size)
        return replace_statistics(model.network, found)


class BatchNormReestimation(keras.callbacks.Callback):
    """Calls `reestimate_batch_norm` when `fit` ends, before its last epoch is validated.

    `MetaMixCallback` does the same. Where the optimizer averages weights (`use_ema`), the averages
    become the weights behind the last validation, and the statistics are estimated for these.

    Args:
      data: images, `(images, labels)`, or batches as `fit` takes them; default: what `fit` trains
        on.
      batches: how many of its batches are read; 0 does nothing.
    """

    def __init__(self, data: Any = None, batches: int = 32):
        super().__init__()
        require_whole("batches", batches)
        self.batches = batches
        self.data: Any = readable(data)
        self._trained = self._last = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_quantized_model("BatchNormReestimation", self.model)
        check_statistics_data(self.model, self.data)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._last = epoch + 1 == (self.params or {}).get("epochs")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._trained = bool(logs)  # none: the step was done before a restart

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._last:
            self._reestimate()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._reestimate(model.optimizer.use_ema)

    def _reestimate(self, again: bool = False) -> None:
        if self.batches and (self._trained or again):
            reestimate_batch_norm(self.model, self.data, self.batches)
        self._trained = False
