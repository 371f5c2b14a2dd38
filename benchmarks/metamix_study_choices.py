"""Choices of bits that benchmarks/metamix_study.py compares the search's with."""

from __future__ import annotations

import keras
import numpy as np
from metamix_study_settings import Setting
from metamix_study_training import BATCH, Training

import keras_metamix as kmm
from keras_metamix.cost import select

SENSITIVITY_IMAGES, HESSIAN_IMAGES = 2000, 1024


def by_chance(
    setting: Setting, model: kmm.MetaMixModel, seed: int, number: int
) -> kmm.BitAssignment:
    """Bits of random scores, which use as much of the budget as the search's."""
    priced = setting.budget(model)
    generator = np.random.default_rng([seed, number])
    scores = {
        name: dict(zip(pairs, generator.normal(size=len(pairs)), strict=True))
        for name, pairs in priced.choices.items()
    }
    return select(scores, [priced])


def by_sensitivity(
    training: Training, setting: Setting, model: kmm.MetaMixModel
) -> kmm.BitAssignment:
    """The knapsack of a model's sensitivities."""
    scores = kmm.sensitivity(model, training.images(SENSITIVITY_IMAGES), verbose=0)
    return kmm.select_bits(model, setting.given(model), scores)


def by_hessian(training: Training, setting: Setting, model: kmm.MetaMixModel) -> kmm.BitAssignment:
    """The knapsack of HAWQ-V2: mean trace times what quantization changes of the weights.

    Where activations are searched, a layer's bits follow its weights' curvature all the same.
    """
    seen = training.images(HESSIAN_IMAGES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    traces = kmm.hessian_trace(training.float_model, seen, loss, batch_size=BATCH)
    floats = {layer.name: layer for layer in training.float_model.layers}
    part = 1 if setting.unit == "bytes" else 0
    scores = {
        name: {
            pair: -traces[name].average * _perturbation(floats[name].kernel.numpy(), pair[part])
            for pair in pairs
        }
        for name, pairs in model.cost_table.choices.items()
    }
    return kmm.select_bits(model, setting.given(model), scores)


def _perturbation(kernel: np.ndarray, bits: int) -> float:
    """The squared change of a kernel that is rounded to some bits, with a step for each channel."""
    kernel = kernel if kernel.shape[-1] > 1 else np.swapaxes(kernel, -1, -2)  # depthwise
    step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / (2 ** (bits - 1) - 1)
    step = np.maximum(step, 1e-12)
    return float(np.sum(np.square(np.rint(kernel / step) * step - kernel)))
