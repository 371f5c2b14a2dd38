"""Plain float Keras models."""

from keras_metamix.zoo.small import small_cnn, small_mobilenet, small_resnet

__all__ = ["small_cnn", "small_mobilenet", "small_resnet"]
