"""Functions that misbehave on purpose, run inside the sandbox by test_sandbox.py."""

import ctypes
import os
import time

import pyarrow as pa


def echo(value: object) -> pa.Table:
    print("a library that prints on stdout")
    os.write(1, b"and one that writes to descriptor 1\n")
    return pa.table({"value": [value], "pid": [os.getpid()]})


def big(num_bytes: int) -> pa.Table:
    return pa.table({"value": [b"x" * num_bytes]})


def hang() -> pa.Table:
    while True:
        time.sleep(0.05)


def segfault() -> pa.Table:
    ctypes.string_at(0)
    return pa.table({})


def eat_memory() -> pa.Table:
    return pa.table({"value": [bytes(bytearray(64 * 2**30))]})


def raise_error() -> pa.Table:
    raise ValueError("this mesh\nis bad")


def return_text() -> str:
    return "not a table"


def cannot_start() -> None:
    raise RuntimeError("no geometry here")
