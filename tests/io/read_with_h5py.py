"""Reads a checkpoint the way a user with h5py does and compares with raw files of the true values.

usage: read_with_h5py.py CHECKPOINT EXPECTED
EXPECTED/tensors.json lists name, dtype, shape of each tensor; EXPECTED/<number>.bin holds its little-endian bytes.
"""

import json
import pathlib
import sys

import h5py
import numpy as np


def expected_values(entry, raw):
    if entry["dtype"] == "bfloat16":  # the upper half of a float32
        wide = np.frombuffer(raw, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(entry["shape"])
    return np.frombuffer(raw, dtype=np.dtype(entry["dtype"]).newbyteorder("<")).reshape(entry["shape"])


def same(found, wanted):
    return found.shape == wanted.shape and np.array_equal(found, wanted, equal_nan=wanted.dtype.kind == "f")


def check_view(index, entry, raw):
    tensor = index["view"][entry["name"]]
    wanted = expected_values(entry, raw)
    assert tensor.is_virtual, entry
    assert tensor.dtype == wanted.dtype, (entry, tensor.dtype)
    assert same(tensor[...], wanted), entry
    # A slice that lies in several shards.
    assert same(tensor[1:], wanted[1:]), entry


def check_tables(directory, index, listed):
    assert index.attrs["format"] == b"sparseattn-checkpoint"
    assert index.attrs["version"] == 1
    assert json.loads(index["state"][()])["tokens"] == 123456789012
    assert index["deck"][()].decode() == "[run]\nseed = 1\n"
    names = [name.decode() for name in index["tensors/name"]]
    assert sorted(names) == sorted(entry["name"] for entry in listed)
    # By hand: a tensor from its parts, without the view.
    tensor = names.index("optimizer.m")
    values = {}
    for part in range(len(index["parts/tensor"])):
        if index["parts/tensor"][part] != tensor:
            continue
        shard = directory / index["shards/file"][index["parts/shard"][part]].decode()
        begin, count, position = (int(index["parts"][column][part]) for column in ("begin", "count", "position"))
        with h5py.File(shard, "r") as file:
            values[begin] = file["tensors/optimizer.m"][position : position + count]
    joined = np.concatenate([values[begin] for begin in sorted(values)])
    assert same(joined, index["view/optimizer.m"][...])


def main():
    directory, expected = (pathlib.Path(argument) for argument in sys.argv[1:])
    listed = json.loads((expected / "tensors.json").read_text())
    with h5py.File(directory / "index.h5", "r") as index:
        for number, entry in enumerate(listed):
            check_view(index, entry, (expected / f"{number}.bin").read_bytes())
        check_tables(directory, index, listed)
    print(f"{len(listed)} tensors agree")


main()
