"""What a tensor costs on the wire: CPU time at each end, copied or not, in two processes.

    python benchmarks/transport/run.py [--seconds 40]

Prints one table of medians over rounds; each round runs every setting once, in turn, so that
a disturbance hits all settings alike. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zmq

from asyncdni.config import Limits
from asyncdni.messages import Activation, Credit, Message
from asyncdni.wire.address import private_folder
from asyncdni.wire.codec import decode, encode

SIZES = (16, 64, 256, 512, 1024)  # KiB
#: How a tensor is sent, how it is received.
MODES = (("copy", "view"), ("view", "view"), ("tracked", "view"), ("view", "copy"))
CREDIT = 8  # messages under way
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="for the whole table")
    parser.add_argument("--receive-from", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.receive_from:
        receive(args.receive_from)
        return
    print_codec()
    with private_folder() as folder:
        for kind, endpoint in (("ipc", f"ipc://{folder}/bench"), ("tcp", "tcp://127.0.0.1:*")):
            print_table(kind, measure(endpoint, args.seconds / 2))


def print_codec() -> None:
    """Microseconds of Python a message, best of 5."""
    tensors = {"h": np.zeros((256, 256), np.float32), "y": np.zeros(256, np.int64)}
    activation = Activation("stage1", 1, 77, 256, tensors)
    print("| message | encode µs | decode µs |\n|---|--:|--:|")
    for message in (Credit("stage2", 1, "stage1", 123, 145), activation):
        encoding, decoding = codec_us(message)
        print(f"| {type(message).__name__} | {encoding:.1f} | {decoding:.1f} |")


def codec_us(message: Message) -> tuple[float, float]:
    frames = [memoryview(f).cast("B") for f in encode(message)]
    limits = Limits()
    return best_us(lambda: encode(message)), best_us(lambda: decode(frames, limits))


def best_us(function: Callable[[], object]) -> float:
    return min(timeit.repeat(function, number=20_000, repeat=5)) / 20_000 * 1e6


def measure(endpoint: str, seconds: float) -> dict[tuple[int, str, str], list[list[float]]]:
    """Rounds of [messages/s, sender's CPU µs a message, receiver's] for each setting."""
    settings = [(kib, *mode) for kib in SIZES for mode in MODES]
    results: dict[tuple[int, str, str], list[list[float]]] = {s: [] for s in settings}
    with peer(endpoint) as socket:
        end = time.perf_counter() + seconds
        span = seconds / len(settings) / 5
        while time.perf_counter() < end:
            for setting in settings:
                results[setting].append(one_run(socket, *setting, span))
    return results


@contextmanager
def peer(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Start the receiving process; gives the socket towards it."""
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind(endpoint)
    address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    command = [sys.executable, __file__, "--receive-from", address]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield socket
    finally:
        process.terminate()  # it waits for the next setting
        process.wait()
        context.destroy(linger=0)


def one_run(
    socket: zmq.Socket[bytes], kib: int, sending: str, receiving: str, span: float
) -> list[float]:
    """Send for `span` seconds, at most CREDIT messages ahead of the receiver."""
    tensors = [np.full(kib * 256, i, np.float32) for i in range(2 * CREDIT)]
    header = bytes(64)
    copy, track = sending == "copy", sending == "tracked"
    socket.send(receiving.encode())
    socket.recv()
    trackers: list[zmq.MessageTracker | None] = [None] * len(tensors)
    sent = taken = 0
    cpu, start = time.process_time(), time.perf_counter()
    while time.perf_counter() < start + span:
        while sent - taken < CREDIT:
            at = sent % len(tensors)
            tracker = trackers[at]
            if tracker is not None:
                tracker.wait()
            socket.send(header, zmq.SNDMORE)
            trackers[at] = socket.send(
                zmq.Frame(tensors[at], copy=copy, track=track), copy=False, track=track
            )
            sent += 1
        socket.recv()
        taken += CREDIT // 2
    while taken < sent - sent % (CREDIT // 2):
        socket.recv()
        taken += CREDIT // 2
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    socket.send(b"stop")
    count, peer_cpu = json.loads(socket.recv())
    if count != sent:
        raise RuntimeError(f"sent {sent} messages, {count} arrived")
    return [sent / wall, cpu / sent * 1e6, peer_cpu / sent * 1e6]


def receive(address: str) -> None:
    """The other process: take messages, answer every CREDIT / 2 of them."""
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.connect(address)
    while True:
        mode = socket.recv()
        socket.send(b"go")
        cpu, count = time.process_time(), 0
        for _ in messages(socket, copy=mode == b"copy"):
            count += 1
            if count % (CREDIT // 2) == 0:
                socket.send(b"")
        socket.send(json.dumps([count, time.process_time() - cpu]).encode())


def messages(socket: zmq.Socket[bytes], *, copy: bool) -> Iterator[memoryview]:
    while True:
        socket.recv()
        if not socket.getsockopt(zmq.RCVMORE):
            return
        frame = socket.recv(copy=copy)
        yield memoryview(frame) if isinstance(frame, bytes) else frame.buffer


def print_table(kind: str, results: dict[tuple[int, str, str], list[list[float]]]) -> None:
    """Medians; the last column is the sender's CPU time over that of a copy of the same size."""
    medians = {
        setting: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for setting, rounds in results.items()
    }
    print(
        f"\n| {kind}, KiB | send | receive | messages/s | sender µs | receiver µs | sender ratio |"
    )
    print("|--:|---|---|--:|--:|--:|--:|")
    for (kib, sending, receiving), (rate, cpu, peer_cpu) in medians.items():
        ratio = cpu / medians[kib, "copy", "view"][1]
        print(
            f"| {kib} | {sending} | {receiving} | {rate:,.0f} | {cpu:.1f} | {peer_cpu:.1f} "
            f"| {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
