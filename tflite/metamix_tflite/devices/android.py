"""Android phones: TFLite's `benchmark_model` through adb, once for each delegate.

The user brings the tool, which TensorFlow publishes for each ABI. It and the models lie in a folder
of their own on the phone for as long as they are measured.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from metamix_tflite.devices import Cell, DeviceReport, DeviceUnavailable, require_at_least
from metamix_tflite.devices.adb import Phone, connected_phones
from metamix_tflite.devices.benchmark_log import DELEGATES, read_log

# ABI -> what TensorFlow names its tool after, and the machine in an ELF header.
_ABIS = {
    "arm64-v8a": ("aarch64", 183),
    "armeabi-v7a": ("arm", 40),
    "x86_64": ("x86_64", 62),
    "x86": ("x86", 3),
}
_MACHINES = {machine: abi for abi, (_, machine) in _ABIS.items()}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run on phones.

    Attributes:
      serial: of the phones, as `adb devices` lists them; none for the only one.
      delegates: names of `DELEGATES`.
      binary: the tool; None takes it from ~/.cache/keras-metamix.
      threads: CPU threads.
      runs, warmup: least numbers of inferences that are timed, and that are not. The tool goes on
        for at least a second of the former, and half a second of the latter.
      timeout: seconds that one run of the tool may take.
    """

    serial: Sequence[str] = ()
    delegates: Sequence[str] = tuple(DELEGATES)
    binary: Path | None = None
    threads: int = 1
    runs: int = 50
    warmup: int = 5
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(
            threads=(1, self.threads),
            runs=(1, self.runs),
            warmup=(0, self.warmup),
            timeout=(1, self.timeout),
        )
        if not self.delegates or set(self.delegates) - set(DELEGATES):
            expected, found = ", ".join(DELEGATES), ",".join(self.delegates)
            raise ValueError(f"--delegates: expected some of {expected}, found {found!r}.")


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """Latency, memory and delegation of each file on each phone with each delegate.

    Raises:
      DeviceUnavailable: no adb, phone or tool, or a tool for another ABI.
      ValueError: several phones and no serials.
      OSError: a phone does not do what it is asked.
    """
    phones = connected_phones(options.serial)
    rows, notes = [], []
    for phone in phones:
        model, version, abis = phone.properties(
            "ro.product.model", "ro.build.version.release", "ro.product.cpu.abilist"
        )
        binary = _binary(options.binary, phone.serial, [abi for abi in abis.split(",") if abi])
        notes.append(f"{phone.serial}: {model}, Android {version}, {abis}; {binary}.")
        rows += _measure_on(phone, binary, files, options)
    notes.append(
        "Memory is what the tool's own grew by, an approximation. Delegates other than XNNPACK may "
        "compute other values than LiteRT here: times say nothing of them."
    )
    return DeviceReport("android", rows, notes)


def _measure_on(
    phone: Phone, binary: Path, files: Mapping[str, bytes], options: Options
) -> list[dict[str, Cell]]:
    rows = []
    with tempfile.TemporaryDirectory() as local, phone.scratch_folder() as folder:
        tool = f"{folder}/benchmark_model"
        phone.push(binary, tool)
        phone.check(f"chmod 755 {tool}")
        for number, (name, flat) in enumerate(files.items()):
            model = f"{folder}/model-{number}.tflite"
            copy = Path(local, "model.tflite")
            copy.write_bytes(flat)
            phone.push(copy, model)
            for delegate in options.delegates:
                command = _command(tool, model, delegate, options)
                status, text = phone.shell(command, options.timeout)
                columns = read_log(text, DELEGATES[delegate], status)
                row = {"phone": phone.serial, "file": name, "delegate": delegate}
                rows.append({**row, **columns})
            phone.check(f"rm {model}")
    return rows


def _command(tool: str, model: str, delegate: str, options: Options) -> str:
    flags = {"graph": model, "num_threads": options.threads, "num_runs": options.runs}
    flags["warmup_runs"] = options.warmup
    command = [tool, *(f"--{name}={value}" for name, value in flags.items())]
    return shlex.join([*command, DELEGATES[delegate].flag])


def _binary(given: Path | None, serial: str, abis: list[str]) -> Path:
    """The tool for a phone of these ABIs, the best first."""
    if given is not None:
        _check_abi(given, serial, abis)
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "keras-metamix")
    names = [f"android_{_ABIS[abi][0]}_benchmark_model" for abi in abis if abi in _ABIS]
    for path in (cache / name for name in names):
        if path.is_file():
            _check_abi(path, serial, abis)
            return path
    expected = " or ".join(names) or f"a benchmark_model for {abis}"
    raise DeviceUnavailable(
        f'phone {serial}: no {expected} in {cache}: TensorFlow publishes it ("TFLite model '
        'benchmark tool"); put it there, or name one by --binary.'
    )


def _check_abi(binary: Path, serial: str, abis: list[str]) -> None:
    """Raises unless a file is a script, or an executable of one of the ABIs."""
    try:
        with binary.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise DeviceUnavailable(f"--binary={binary}: {error.strerror}.") from error
    if header.startswith(b"#!"):
        return
    if not header.startswith(b"\x7fELF") or len(header) < 20:
        raise DeviceUnavailable(f"{binary}: expected an executable of Android, found none.")
    (machine,) = struct.unpack_from("<H", header, 18)
    found = _MACHINES.get(machine, f"ELF machine {machine}")
    if found not in abis:
        expected = ", ".join(abis)
        raise DeviceUnavailable(
            f"{binary}: expected an executable for {expected} (phone {serial}), found one for "
            f"{found}."
        )
