"""Packages of the two source roots; everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

TRAINING = find_packages(include=["keras_metamix", "keras_metamix.*"])
DEPLOYMENT = [
    "metamix_tflite",
    *(f"metamix_tflite.{p}" for p in find_packages("tflite/metamix_tflite")),
]

setup(
    packages=TRAINING + DEPLOYMENT,
    package_dir={"metamix_tflite": "tflite/metamix_tflite"},
    include_package_data=False,
    package_data={
        "keras_metamix": ["py.typed"],
        "keras_metamix.data": ["*.npz", "*.xz", "FASHION_MNIST_LICENSE"],
        "keras_metamix.report": ["*.jinja"],
        "metamix_tflite": ["py.typed"],
        "metamix_tflite.verification": ["page/*"],
    },
)
