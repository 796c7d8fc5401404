#!/usr/bin/env python3
"""PyTorch's attention on the shapes of cuda_bench: cuDNN (scaled_dot_product_attention, dense) and FlexAttention
(compiled, block lists), forward and backward, in one table with cuda_bench's rows when its JSON is given.

Work, density and eff are counted as in cuda_bench: eff = density x time of the fastest dense call of the shape (cuDNN's,
FlexAttention's or ours) / time. Exit code 0: done; 2: options, or no PyTorch, or no device."""
import argparse
import json
import statistics
import sys
import time

DENSITIES = (0.5, 0.25, 0.1, 0.05)


def shapes(quick):
    """(n, query heads, key heads, head dimension, causal), as perf/cuda/shapes.cuh has them."""
    lengths = (16384,) if quick else (16384, 32768, 65536, 131072)
    for n in lengths:
        heads = 16 if n <= 32768 else 8
        for causal in (False, True):
            yield n, heads, heads // 4, 128, causal
    if not quick:
        yield 16384, 16, 4, 64, False
        yield 16384, 16, 4, 64, True
        yield 65536, 8, 2, 64, False


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", metavar="FILE", help="what cuda_bench --json wrote")
    parser.add_argument("--only", default="cudnn,flex", help="cudnn, flex or both (default)")
    parser.add_argument("--quick", action="store_true", help="n 16384 only, densities 1 and 0.1")
    parser.add_argument("--autotune", action="store_true",
                        help="let PyTorch search FlexAttention's tiles (minutes; without it blocks of 64 have no backward)")
    parser.add_argument("--seconds", type=float, default=0.15, help="of measuring, per call (default 0.15)")
    parser.add_argument("--rest", type=float, default=0.5, help="sleep before each call, to let the card cool (default 0.5)")
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",")
    for word in chosen.only:
        if word not in ("cudnn", "flex"):
            parser.error(f"--only is {word}, must be cudnn, flex or both with a comma")
    if not 0 < chosen.seconds <= 600:
        parser.error(f"--seconds is {chosen.seconds}, must be in 0..600")
    if not 0 <= chosen.rest <= 600:
        parser.error(f"--rest is {chosen.rest}, must be in 0..600")
    return chosen


def leave(message):
    print(f"compare_torch: {message}", file=sys.stderr)
    sys.exit(2)


def our_rows(path):
    """Rows of cuda_bench with one list per head (dense: any), the faster order of each backward pass."""
    if path is None:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        leave(f"--ours {path}: {error}")
    best = {}
    for row in rows:
        if row["what"] not in ("forward", "backward") or row["sink"] or row["lines"] or row["lists"] != "own":
            continue
        key = (row["what"], row["n"], row["query_heads"], row["key_heads"], row["head_dim"], row["causal"], row["block"],
               nominal(row["density"]))
        if key not in best or row["ms"] < best[key]["ms"]:
            best[key] = row
    return best


def nominal(density):
    """The density that was asked for: the nearest, by ratio. (Causal lists have their diagonal on top.)"""
    return min((1.0,) + DENSITIES, key=lambda asked: max(asked / density, density / asked))


class Bench:
    def __init__(self, torch, options):
        self.torch = torch
        self.options = options
        self.compiled = None

    def time_ms(self, call):
        """Median of single calls, after a rest and a first call that warms up and compiles."""
        torch = self.torch
        call()
        torch.cuda.synchronize()
        time.sleep(self.options.rest)
        times, total = [], 0.0
        while len(times) < 4 or total < self.options.seconds * 1e3:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
            total += times[-1]
        return statistics.median(times[1:])

    def gemm_tflops(self):
        torch, n = self.torch, 8192
        a, b = (torch.rand(n, n, device="cuda", dtype=torch.bfloat16) * 2 - 1 for _ in range(2))
        return 2e-9 * n ** 3 / self.time_ms(lambda: a @ b.T)

    def inputs(self, shape):
        torch, (n, heads, key_heads, d, _) = self.torch, shape
        return tuple((torch.rand(1, h, n, d, device="cuda", dtype=torch.bfloat16) * 2 - 1).requires_grad_()
                     for h in (heads, key_heads, key_heads))

    def forward(self, attend, inputs):
        """Time of attend(*inputs)."""
        with self.torch.no_grad():
            return self.time_ms(lambda: attend(*inputs))

    def backward(self, attend, inputs):
        """Time of its backward pass."""
        torch = self.torch
        out = attend(*inputs)
        dout = torch.rand_like(out) * 2 - 1
        return self.time_ms(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))

    @staticmethod
    def cudnn(shape):
        """attend(q, k, v) by cuDNN."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention
        causal = shape[4]

        def attend(q, k, v):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return attend

    def block_mask(self, shape, block, density):
        """Random lists, one per head; causal: the diagonal always, masked by token. Returns the mask and its share of the
        pairs."""
        from torch.nn.attention.flex_attention import BlockMask
        torch, (n, heads, _, _, causal) = self.torch, shape
        blocks = n // block
        keep = torch.rand(1, heads, blocks, blocks, device="cuda") < density
        diagonal = torch.eye(blocks, device="cuda", dtype=torch.bool).expand_as(keep)
        if causal:
            keep = keep.tril(-1)

        def lists(kept):
            counts = kept.sum(-1, dtype=torch.int32)
            return counts, torch.argsort(kept.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
        if not causal:
            nothing = torch.zeros_like(keep)
            mask = BlockMask.from_kv_blocks(*lists(nothing), *lists(keep), BLOCK_SIZE=block)
            return mask, keep.float().mean().item()
        mask = BlockMask.from_kv_blocks(*lists(diagonal), *lists(keep), BLOCK_SIZE=block,
                                        mask_mod=lambda b, h, i, j: i >= j)
        kept = keep.sum().item() + heads * blocks / 2
        return mask, kept / (heads * blocks * blocks / 2)

    def compile_flex(self):
        """A fresh one for each shape and block: after a few shapes PyTorch would stop compiling, without a word."""
        from torch.nn.attention.flex_attention import flex_attention
        self.torch.compiler.reset()
        mode = "max-autotune-no-cudagraphs" if self.options.autotune else None
        self.compiled = self.torch.compile(flex_attention, dynamic=False, mode=mode)

    def flex(self, shape, block, density):
        """attend(q, k, v) by FlexAttention on random lists, and their share of the pairs."""
        mask, kept = self.block_mask(shape, block, density)
        # Its default tiles do not fit into lists of blocks of 64.
        options = {"BLOCK_M": 64, "BLOCK_N": 64} if block == 64 and not self.options.autotune else None

        def attend(q, k, v):
            return self.compiled(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options)
        return attend, kept


def flop(shape, what, density):
    n, heads, _, d, causal = shape
    return (4 if what == "forward" else 10) * d * n * n * heads * (0.5 if causal else 1) * density


def print_rows(shape, rows):
    """rows: (who, what, block, density, ms)."""
    n, heads, key_heads, d, causal = shape
    for what in ("forward", "backward"):
        dense = [ms for _, which, _, density, ms in rows if which == what and density >= 1]
        for who, which, block, density, ms in sorted(rows, key=lambda row: (-nominal(row[3]), -row[2], row[0])):
            if which != what:
                continue
            eff = f"{density * min(dense) / ms:5.2f}" if dense else "     "
            print(f"{what:8} {n:6d} {heads:3d}/{key_heads:<2d} {d:3d} {'causal' if causal else 'full':6} "
                  f"{block if block else '-':>3} {density:7.3f} {who:6} {ms:9.3f} {flop(shape, what, density) / ms * 1e-9:6.0f} "
                  f"{eff}", flush=True)


def attempt(what, shape, call):
    """call(), or None when PyTorch refuses the case: that must not end the table."""
    try:
        return call()
    except Exception as error:
        print(f"{what} n {shape[0]} d {shape[3]} {'causal' if shape[4] else 'full'}: not run: "
              f"{str(error).strip().splitlines()[0][:150]}", flush=True)
        return None


def measure(bench, options, ours, shape):
    rows = []

    def add(who, block, density, attend):
        inputs = bench.inputs(shape)
        for what, timed in (("forward", bench.forward), ("backward", bench.backward)):
            name = f"{who}{f', blocks of {block}' if block else ''}, {what}"
            ms = attempt(name, shape, lambda timed=timed: timed(attend, inputs))
            if ms is not None:
                rows.append((who, what, block, density, ms))
    if "cudnn" in options.only:
        add("cuDNN", 0, 1.0, bench.cudnn(shape))
    if "flex" in options.only:
        for block in (128, 64):
            bench.compile_flex()
            for density in (1.0, 0.1) if options.quick else (1.0,) + DENSITIES:
                attend, kept = bench.flex(shape, block, density)
                add("Flex", block, kept, attend)
    for (what, n, heads, key_heads, d, causal, block, _), row in ours.items() if ours else ():
        if (n, heads, key_heads, d, causal) == shape:
            rows.append(("ours", what, block, row["density"], row["ms"]))
    print_rows(shape, rows)


def main():
    options = arguments()
    ours = our_rows(options.ours)
    try:
        import torch
    except ImportError as error:
        leave(f"PyTorch is not installed ({error})")
    if not torch.cuda.is_available():
        leave("PyTorch sees no CUDA device")
    bench = Bench(torch, options)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print(f"before: gemm 8192 bf16 {bench.gemm_tflops():.0f} TFLOP/s")
    print(f"{'pass':8} {'n':>6} {'Hq/kv':>6} {'d':>3} {'mask':6} {'blk':>3} {'density':>7} {'who':6} {'ms':>9} TFLOP/s  eff")
    for shape in shapes(options.quick):
        measure(bench, options, ours, shape)
    print(f"after: gemm 8192 bf16 {bench.gemm_tflops():.0f} TFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
