"""What bits cost, what they may cost, and which bits a budget allows; imports no Keras."""

from keras_metamix.cost.budget import Bops, Budget, Latency, Priced, Size, as_budgets
from keras_metamix.cost.latency_table import LatencyTable
from keras_metamix.cost.layer_cost import (
    LayerCost,
    assignment_bops,
    average_bits,
    weight_bytes,
    weighted_bits,
)
from keras_metamix.cost.prices import Pair, PricedBudget
from keras_metamix.cost.selection import Scores, argmax_bits, require_all_reachable, select
from keras_metamix.cost.table import CostTable, FileOutline

__all__ = [
    "Bops",
    "Budget",
    "CostTable",
    "FileOutline",
    "Latency",
    "LatencyTable",
    "LayerCost",
    "Pair",
    "Priced",
    "PricedBudget",
    "Scores",
    "Size",
    "argmax_bits",
    "as_budgets",
    "assignment_bops",
    "average_bits",
    "require_all_reachable",
    "select",
    "weight_bytes",
    "weighted_bits",
]
