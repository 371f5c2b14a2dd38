"""Mixed-precision training of Keras 3 models whose trained integers are the deployed ones."""

from keras_metamix.assignment import BitAssignment, LayerBits, SearchSpace
from keras_metamix.bitmixer.callback import BitMixerCallback
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.bitmixer.operating_points import (
    choose_bits,
    choose_points,
)
from keras_metamix.calibration import calibrate
from keras_metamix.cost import (
    Bops,
    Budget,
    Latency,
    LatencyTable,
    LayerCost,
    Priced,
    Size,
    average_bits,
)
from keras_metamix.doctor.advice import Finding
from keras_metamix.doctor.checkup import Checkup, checkup
from keras_metamix.doctor.diagnose import diagnose
from keras_metamix.doctor.diagnosis import Diagnosis
from keras_metamix.graph.explain import Explanation, explain
from keras_metamix.graph.fast_float import fast_float
from keras_metamix.graph.fold_bn import fold_batch_norm
from keras_metamix.graph.layer_costs import bops, layer_costs, uniform_assignment
from keras_metamix.graph.summary import summary
from keras_metamix.hessian import LayerTrace, hessian_trace
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.mac import (
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
)
from keras_metamix.layers.mode import quantizers_off
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.search import prepare_weight_training, select_bits
from keras_metamix.pareto import pareto_front
from keras_metamix.points import OperatingPoint
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.sensitivity import sensitivity
from keras_metamix.statistics import BatchNormReestimation, reestimate_batch_norm

__version__ = "0.2.0"
__all__ = [
    "ActivationQuantizer",
    "BatchNormReestimation",
    "BitAssignment",
    "BitMixerCallback",
    "BitMixerModel",
    "Bops",
    "Budget",
    "Checkup",
    "Diagnosis",
    "Explanation",
    "Finding",
    "FoldableBatchNormalization",
    "Latency",
    "LatencyTable",
    "LayerBits",
    "LayerCost",
    "LayerTrace",
    "MetaMixCallback",
    "MetaMixModel",
    "OperatingPoint",
    "Priced",
    "QuantizedConv2D",
    "QuantizedConv2DTranspose",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "QuantizedModel",
    "SearchSpace",
    "Size",
    "average_bits",
    "bops",
    "calibrate",
    "checkup",
    "choose_bits",
    "choose_points",
    "diagnose",
    "explain",
    "fast_float",
    "fold_batch_norm",
    "hessian_trace",
    "layer_costs",
    "pareto_front",
    "prepare_weight_training",
    "quantizers_off",
    "reestimate_batch_norm",
    "select_bits",
    "sensitivity",
    "summary",
    "uniform_assignment",
]
