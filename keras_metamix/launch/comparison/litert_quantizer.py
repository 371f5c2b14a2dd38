"""What Google's LiteRT Quantizer (formerly AI Edge Quantizer) makes of a float .tflite."""

from __future__ import annotations

import numpy as np

from keras_metamix.launch.comparison.stock_converter import silent


def static_file(flat: bytes, images: np.ndarray, weight_bits: int) -> bytes:
    """Post-training quantization with activations of 8 bits, with float32 inputs and outputs.

    Args:
      flat: a float .tflite of one input.
      images: shape (images, height, width, channels), that the ranges of activations are set from.
      weight_bits: of convolutions and dense layers, 8 or 4, a scale for each channel. The tool
        leaves 4-bit depthwise convolutions and all operators without weights in float; they get
        its 8-bit recipe.

    Raises:
      ModuleNotFoundError: litert-quantizer is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter
    from litert_quantizer import quantizer, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import TFLOperationName as Operation

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", Operation.ALL_SUPPORTED, 8, 8)
    if weight_bits != 8:
        for operation in (Operation.CONV_2D, Operation.FULLY_CONNECTED):
            recipe.add_static_config(".*", operation, 8, weight_bits)
    for end in (Operation.INPUT, Operation.OUTPUT):
        recipe.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ((name, signature),) = Interpreter(model_content=flat).get_signature_list().items()
    (argument,) = signature["inputs"]
    batches = [{argument: image[None]} for image in images]
    with silent():
        tool = quantizer.Quantizer(flat, recipe.get_quantization_recipe())
        ranges = tool.calibrate({name: batches}, num_threads=1)
        result = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)
