#!/usr/bin/env python3
"""Dense attention backward of PyTorch (cuDNN and flash back ends) on this device, to set beside bench_backward's table;
work is counted as there. Usage: torch_backward.py"""
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def time_ms(call, seconds=0.15):
    times, total = [], 0.0
    for step in range(200):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if step > 0:
            times.append(begin.elapsed_time(end))
        total += begin.elapsed_time(end)
        if step >= 3 and total > seconds * 1e3:
            break
    return statistics.median(times)


def dense(n, heads, key_heads, d, causal, backend):
    q, k, v = ((torch.rand(1, h, n, d, device="cuda", dtype=torch.bfloat16) * 2 - 1).requires_grad_()
               for h in (heads, key_heads, key_heads))
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != key_heads)
        dout = torch.rand_like(out) * 2 - 1
        ms = time_ms(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    flop = 10 * d * n * n * heads * (0.5 if causal else 1)
    name = "cuDNN" if backend == SDPBackend.CUDNN_ATTENTION else "flash"
    print(f"{name:6} backward n {n:6d} Hq {heads:2d} Hkv {key_heads:2d} d {d:3d} {'causal' if causal else 'full  '} "
          f"{ms:8.3f} ms {flop / ms * 1e-9:4.0f} TFLOP/s", flush=True)


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for n, heads, key_heads, d in ((16384, 16, 4, 128), (16384, 16, 16, 128), (65536, 8, 2, 128), (16384, 16, 4, 64)):
        for causal in (False, True):
            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                if backend == SDPBackend.FLASH_ATTENTION and (n > 20000 or key_heads != heads):
                    continue
                try:
                    dense(n, heads, key_heads, d, causal, backend)
                except RuntimeError as error:
                    print(f"{backend}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
