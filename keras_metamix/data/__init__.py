"""Data sets and input pipelines as tf.data: Fashion-MNIST (extract, full, scenes) and ImageNet.

Importing this package needs neither tensorflow-datasets nor keras-cv: `load_full` and
`open_imagenet` import the first, RandAugment the second, when they are called.
"""

from keras_metamix.data.fashion_mnist import DATASET_NAMES as DATASET_NAMES
from keras_metamix.data.fashion_mnist import Arrays as Arrays
from keras_metamix.data.fashion_mnist import load as load
from keras_metamix.data.fashion_mnist import load_extract as load_extract
from keras_metamix.data.fashion_mnist import load_full as load_full
from keras_metamix.data.held_out import hold_out as hold_out
from keras_metamix.data.imagenet import Augmentation as Augmentation
from keras_metamix.data.imagenet import Form as Form
from keras_metamix.data.imagenet import imagenet_evaluation as imagenet_evaluation
from keras_metamix.data.imagenet import imagenet_training as imagenet_training
from keras_metamix.data.imagenet import open_imagenet as open_imagenet
from keras_metamix.data.order import Share as Share
from keras_metamix.data.pipeline import MEAN as MEAN
from keras_metamix.data.pipeline import STD as STD
from keras_metamix.data.pipeline import evaluation_dataset as evaluation_dataset
from keras_metamix.data.pipeline import normalize as normalize
from keras_metamix.data.pipeline import training_dataset as training_dataset
from keras_metamix.data.scenes import compose as compose
