#!/usr/bin/env python3
"""Compares loss and gradients of the decoder with Hugging Face transformers on small random models, in float64.

usage: compare_with_transformers.py path/to/dump_gradients

For developers; needs torch (CPU is enough), transformers and numpy. Prints the largest error per model and fails above
1e-5: transformers forms norms and rotary angles in float32 whatever the model's type.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE = dict(vocab_size=61, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
            intermediate_size=80, rope_theta=500.0, rms_norm_eps=1e-5, initializer_range=0.1, hidden_act="silu",
            attention_bias=False, tie_word_embeddings=False)
CASES = {
    "llama": dict(model_type="llama"),
    "llama, tied, Hkv = Hq": dict(model_type="llama", tie_word_embeddings=True, num_key_value_heads=6),
    "llama, Hkv = 1, d 8": dict(model_type="llama", num_key_value_heads=1, head_dim=8),
    "qwen3": dict(model_type="qwen3"),
    "qwen3, tied": dict(model_type="qwen3", tie_word_embeddings=True),
}
OFFSETS = [0, 37, 38, 150]


def reference(config, tokens, labels):
    """The model, its loss summed over documents, and its gradients by name."""
    kind = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.pop("model_type"), **kind),
                                             attn_implementation="eager").double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value += 0.3 * torch.randn_like(value)
    loss = torch.zeros((), dtype=torch.float64)
    for begin, end in zip(OFFSETS, OFFSETS[1:]):
        logits = model(torch.tensor(tokens[None, begin:end]).long()).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(labels[begin:end]).long(),
                                                        ignore_index=-1, reduction="sum")
    loss.backward()
    return dict(model.named_parameters()), loss.item()


def compare(program, case, seed):
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    config = {**BASE, **case}
    tokens = random.integers(0, config["vocab_size"], OFFSETS[-1]).astype(np.int32)
    labels = random.integers(-1, config["vocab_size"], OFFSETS[-1]).astype(np.int32)
    parameters, loss = reference(config, tokens, labels)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        subprocess.run([program, name], check=True)
        names = [line.split()[0] for line in (folder / "table.txt").read_text().splitlines()]
        if sorted(names) != sorted(parameters):
            raise SystemExit(f"tensor names differ: {sorted(set(names) ^ set(parameters))}")
        np.concatenate([parameters[n].detach().numpy().ravel() for n in names]).tofile(folder / "parameters.f64")
        tokens.tofile(folder / "tokens.i32")
        labels.tofile(folder / "labels.i32")
        np.array(OFFSETS, np.int32).tofile(folder / "offsets.i32")
        subprocess.run([program, name], check=True)
        flat = np.fromfile(folder / "gradients.f64")
        loss_error = abs(float((folder / "loss.txt").read_text()) - loss) / loss
    worst, begin = 0.0, 0
    for n in names:
        wanted = parameters[n].grad.numpy().ravel()
        error = np.abs(flat[begin:begin + wanted.size] - wanted).max() / np.abs(wanted).max()
        worst, begin = max(worst, error), begin + wanted.size
    return loss_error, worst


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    failed = False
    for name, case in CASES.items():
        for seed in (1, 2):
            loss_error, worst = compare(sys.argv[1], case, seed)
            failed = failed or max(loss_error, worst) > 1e-5
            print(f"{name:24} seed {seed}: loss {loss_error:.1e}, gradients {worst:.1e} (relative)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
