"""A model of every operator, and the far end of adb: a server that speaks its wire protocol.

The client and the server of adb that the tests run are the real ones. Of the protocol the far end
has what they use with a phone that announces no features: CNXN, and streams of OPEN, OKAY, WRTE and
CLSE that hold `shell:` commands, which run in a folder of their own, and `sync:` with STAT, SEND,
DATA and DONE.
"""

import contextlib
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import keras
import pytest
from keras import layers

PAYLOAD = 4096
FOLDER = "/data/local/tmp"  # of the phone, in what adb is told


@pytest.fixture(scope="module")
def everything():
    """Every kind of operator that `convert` writes, a grouped and a dense layer on a map."""
    keras.utils.set_random_seed(0)
    image = keras.Input((10, 10, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    left = layers.Conv2D(8, 3, padding="same", groups=2, activation="relu", name="grouped")(x)
    right = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="total")([left, right])
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(x)
    turned = layers.Conv2D(8, 1, activation="tanh", name="turn")(x)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.Concatenate(name="joined")([x, turned])
    x = layers.Dense(6, activation="relu", name="each_pixel")(layers.Cropping2D(1, name="crop")(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x), name="everything")


class Stream:
    """One service on a connection."""

    def __init__(self, connection, local, remote):
        self.connection, self.local, self.remote = connection, local, remote
        self.received, self.acknowledged, self.closed = queue.Queue(), threading.Semaphore(0), False
        self.process, self.rest = None, b""

    def write(self, data):
        for start in range(0, len(data), PAYLOAD):
            self.connection.send(b"WRTE", self.local, self.remote, data[start : start + PAYLOAD])
            self.acknowledged.acquire()

    def read(self, size):
        while len(self.rest) < size:
            data = self.received.get()
            if data is None:
                raise EOFError
            self.rest += data
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def close(self):
        """The client has gone: the command goes too, as on a phone."""
        self.closed = True
        self.received.put(None)
        self.acknowledged.release()
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Connection:
    """adb's server on the other side."""

    def __init__(self, phone, link):
        self.phone, self.link, self.streams, self.lock = phone, link, {}, threading.Lock()

    def send(self, command, first, second, data=b""):
        number = int.from_bytes(command, "little")
        head = (number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self.lock:
            self.link.sendall(struct.pack("<6I", *head) + data)

    def receive(self, size):
        data = b""
        while len(data) < size:
            part = self.link.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def serve(self):
        try:
            while True:
                number, first, second, size, _, _ = struct.unpack("<6I", self.receive(24))
                data = self.receive(size)
                self.handle(number.to_bytes(4, "little"), first, second, data)
        except (EOFError, OSError):
            for stream in self.streams.values():
                stream.close()

    def handle(self, command, first, second, data):
        if command == b"CNXN" and self.phone.authorized:
            self.send(b"CNXN", 0x01000000, PAYLOAD, b"device::ro.product.name=sandbox;features=\0")
        elif command in (b"CNXN", b"AUTH"):
            self.send(b"AUTH", 1, 0, bytes(20))  # a token to sign, whatever was signed
        elif command == b"OPEN":
            stream = self.streams[len(self.streams) + 1] = Stream(
                self, len(self.streams) + 1, first
            )
            self.send(b"OKAY", stream.local, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=self.phone.run, args=(stream, service), daemon=True).start()
        elif command == b"WRTE":
            self.streams[second].received.put(data)
            self.send(b"OKAY", second, first)
        elif command == b"OKAY":
            self.streams[second].acknowledged.release()
        elif command == b"CLSE" and second in self.streams:
            self.streams[second].close()


class AdbPhone:
    """A phone with a folder in the place of its file system, and commands beside it.

    Attributes:
      serial: what adb calls it; folder: /data/local/tmp; tools: programs on its PATH.
      pushed: what was pushed, by the path on the phone; commands: what its shell was told.
    """

    def __init__(self, top: Path, authorized=True, abis="arm64-v8a,armeabi-v7a"):
        self.folder, self.tools, self.authorized = top / "tmp", top / "tools", authorized
        self.pushed, self.commands, self.links = {}, [], []
        self.folder.mkdir(parents=True)
        self.tools.mkdir()
        self.program("getprop", f'case "$1" in *abilist) echo {abis};; *) echo "a $1";; esac')
        self.server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def program(self, name, script):
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def accept(self):
        while True:
            try:
                link, _ = self.server.accept()
            except OSError:
                return
            self.links.append(link)
            threading.Thread(target=Connection(self, link).serve, daemon=True).start()

    def drop(self):
        """The cable is pulled."""
        self.server.close()
        for link in self.links:
            with contextlib.suppress(OSError):  # adb was faster
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def run(self, stream, service):
        try:
            if service.startswith("shell:"):
                self.shell(stream, service.removeprefix("shell:"))
            elif service.startswith("sync:"):
                self.sync(stream)
            if not stream.closed:
                stream.connection.send(b"CLSE", stream.local, stream.remote)
        except (EOFError, OSError):  # adb has gone
            stream.close()

    def shell(self, stream, command):
        self.commands.append(command)
        environment = {"PATH": f"{self.tools}:/usr/bin:/bin"}
        stream.process = subprocess.Popen(
            ["sh", "-c", command.replace(FOLDER, str(self.folder))],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with stream.process:  # closes its pipe, and waits for it
            while not stream.closed and (data := stream.process.stdout.read1(PAYLOAD)):
                stream.write(data)

    def sync(self, stream):
        content = path = b""
        while True:
            kind, size = struct.unpack("<4sI", stream.read(8))
            if kind == b"STAT":
                stream.read(size)
                stream.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))  # no such file
            elif kind == b"SEND":
                path, content = stream.read(size).rpartition(b",")[0], b""
            elif kind == b"DATA":
                content += stream.read(size)
            elif kind == b"DONE":
                remote = path.decode()
                self.pushed[remote] = content
                Path(remote.replace(FOLDER, str(self.folder))).write_bytes(content)
                stream.write(struct.pack("<4sI", b"OKAY", 0))
            elif kind == b"QUIT":
                return


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """adb(*arguments): the real client, with a server of its own, which ends with the test."""
    program = shutil.which("adb")
    if program is None:
        pytest.skip("adb is not installed (Debian: apt-get install adb)")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    monkeypatch.setenv("HOME", str(tmp_path))  # its keys
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def call(*arguments):
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    yield call
    call("kill-server")


@pytest.fixture
def phone(adb, tmp_path):
    """phone(name, ...) -> an AdbPhone that adb is connected to."""
    phones = []

    def connect(name="phone", **settings):
        made = AdbPhone(tmp_path / name, **settings)
        phones.append(made)
        adb("connect", made.serial)
        return made

    yield connect
    for made in phones:
        made.drop()
