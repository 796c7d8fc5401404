"""Reads a checkpoint with h5py alone and compares every tensor with what sparseattn-inspect says of it.

usage: check_with_h5py.py CHECKPOINT INSPECT_JSON   (of: sparseattn-inspect --json --statistics CHECKPOINT)
"""

import json
import pathlib
import sys

import h5py
import numpy as np


def main():
    checkpoint, inspected = (pathlib.Path(argument) for argument in sys.argv[1:])
    said = json.loads(inspected.read_text())["tensors"]
    with h5py.File(checkpoint / "index.h5", "r") as index:
        view = index["view"]
        if sorted(view) != sorted(tensor["name"] for tensor in said):
            sys.exit("h5py sees other tensors than sparseattn-inspect")
        for tensor in said:
            values = view[tensor["name"]][...]
            if list(values.shape) != tensor["shape"]:
                sys.exit(f"{tensor['name']}: shape {values.shape}, inspect says {tensor['shape']}")
            wide = values.astype(np.float64).ravel()
            found = {"norm": np.sqrt(np.sum(wide * wide)), "min": wide.min(), "max": wide.max()}
            for key, value in found.items():
                if not np.isclose(value, tensor[key], rtol=1e-9, atol=0):
                    sys.exit(f"{tensor['name']}: {key} {value}, inspect says {tensor[key]}")
    print(f"{len(said)} tensors: names, shapes, norms and extremes are those sparseattn-inspect reports")


if __name__ == "__main__":
    main()
