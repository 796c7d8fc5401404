#!/usr/bin/env python3
"""Dense attention forward of PyTorch (cuDNN and flash back ends) and FlexAttention's block sparsity on this device, to
set beside bench_forward's table. Work and eff are counted as there. Usage: torch_forward.py [--flex]"""
import statistics
import sys
import time

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
    q, k, v = (torch.rand(1, h, n, d, device="cuda", dtype=torch.bfloat16) * 2 - 1 for h in (heads, key_heads, key_heads))
    time.sleep(1)  # a second of rest before each case, as bench_forward --dense does: clocks follow temperature and power
    with sdpa_kernel(backend):
        ms = time_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != key_heads))
    flop = 4 * d * n * n * heads * (0.5 if causal else 1)
    name = "cuDNN" if backend == SDPBackend.CUDNN_ATTENTION else "flash"
    print(f"{name:6} n {n:6d} Hq {heads:2d} Hkv {key_heads:2d} d {d:3d} {'causal' if causal else 'full  '} {ms:8.3f} ms "
          f"{flop / ms * 1e-9:4.0f} TFLOP/s", flush=True)


def flex(n, heads, key_heads, d, block, densities):
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = (torch.rand(1, h, n, d, device="cuda", dtype=torch.bfloat16) * 2 - 1 for h in (heads, key_heads, key_heads))
    dense_ms = None
    for density in densities:
        keep = torch.rand(1, heads, n // block, n // block, device="cuda") < density
        counts = keep.sum(-1, dtype=torch.int32)
        order = torch.argsort(keep.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
        mask = BlockMask.from_kv_blocks(torch.zeros_like(counts), torch.zeros_like(order), counts, order, BLOCK_SIZE=block)
        ms = time_ms(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=heads != key_heads))
        kept = keep.float().mean().item()
        dense_ms = dense_ms or ms
        print(f"Flex   n {n:6d} Hq {heads:2d} Hkv {key_heads:2d} d {d:3d} block {block} density {kept:.3f} {ms:8.3f} ms "
              f"{4 * d * n * n * heads * kept / ms * 1e-9:4.0f} TFLOP/s eff {kept * dense_ms / ms:.2f}", flush=True)


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for n, heads in ((16384, 16), (65536, 4)):
        for causal in (False, True):
            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                if backend == SDPBackend.FLASH_ATTENTION and n > 20000:
                    continue
                try:
                    dense(n, heads, heads // 4, 128, causal, backend)
                except RuntimeError as error:
                    print(backend, "n", n, "causal", causal, "not run:", str(error).splitlines()[0])
    dense(16384, 16, 4, 64, False, SDPBackend.CUDNN_ATTENTION)
    if "--flex" in sys.argv[1:]:
        flex(16384, 16, 4, 128, 128, (1.0, 0.5, 0.25, 0.1, 0.05))


if __name__ == "__main__":
    main()
