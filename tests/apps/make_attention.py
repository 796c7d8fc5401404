"""Makes a file of attention tensors with heads of a known kind.

usage: make_attention.py FILE TOKENS SEED [LAYERS] [CAUSAL]
Head 0 looks at some 500 near keys, its last queries elsewhere; head 1 at a few columns. Each has its own key head.
"""

import sys

import h5py
import numpy as np

D = 32


def heads(n, rng):
    t = np.arange(n)[:, None]
    c = np.arange(D)[None, :]
    phase = 6.28 * np.random.default_rng(99).random((1, D))
    near = lambda position: 1.6 * np.cos(0.001 * (c % 4 + 1) * position + phase)
    column = 3.2 * np.random.default_rng(98).standard_normal((1, D))
    query = np.stack([near(np.where(t < n - 64, t, t // 3)), np.repeat(column, n, 0)], 1)
    key = np.stack([near(t), np.where(t % 307 == 150, column, 0.0)], 1)
    noise = lambda: 0.3 * rng.standard_normal((n, 2, D))
    return query + noise(), key + noise(), rng.standard_normal((n, 2, D))


def main():
    path, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    layers = sys.argv[4].split(",") if len(sys.argv) > 4 else ["0"]
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "sparseattn-attention"
        file.attrs["version"] = 1
        file.attrs["causal"] = len(sys.argv) <= 5 or sys.argv[5] == "1"
        for layer in layers:
            group = file.create_group(f"layer_{int(layer):04d}")
            for name, data in zip(("query", "key", "value"), heads(n, rng)):
                group[name] = data.astype("f4")


main()
