"""The families of operators, a file each: how to add one is in CONTRIBUTING.md."""

from keras_metamix.graph.operators.add import Add
from keras_metamix.graph.operators.average_pool import AveragePool
from keras_metamix.graph.operators.base import Operator
from keras_metamix.graph.operators.concatenate import Concatenate
from keras_metamix.graph.operators.lookup import Sigmoid, Tanh
from keras_metamix.graph.operators.mean import Mean
from keras_metamix.graph.operators.multiply import Multiply

OPERATORS: tuple[Operator, ...] = (
    Add(),
    AveragePool(),
    Concatenate(),
    Mean(),
    Multiply(),
    Sigmoid(),
    Tanh(),
)
