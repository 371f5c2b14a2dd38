"""Plain float Keras models."""

from keras_metamix.zoo.mobilenet_v2 import mobilenet_v2
from keras_metamix.zoo.mobilenet_v3 import mobilenet_v3_large
from keras_metamix.zoo.resnet18 import resnet18
from keras_metamix.zoo.small import small_cnn, small_mobilenet, small_resnet
from keras_metamix.zoo.unet import small_unet

__all__ = [
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "small_cnn",
    "small_mobilenet",
    "small_resnet",
    "small_unet",
]
