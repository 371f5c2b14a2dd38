"""Phones, through Android's `adb`: one object for each, that runs commands and takes files."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from metamix_tflite.devices import DeviceUnavailable
from metamix_tflite.devices.processes import ending, run_program

_SHORT = 60  # seconds for what takes a moment
_STATUS = "keras-metamix-status "
_CONFIRM = "confirm this computer's key on the phone's screen"
_TO_DO = {
    "unauthorized": _CONFIRM,
    "authorizing": _CONFIRM,
    "offline": "unplug and connect it again, or `adb reconnect offline`",
    "no permissions": "allow USB access (udev rules, group plugdev), then `adb kill-server`",
}


@dataclasses.dataclass(frozen=True)
class Phone:
    """A phone that answers; `adb` is the client's path."""

    adb: str
    serial: str

    def shell(self, command: str, timeout: float = _SHORT) -> tuple[int, str]:
        """Exit status and output, both streams, of a command line of the phone's shell.

        Raises:
          OSError: the phone is gone, or does not answer in `timeout` seconds.
        """
        # adb hands on no exit status where the phone is older than Android 7.
        wrapped = f"( {command} ) 2>&1; status=$?; echo; echo {_STATUS}$status"
        output = self._run("shell", wrapped, timeout=timeout)
        lines = output.splitlines()
        if not lines or not lines[-1].startswith(_STATUS):
            raise OSError(f"phone {self.serial}: the connection broke during {command!r}.")
        return int(lines[-1].removeprefix(_STATUS)), "\n".join(lines[:-1]).strip()

    def check(self, command: str) -> str:
        """The output of a command that has to succeed.

        Raises:
          OSError: it does not.
        """
        status, output = self.shell(command)
        if status:
            raise OSError(f"phone {self.serial}: {command!r} fails with status {status}: {output}")
        return output

    def push(self, file: Path, remote: str) -> None:
        """Copies a file to the phone.

        Raises:
          OSError: the phone refuses it.
        """
        self._run("push", str(file.resolve()), remote, timeout=10 * _SHORT)

    def properties(self, *names: str) -> list[str]:
        """System properties, "" for those that the phone does not have."""
        return [self.check(f"getprop {name}") for name in names]

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[str]:
        """A new folder on the phone, which is removed with what it holds, also after an error."""
        folder = f"/data/local/tmp/keras-metamix-{uuid.uuid4().hex[:12]}"
        try:
            self.check(f"mkdir {folder}")
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self.check(f"rm -rf {folder}")
            raise
        self.check(f"rm -rf {folder}")

    def _run(self, *arguments: str, timeout: float) -> str:
        return _call(self.adb, "-s", self.serial, *arguments, timeout=timeout)


def connected_phones(serials: Sequence[str]) -> list[Phone]:
    """The phones to use: those named, or the only one.

    Raises:
      DeviceUnavailable: no adb, no phone, or one that does not answer.
      ValueError: several phones and no serials.
    """
    adb = shutil.which("adb")
    if adb is None:
        how = "install it (Debian: apt-get install adb; or Android's platform-tools)"
        raise DeviceUnavailable(f"adb is not on PATH: {how}.")
    states = _states(_call(adb, "devices", timeout=_SHORT))
    if not states:
        how = "connect it with USB debugging on, or `adb connect HOST:PORT`"
        raise DeviceUnavailable(f"adb lists no phone: {how}.")
    if not serials and len(states) > 1:
        found = ", ".join(states)
        raise ValueError(f"--serial: expected the phones to use, of several ({found}), found none.")
    for serial in serials or states:
        if serial not in states:
            found = ", ".join(states)
            raise DeviceUnavailable(f"--serial={serial}: adb lists no such phone, only {found}.")
        if states[serial] != "device":
            how = next((v for k, v in _TO_DO.items() if states[serial].startswith(k)), "")
            raise DeviceUnavailable(f"phone {serial} is {states[serial]}{how and f': {how}'}.")
    return [Phone(adb, serial) for serial in serials or states]


def _states(listing: str) -> dict[str, str]:
    """State by serial, as `adb devices` lists them: a tab between."""
    return dict(re.findall(r"^(.+?)\t(.+?)\s*$", listing, re.MULTILINE))


def _call(*command: str, timeout: float) -> str:
    """The output of adb.

    Raises:
      OSError: it fails, or takes more than `timeout` seconds.
    """
    named = " ".join(command[1:4])
    done = run_program(command, timeout, f"adb {named}: no answer for {timeout:g} s.")
    if done.returncode:
        reason = (done.stderr or done.stdout).strip() or ending(done.returncode)
        raise OSError(f"adb {named}: {reason}")
    return done.stdout
