"""Makes keras_metamix/data/fashion_mnist_extract.npz from the four published gz files.

python scripts/make_fashion_mnist_extract.py --source /usr/share/datasets/fashion-mnist \
    --output keras_metamix/data/fashion_mnist_extract.npz

The same files and options give the same bytes (liblzma 5.4 made the shipped file; another
version may compress differently, the arrays are equal). Beside images and labels the file holds
train_index and test_index, the position of every image in the published file.
"""

import argparse
import gzip
import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

SEED = 20170828
CLASSES = 10


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes; ValueError if it is anything else."""
    content = gzip.decompress(path.read_bytes())
    body = 4 + 4 * content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, body, 4)]
    if not shape or len(content) != body + math.prod(shape):
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes, found {len(content)} bytes "
            f"that start with {content[:4].hex() or 'nothing'}"
        )
    return np.frombuffer(content, np.uint8, offset=body).reshape(shape)


def stratified_indices(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Draws `per_class` indices of every class, sorted; int32 of shape (10 * per_class,)."""
    # RandomState's stream is frozen; the newer Generator's may change between NumPy versions.
    random = np.random.RandomState(seed)
    chosen = []
    for label in range(CLASSES):
        candidates = np.flatnonzero(labels == label)
        if len(candidates) < per_class:
            raise ValueError(
                f"expected at least {per_class} images of class {label}, found {len(candidates)}"
            )
        chosen.append(random.permutation(candidates)[:per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def extract(source: Path, train_per_class: int, test_per_class: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the extract: images (N, 28, 28, 1), labels (N,) and indices (N,)."""
    arrays = {}
    for split, prefix, count in (
        ("train", "train", train_per_class),
        ("test", "t10k", test_per_class),
    ):
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        index = stratified_indices(labels, count, SEED)
        arrays[f"{split}_images"] = images[index][..., np.newaxis]
        arrays[f"{split}_labels"] = labels[index]
        arrays[f"{split}_index"] = index
    return arrays


def write_npz(arrays: dict[str, np.ndarray], output: Path) -> None:
    """Writes an LZMA-compressed .npz that np.load reads; fixed dates make it reproducible."""
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_LZMA
                info.create_system = 3
                archive.writestr(info, buffer.getvalue())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes the extract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the four gz files")
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--train-per-class", type=int, default=1000)
    parser.add_argument("--test-per-class", type=int, default=200)
    options = parser.parse_args(arguments)
    arrays = extract(options.source, options.train_per_class, options.test_per_class)
    write_npz(arrays, options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
