"""Fashion-MNIST: the extract shipped with the package and the full set through TFDS."""

import hashlib
import os
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path

import numpy as np

from keras_metamix.files import written_whole

Split = tuple[np.ndarray, np.ndarray]
Arrays = tuple[Split, Split]

DATASET_NAMES = ("fashion_mnist_extract", "fashion_mnist")
EXTRACT_FILE = "fashion_mnist_extract.npz"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
SOURCE_VARIABLE = "FASHION_MNIST_DIR"
REACH_TIMEOUT_S = 3.0

# Modification time (Unix seconds) in the gzip header of each published file, and the SHA-256 of
# the published file, which TFDS checks.
GZIP_MTIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}
SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Arrays:
    """Loads a data set by name: one of `DATASET_NAMES`.

    `data_dir` is TFDS's data folder and is not used by the extract. Returns what `load_extract`
    and `load_full` return. Raises ValueError for any other name.
    """
    if name == "fashion_mnist_extract":
        return load_extract()
    if name == "fashion_mnist":
        return load_full(data_dir)
    raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATASET_NAMES)}")


def load_extract() -> Arrays:
    """Loads the packaged extract: 1,000 training and 200 test images of each of the 10 classes.

    Returns `(train_images, train_labels), (test_images, test_labels)`: images uint8 of shape
    (N, 28, 28, 1) with pixels 0-255, labels int64 of shape (N,) in 0-9; N is 10,000 and 2,000.
    The training images come from the full training set, the test images from the full test set.
    """
    path = resources.files("keras_metamix.data").joinpath(EXTRACT_FILE)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        train, test = (
            (arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
            for split in ("train", "test")
        )
    return train, test


def load_full(
    data_dir: str | os.PathLike[str] | None = None, source_dir: str | os.PathLike[str] | None = None
) -> Arrays:
    """Loads the full 60,000 + 10,000 images with the stock `tfds.load("fashion_mnist")`.

    A copy that TFDS has already prepared in `data_dir` (default: TFDS's own folder) is used as it
    is. Otherwise the four published files are taken from `source_dir`, else from the folder in
    the environment variable FASHION_MNIST_DIR, else from Debian's dataset-fashion-mnist package,
    and staged for TFDS; without them TFDS downloads them.

    Returns the same shapes and types as `load_extract`, in TFDS's order. Raises FileNotFoundError
    if a given folder lacks one of the files, ValueError if a file is not the published one, and
    ConnectionError if there is no copy, no file and no network.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder("fashion_mnist", data_dir=data_dir)
    if not builder.data_path.exists():
        root = Path(builder.data_path).parents[1]
        source = find_source(source_dir)
        if source is not None:
            stage_files(source, root)
        elif not all((root / "downloads" / "manual" / name).is_file() for name in SHA256):
            _require_network(builder.URL, root)
    try:
        return _prepared(data_dir)
    except FileExistsError:  # another process has prepared it meanwhile
        return _prepared(data_dir)


def _prepared(data_dir: str | os.PathLike[str] | None) -> Arrays:
    """What TFDS has prepared, or prepares now."""
    import tensorflow_datasets as tfds

    splits = tfds.load(
        "fashion_mnist",
        data_dir=data_dir,
        split=["train", "test"],
        batch_size=-1,
        as_supervised=True,
    )
    train, test = tfds.as_numpy(splits)
    return train, test


def find_source(source_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Returns the folder that holds the four published gz files, or None if there is none.

    Looks at `source_dir`, else at the environment variable FASHION_MNIST_DIR, else at Debian's
    folder. Raises FileNotFoundError if the folder is given, or is there, but lacks a file.
    """
    if source_dir is not None:
        folder, origin = Path(source_dir), "source_dir"
    elif os.environ.get(SOURCE_VARIABLE):
        folder, origin = Path(os.environ[SOURCE_VARIABLE]), SOURCE_VARIABLE
    elif DEBIAN_DIR.is_dir():
        folder, origin = DEBIAN_DIR, "Debian's folder"
    else:
        return None
    missing = [name for name in SHA256 if not (folder / name).is_file()]
    if missing:
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None
        found = "no such folder" if names is None else ", ".join(names[:8]) or "an empty folder"
        raise FileNotFoundError(
            f"{origin} {str(folder)!r} lacks {', '.join(missing)}; "
            f"expected {', '.join(SHA256)}; found {found}"
        )
    return folder


def stage_files(source: Path, data_dir: Path) -> Path:
    """Puts the four files from `source` where TFDS looks for them, byte for byte as published.

    Debian strips the gzip headers, so they are put back. Files already staged are left alone.
    Returns the folder, `data_dir`/downloads/manual. Raises ValueError if a file, header put back,
    is not the published one.
    """
    target = data_dir / "downloads" / "manual"
    target.mkdir(parents=True, exist_ok=True)
    for name, expected in SHA256.items():
        if (target / name).is_file() and _sha256((target / name).read_bytes()) == expected:
            continue
        content = (source / name).read_bytes()
        if _sha256(content) != expected:
            content = restore_gzip_header(content, name, GZIP_MTIMES[name])
        if _sha256(content) != expected:
            raise ValueError(
                f"{str(source / name)!r} is not the published Fashion-MNIST file: "
                f"expected SHA-256 {expected}, found {_sha256(content)}"
            )
        with written_whole(target / name) as temporary:
            temporary.write_bytes(content)
    return target


def restore_gzip_header(content: bytes, name: str, mtime: int) -> bytes:
    """Returns the gzip member `content` with the header `gzip` writes for the file `name`.

    The header holds the modification time `mtime` (Unix seconds), the operating system byte 3
    (Unix) and the name without its .gz; the compressed stream is not touched. Raises ValueError
    if `content` is not a gzip member with a bare 10-byte header.
    """
    if len(content) < 18 or content[:3] != b"\x1f\x8b\x08" or content[3] != 0:
        raise ValueError(
            f"{name}: expected a gzip file with a bare header (1f8b0800...), "
            f"found {len(content)} bytes that start with {content[:4].hex() or 'nothing'}"
        )
    header = b"\x1f\x8b\x08\x08" + mtime.to_bytes(4, "little") + b"\x00\x03"
    return header + name.removesuffix(".gz").encode("ascii") + b"\x00" + content[10:]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _require_network(url: str, root: Path) -> None:
    """Fails at once where TFDS would retry for minutes before it says that it cannot download."""
    request = urllib.request.Request(url + next(iter(SHA256)), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except (urllib.error.URLError, OSError) as error:
        raise ConnectionError(
            f"Fashion-MNIST: no prepared copy in data_dir {str(root)!r}, no files in "
            f"{SOURCE_VARIABLE} or {str(DEBIAN_DIR)!r}, and {url} cannot be reached ({error}); "
            "run `apt-get install dataset-fashion-mnist` or give a prepared data_dir"
        ) from error
