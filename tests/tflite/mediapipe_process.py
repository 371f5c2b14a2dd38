"""Runs files in MediaPipe's tasks, in a process that has no TensorFlow.

    python mediapipe_process.py FOLDER

FOLDER has files by task, classifier_NAME.tflite and segmenter_NAME.tflite, and images of uint8 for
each task, classifier.npy and segmenter.npy. It gets outputs.npz, of each file its results for all
images, of a segmenter also the class of each pixel as map_NAME; names.json, the class names; and
repacked.tflite, what MediaPipe's own classes of the schema make of repack.tflite.
"""

import json
import sys
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np

sys.modules["tensorflow"] = None  # MediaPipe would import it, only to open files with it

import mediapipe  # noqa: E402
from mediapipe.tasks.metadata import schema_py_generated as schema  # noqa: E402
from mediapipe.tasks.python import vision  # noqa: E402
from mediapipe.tasks.python.core.base_options import BaseOptions  # noqa: E402


def classified(file, images):
    """Scores of shape (images, classes), and the names by class."""
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_buffer=file.read_bytes()))
    with vision.ImageClassifier.create_from_options(options) as task:
        results = [task.classify(image).classifications[0].categories for image in images]
    ordered = [sorted(found, key=lambda category: category.index) for found in results]
    scores = [[category.score for category in found] for found in ordered]
    return np.array(scores, np.float32), [category.category_name for category in ordered[0]]


def segmented(file, images):
    """Confidences of shape (images, height, width, classes), class maps, and the names."""
    options = vision.ImageSegmenterOptions(
        BaseOptions(model_asset_buffer=file.read_bytes()),
        output_confidence_masks=True,
        output_category_mask=True,
    )
    with vision.ImageSegmenter.create_from_options(options) as task:
        results = [task.segment(image) for image in images]
        masks = [[m.numpy_view() for m in found.confidence_masks] for found in results]
        maps = [np.squeeze(found.category_mask.numpy_view(), -1) for found in results]
        return np.stack([np.concatenate(m, -1) for m in masks]), np.stack(maps), list(task.labels)


def repacked(flat):
    """As a tool that adds metadata and a file does: all tables written anew."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flat, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(b"theirs", np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers) - 1
    model.metadata.append(entry)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main(folder):
    """Writes what the module says."""
    outputs, names = {}, {}
    for file in sorted(folder.glob("*_*.tflite")):
        task, _, name = file.stem.partition("_")
        images = [
            mediapipe.Image(mediapipe.ImageFormat.SRGB, image)
            for image in np.load(folder / f"{task}.npy")
        ]
        if task == "classifier":
            outputs[file.stem], names[file.stem] = classified(file, images)
        else:
            found = segmented(file, images)
            outputs[file.stem], outputs[f"map_{name}"], names[file.stem] = found
    np.savez(folder / "outputs.npz", **outputs)
    (folder / "names.json").write_text(json.dumps(names))
    path = folder / "repacked.tflite"
    path.write_bytes(repacked((folder / "repack.tflite").read_bytes()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("theirs.txt", "a\nb")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
