"""Files of attention tensors from the side of h5py.

usage: attention_file_with_h5py.py write FOLDER   makes good files and malformed ones
       attention_file_with_h5py.py read FILE      checks what the test wrote
"""

import pathlib
import sys

import h5py
import numpy as np

QUERIES, KEYS, HEADS, KV_HEADS, DIM = 5, 7, 4, 2, 3


def values(which, tokens, heads, layer=0):
    """Numbers that every stored type holds exactly: the C++ side has the same rule."""
    t, h, c = np.meshgrid(np.arange(tokens), np.arange(heads), np.arange(DIM), indexing="ij")
    return ((31 * t + 7 * h + 3 * c + 5 * which + 11 * layer) % 64) / 16.0 - 2.0


def bfloat16():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_precision(16)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def tensors(group, dtype="f4", layer=0):
    for which, (name, tokens, heads) in enumerate(
        (("query", QUERIES, HEADS), ("key", KEYS, KV_HEADS), ("value", KEYS, KV_HEADS))
    ):
        group.create_dataset(name, data=values(which, tokens, heads, layer).astype(dtype))


def new(path):
    file = h5py.File(path, "w")
    file.attrs["format"] = "sparseattn-attention"
    file.attrs["version"] = 1
    return file


def write_good(folder):
    for dtype in ("<f2", "<f4", "<f8", ">f4"):
        with new(folder / f"{dtype[1:] + ('be' if dtype[0] == '>' else '')}.h5") as file:
            tensors(file, dtype)
    with new(folder / "bf16.h5") as file:
        for which, (name, tokens, heads) in enumerate(
            (("query", QUERIES, HEADS), ("key", KEYS, KV_HEADS), ("value", KEYS, KV_HEADS))
        ):
            data = values(which, tokens, heads).astype("f4")
            space = h5py.h5s.create_simple(data.shape)
            dataset = h5py.h5d.create(file.id, name.encode(), bfloat16(), space)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
    with new(folder / "layers.h5") as file:
        file.attrs["format"] = np.bytes_("sparseattn-attention")
        file.attrs["causal"] = False
        file.attrs["scale"] = np.float32(0.25)
        file["query_offsets"] = np.array([0, 2, 2, 5])  # int64
        file["key_offsets"] = np.array([0, 3, 4, 7], dtype="i4")
        file["notes"] = "ignored"
        for layer in (12, 3):
            group = file.create_group(f"layer_{layer:04d}")
            tensors(group, layer=layer)
            group.create_group("older_method")


def change(file, name, data):
    del file[name]
    if data is not None:
        file[name] = data


MALFORMED = {
    "no_format": lambda f: f.attrs.__delitem__("format"),
    "other_format": lambda f: f.attrs.__setitem__("format", "other"),
    "number_format": lambda f: f.attrs.__setitem__("format", 3),
    "no_version": lambda f: f.attrs.__delitem__("version"),
    "new_version": lambda f: f.attrs.__setitem__("version", 2),
    "causal_text": lambda f: f.attrs.__setitem__("causal", "yes"),
    "causal_two": lambda f: f.attrs.__setitem__("causal", 2),
    "scale_negative": lambda f: f.attrs.__setitem__("scale", -1.0),
    "scale_nan": lambda f: f.attrs.__setitem__("scale", np.nan),
    "scale_text": lambda f: f.attrs.__setitem__("scale", "1"),
    "scale_list": lambda f: f.attrs.__setitem__("scale", [1.0, 2.0]),
    "no_layer": lambda f: change(f, "query", None),
    "no_value": lambda f: change(f, "value", None),
    "group_for_key": lambda f: (change(f, "key", None), f.create_group("key")),
    "integer_key": lambda f: change(f, "key", np.zeros((KEYS, KV_HEADS, DIM), "i4")),
    "text_key": lambda f: change(f, "key", "k"),
    "flat_query": lambda f: change(f, "query", np.zeros((QUERIES, HEADS * DIM), "f4")),
    "no_tokens": lambda f: change(f, "query", np.zeros((0, HEADS, DIM), "f4")),
    "other_dimension": lambda f: change(f, "key", np.zeros((KEYS, KV_HEADS, DIM + 1), "f4")),
    "odd_heads": lambda f: change(f, "key", np.zeros((KEYS, 3, DIM), "f4")),
    "short_value": lambda f: change(f, "value", np.zeros((KEYS - 1, KV_HEADS, DIM), "f4")),
    "root_and_layers": lambda f: tensors(f.create_group("layer_0000")),
    "layer_name": lambda f: f.create_group("layer_1"),
    "offsets_float": lambda f: f.create_dataset("query_offsets", data=[0.0, 5.0]),
    "offsets_shape": lambda f: f.create_dataset("query_offsets", data=[[0, 5]]),
    "offsets_start": lambda f: f.create_dataset("query_offsets", data=[1, 5]),
    "offsets_fall": lambda f: f.create_dataset("query_offsets", data=[0, 4, 3, 5]),
    "offsets_end": lambda f: f.create_dataset("query_offsets", data=[0, 6]),
    "offsets_count": lambda f: (
        f.create_dataset("query_offsets", data=[0, 2, 5]),
        f.create_dataset("key_offsets", data=[0, 7]),
    ),
    "offsets_missing": lambda f: f.create_dataset("query_offsets", data=[0, 2, 5]),
    "nan": lambda f: f["key"].__setitem__((2, 1, 0), np.nan),
    "overflow": lambda f: change(f, "key", np.full((KEYS, KV_HEADS, DIM), 1e300)),
}


def write_malformed(folder):
    for name, spoil in MALFORMED.items():
        with new(folder / f"{name}.h5") as file:
            tensors(file)
            spoil(file)
    with new(folder / "layer_tokens.h5") as file:
        tensors(file.create_group("layer_0000"))
        group = file.create_group("layer_0001")
        tensors(group)
        change(group, "query", np.zeros((QUERIES + 1, HEADS, DIM), "f4"))


def read(path):
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == b"sparseattn-attention", file.attrs["format"]
        assert file.attrs["version"] == 1 and file.attrs["causal"] == 1 and file.attrs["scale"] == 0.5
        assert list(file["query_offsets"]) == [0, 2, 2, 5] and list(file["key_offsets"]) == [0, 3, 3, 7]
        for layer, wanted in ((0, np.dtype("f4")), (7, np.dtype("f4"))):  # h5py widens bfloat16
            group = file[f"layer_{layer:04d}"]
            for which, (name, tokens, heads) in enumerate(
                (("query", QUERIES, HEADS), ("key", KEYS, KV_HEADS), ("value", KEYS, KV_HEADS))
            ):
                assert group[name].dtype == wanted, group[name].dtype
                assert np.array_equal(group[name][...], values(which, tokens, heads, layer)), (layer, name)
        assert file["layer_0007/query"].id.get_type().get_size() == 2
        result = file["layer_0000/method"]
        assert result.attrs["selector"] == b"streaming:sink=1"
        assert np.array_equal(result["out"][...], values(8, QUERIES, HEADS))
        assert np.array_equal(result["lse"][...], np.arange(QUERIES * HEADS).reshape(QUERIES, HEADS))
        layout = result["layout"]
        assert layout.attrs["block"] == 64 and layout.attrs["causal"] == 1
        assert list(layout["head_list"]) == [0, 0, 1, 1]
        assert layout["windows"].shape == (HEADS, 3) and list(layout["windows"][3]) == [9, 10, 11]
        assert list(layout["offsets"]) == [0, 1, 2, 3, 4] and list(layout["columns"]) == [0, 0, 0, 0]
        assert layout["key_offsets"].shape == (0,) and layout["keys"].shape == (0,)
        assert list(file["layer_0007"]) == ["key", "query", "value"]


def main():
    command, path = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "write":
        for kind, write in (("good", write_good), ("malformed", write_malformed)):
            (path / kind).mkdir()
            write(path / kind)
    else:
        read(path)


main()
