"""An experiment of seconds in a process of its own, which may be told when to die.

    python resumed_run.py CONFIG WORKDIR [KILL] [FIELD=VALUE ...]

KILL: "metamix:15" (after step 15 of that training), "write:2" (while the second checkpoint is
written), "export" (when all is trained), or "-".
"""

import ast
import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

if "mirrored" in " ".join(sys.argv):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from ml_collections import ConfigDict

from keras_metamix.launch import checkpoints, monitor, train
from keras_metamix.launch.messages import exit_status


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill):
    """Patches the place where the process is to die."""
    name, _, number = kill.partition(":")
    if name == "export":
        train._write = die
    elif name == "write":
        written, remaining = checkpoints._State.serialize, [int(number)]

        def serialize(self):
            remaining[0] -= 1
            if not remaining[0]:
                die()
            return written(self)

        checkpoints._State.serialize = serialize
    elif name != "-":
        ended = monitor.Monitor.on_train_batch_end

        def on_train_batch_end(self, batch, logs=None):
            ended(self, batch, logs)
            if (self.name, self._step) == (name, int(number)):
                die()

        monitor.Monitor.on_train_batch_end = on_train_batch_end


def small_config(file):
    """The file's config with a network and data of seconds."""
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model = ConfigDict({"name": "small_cnn", "width": 4, "stem_strides": 2})
    config.train.batch_size = 900  # ten steps an epoch of the images that are not held out
    config.float.epochs, config.export.runs = 1, 1
    config.checkpoint.steps, config.checkpoint.minutes = 3, 0.0
    if "mixer" in config:
        config.mixer.stage_epochs, config.mixer.front, config.mixer.images = (1, 1, 1), 0, 1000
    else:
        config.train.epochs, config.train.uniform = 3, False
    return config


if __name__ == "__main__":
    file, workdir, kill, *fields = sys.argv[1:]
    workdir = Path(workdir)
    config = small_config(file)
    for field in fields:
        name, _, value = field.partition("=")
        with contextlib.suppress(ValueError):  # a text
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({name: value})
    sys.argv[1:] = []  # the command is in the file, and has to be the same in every run
    arm(kill)
    sys.exit(exit_status(lambda config: train.run_experiment(config, workdir), config))
