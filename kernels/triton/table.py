"""The tiles of layers that were looked at, as ``python -m seqconv.kernels.triton.census --table`` writes them.

A key is a kernel's name and a :class:`.configurations.Layer`, a value the fields of its configuration. Beside it stand
registers a thread, shared bytes a block and the matrix instructions, as compiled; no stack is used. No times: none of
these tiles has been tried on a GPU. An entry that is deleted is chosen anew by the rules.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TABLE"]

TABLE: dict[tuple[Any, ...], tuple[int, ...]] = {
    # imdb1
    ("forward", "16", 128, 32, 7, 5, True, False, "sm_80"): (128, 32, 16, 5, 8, 2),  # 170 regs, 52224 B, mma
    ("weight_gradient", "16", 128, 32, 7, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 160 regs, 26624 B, mma
    ("input_gradient", "16", 128, 32, 7, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 139 regs, 18432 B, mma
    ("forward", "16", 128, 32, 7, 5, True, False, "sm_90"): (128, 32, 16, 5, 8, 2),  # 128 regs, 104448 B, wgmma
    ("weight_gradient", "16", 128, 32, 7, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 126 regs, 43008 B, wgmma
    ("input_gradient", "16", 128, 32, 7, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 112 regs, 24576 B, wgmma
    ("forward", "tf32", 128, 32, 7, 5, True, False, "sm_80"): (64, 32, 16, 5, 4, 2),  # 214 regs, 59392 B, mma
    ("weight_gradient", "tf32", 128, 32, 7, 1, True, False, "sm_80"): (32, 128, 32, 4, 2),  # 238 regs, 25600 B, mma
    ("input_gradient", "tf32", 128, 32, 7, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 182 regs, 34816 B, mma
    ("forward", "tf32", 128, 32, 7, 5, True, False, "sm_90"): (64, 32, 16, 5, 4, 2),  # 166 regs, 73728 B, wgmma
    ("weight_gradient", "tf32", 128, 32, 7, 1, True, False, "sm_90"): (32, 128, 32, 4, 2),  # 246 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 128, 32, 7, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 165 regs, 51200 B, wgmma
    ("forward", "ieee", 128, 32, 7, 5, True, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, True, False, "sm_80"): (32, 64, 32, 4, 2),  # 90 regs, 17920 B, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 26624 B, fma
    ("forward", "ieee", 128, 32, 7, 5, True, False, "sm_90"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, True, False, "sm_90"): (32, 64, 32, 4, 2),  # 80 regs, 17920 B, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 115 regs, 26624 B, fma
    # imdb2
    ("forward", "16", 32, 32, 7, 0, True, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 164 regs, 47104 B, mma
    ("weight_gradient", "16", 32, 32, 7, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 164 regs, 24576 B, mma
    ("input_gradient", "16", 32, 32, 7, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 95 regs, 10240 B, mma
    ("forward", "16", 32, 32, 7, 0, True, False, "sm_90"): (64, 32, 32, 2, 4, 2),  # 158 regs, 79872 B, wgmma
    ("weight_gradient", "16", 32, 32, 7, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 140 regs, 40960 B, wgmma
    ("input_gradient", "16", 32, 32, 7, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 86 regs, 12288 B, wgmma
    ("forward", "tf32", 32, 32, 7, 0, True, False, "sm_80"): (64, 32, 16, 2, 4, 2),  # 186 regs, 47104 B, mma
    ("weight_gradient", "tf32", 32, 32, 7, 1, True, False, "sm_80"): (32, 128, 32, 4, 2),  # 236 regs, 26624 B, mma
    ("input_gradient", "tf32", 32, 32, 7, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 127 regs, 24576 B, mma
    ("forward", "tf32", 32, 32, 7, 0, True, False, "sm_90"): (64, 32, 16, 2, 4, 2),  # 152 regs, 61440 B, wgmma
    ("weight_gradient", "tf32", 32, 32, 7, 1, True, False, "sm_90"): (32, 128, 32, 4, 2),  # 240 regs, 26624 B, wgmma
    ("input_gradient", "tf32", 32, 32, 7, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 113 regs, 28672 B, wgmma
    ("forward", "ieee", 32, 32, 7, 0, True, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 128 regs, 12288 B, fma
    ("weight_gradient", "ieee", 32, 32, 7, 1, True, False, "sm_80"): (32, 64, 32, 4, 2),  # 109 regs, 18944 B, fma
    ("input_gradient", "ieee", 32, 32, 7, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 96 regs, 24576 B, fma
    ("forward", "ieee", 32, 32, 7, 0, True, False, "sm_90"): (64, 32, 16, 1, 4, 3),  # 128 regs, 12288 B, fma
    ("weight_gradient", "ieee", 32, 32, 7, 1, True, False, "sm_90"): (32, 64, 32, 4, 2),  # 94 regs, 18944 B, fma
    ("input_gradient", "ieee", 32, 32, 7, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 96 regs, 24576 B, fma
    # jena1
    ("forward", "16", 14, 32, 5, 3, True, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 122 regs, 41984 B, mma
    ("weight_gradient", "16", 14, 32, 5, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 255 regs, 26624 B, mma
    ("input_gradient", "16", 14, 32, 5, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 67 regs, 11264 B, mma
    ("forward", "16", 14, 32, 5, 3, True, False, "sm_90"): (128, 32, 16, 3, 8, 2),  # 105 regs, 70656 B, wgmma
    ("weight_gradient", "16", 14, 32, 5, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 254 regs, 43008 B, wgmma
    ("input_gradient", "16", 14, 32, 5, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 56 regs, 10240 B, wgmma
    ("forward", "tf32", 14, 32, 5, 3, True, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 162 regs, 83968 B, mma
    ("weight_gradient", "tf32", 14, 32, 5, 1, True, False, "sm_80"): (32, 128, 32, 4, 2),  # 216 regs, 25600 B, mma
    ("input_gradient", "tf32", 14, 32, 5, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 80 regs, 20480 B, mma
    ("forward", "tf32", 14, 32, 5, 3, True, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 104 regs, 47104 B, wgmma
    ("weight_gradient", "tf32", 14, 32, 5, 1, True, False, "sm_90"): (32, 128, 32, 4, 2),  # 216 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 14, 32, 5, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 72 regs, 22528 B, wgmma
    ("forward", "ieee", 14, 32, 5, 3, True, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 254 regs, 24576 B, fma
    ("weight_gradient", "ieee", 14, 32, 5, 1, True, False, "sm_80"): (32, 64, 32, 4, 2),  # 96 regs, 17920 B, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 64 regs, 20480 B, fma
    ("forward", "ieee", 14, 32, 5, 3, True, False, "sm_90"): (64, 32, 32, 1, 4, 3),  # 168 regs, 24576 B, fma
    ("weight_gradient", "ieee", 14, 32, 5, 1, True, False, "sm_90"): (32, 64, 32, 4, 2),  # 96 regs, 17920 B, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 56 regs, 20480 B, fma
    # jena2
    ("forward", "16", 32, 32, 5, 3, True, False, "sm_80"): (128, 32, 32, 3, 8, 2),  # 154 regs, 75776 B, mma
    ("weight_gradient", "16", 32, 32, 5, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 161 regs, 26624 B, mma
    ("input_gradient", "16", 32, 32, 5, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 80 regs, 12288 B, mma
    ("forward", "16", 32, 32, 5, 3, True, False, "sm_90"): (128, 32, 16, 3, 8, 2),  # 106 regs, 62464 B, wgmma
    ("weight_gradient", "16", 32, 32, 5, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 128 regs, 43008 B, wgmma
    ("input_gradient", "16", 32, 32, 5, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 64 regs, 12288 B, wgmma
    ("forward", "tf32", 32, 32, 5, 3, True, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 142 regs, 67584 B, mma
    ("weight_gradient", "tf32", 32, 32, 5, 1, True, False, "sm_80"): (32, 128, 32, 4, 2),  # 226 regs, 25600 B, mma
    ("input_gradient", "tf32", 32, 32, 5, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 96 regs, 22528 B, mma
    ("forward", "tf32", 32, 32, 5, 3, True, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 108 regs, 49152 B, wgmma
    ("weight_gradient", "tf32", 32, 32, 5, 1, True, False, "sm_90"): (32, 128, 32, 4, 2),  # 218 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 32, 32, 5, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 80 regs, 26624 B, wgmma
    ("forward", "ieee", 32, 32, 5, 3, True, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 32, 32, 5, 1, True, False, "sm_80"): (32, 64, 32, 4, 2),  # 92 regs, 17920 B, fma
    ("input_gradient", "ieee", 32, 32, 5, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 72 regs, 22528 B, fma
    ("forward", "ieee", 32, 32, 5, 3, True, False, "sm_90"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 32, 32, 5, 1, True, False, "sm_90"): (32, 64, 32, 4, 2),  # 90 regs, 17920 B, fma
    ("input_gradient", "ieee", 32, 32, 5, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 76 regs, 22528 B, fma
    # jena3
    ("forward", "16", 32, 32, 5, 0, True, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 156 regs, 34816 B, mma
    ("forward", "16", 32, 32, 5, 0, True, False, "sm_90"): (64, 32, 32, 2, 4, 2),  # 134 regs, 59392 B, wgmma
    ("forward", "tf32", 32, 32, 5, 0, True, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 234 regs, 69632 B, mma
    ("forward", "tf32", 32, 32, 5, 0, True, False, "sm_90"): (64, 32, 16, 2, 4, 2),  # 133 regs, 45056 B, wgmma
    ("forward", "ieee", 32, 32, 5, 0, True, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 128 regs, 12288 B, fma
    ("forward", "ieee", 32, 32, 5, 0, True, False, "sm_90"): (64, 32, 16, 1, 4, 3),  # 128 regs, 12288 B, fma
    # imdb1, contiguous
    ("forward", "16", 128, 32, 7, 5, False, False, "sm_80"): (64, 32, 64, 1, 8, 3),  # 199 regs, 16384 B, mma
    ("weight_gradient", "16", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 8, 2),  # 213 regs, 16384 B, mma
    ("input_gradient", "16", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 8, 2),  # 128 regs, 16384 B, mma
    ("forward", "16", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 64, 1, 8, 3),  # 209 regs, 20480 B, wgmma
    ("weight_gradient", "16", 128, 32, 7, 1, False, False, "sm_90"): (64, 128, 32, 8, 2),  # 216 regs, 22528 B, wgmma
    ("input_gradient", "16", 128, 32, 7, 1, False, False, "sm_90"): (64, 128, 32, 8, 2),  # 146 regs, 22528 B, wgmma
    ("forward", "tf32", 128, 32, 7, 5, False, False, "sm_80"): (64, 32, 32, 1, 8, 3),  # 97 regs, 24576 B, mma
    ("weight_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_80"): (32, 128, 32, 8, 2),  # 128 regs, 25600 B, mma
    ("input_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 8, 2),  # 170 regs, 34816 B, mma
    ("forward", "tf32", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 32, 1, 8, 3),  # 116 regs, 28672 B, wgmma
    ("weight_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_90"): (32, 128, 32, 8, 2),  # 188 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_90"): (64, 128, 32, 8, 2),  # 158 regs, 51200 B, wgmma
    ("forward", "ieee", 128, 32, 7, 5, False, False, "sm_80"): (64, 32, 32, 1, 8, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_80"): (32, 64, 32, 8, 2),  # 80 regs, 18432 B, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_80"): (64, 64, 32, 8, 2),  # 101 regs, 26624 B, fma
    ("forward", "ieee", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 32, 1, 8, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_90"): (32, 64, 32, 8, 2),  # 80 regs, 18432 B, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_90"): (64, 64, 32, 8, 2),  # 106 regs, 26624 B, fma
    # jena1, contiguous
    ("forward", "16", 14, 32, 5, 3, False, False, "sm_80"): (64, 32, 64, 1, 8, 3),  # 231 regs, 12288 B, mma
    ("weight_gradient", "16", 14, 32, 5, 1, False, False, "sm_80"): (64, 128, 32, 8, 2),  # 228 regs, 16384 B, mma
    ("input_gradient", "16", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 80 regs, 7168 B, mma
    ("forward", "16", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 64, 1, 8, 3),  # 220 regs, 12288 B, wgmma
    ("weight_gradient", "16", 14, 32, 5, 1, False, False, "sm_90"): (64, 128, 32, 8, 2),  # 240 regs, 22528 B, wgmma
    ("input_gradient", "16", 14, 32, 5, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 77 regs, 8192 B, wgmma
    ("forward", "tf32", 14, 32, 5, 3, False, False, "sm_80"): (64, 32, 32, 1, 8, 3),  # 119 regs, 24576 B, mma
    ("weight_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_80"): (32, 128, 32, 8, 2),  # 128 regs, 25600 B, mma
    ("input_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 80 regs, 20480 B, mma
    ("forward", "tf32", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 32, 1, 8, 3),  # 123 regs, 28672 B, wgmma
    ("weight_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_90"): (32, 128, 32, 8, 2),  # 160 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 72 regs, 22528 B, wgmma
    ("forward", "ieee", 14, 32, 5, 3, False, False, "sm_80"): (64, 32, 32, 1, 8, 3),  # 216 regs, 24576 B, fma
    ("weight_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_80"): (32, 64, 32, 8, 2),  # 79 regs, 18432 B, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 79 regs, 20480 B, fma
    ("forward", "ieee", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 32, 1, 8, 3),  # 176 regs, 24576 B, fma
    ("weight_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_90"): (32, 64, 32, 8, 2),  # 80 regs, 18432 B, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 78 regs, 20480 B, fma
    # univariate
    ("forward", "16", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 8, 3),  # 64 regs, 4096 B, mma
    ("weight_gradient", "16", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 112 regs, 6144 B, mma
    ("input_gradient", "16", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 80 regs, 7168 B, mma
    ("forward", "16", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 8, 3),  # 58 regs, 4096 B, wgmma
    ("weight_gradient", "16", 1, 32, 7, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 112 regs, 6144 B, mma
    ("input_gradient", "16", 1, 32, 7, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 77 regs, 7168 B, wgmma
    ("forward", "tf32", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 8, 3),  # 76 regs, 10240 B, mma
    ("weight_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_80"): (32, 16, 32, 8, 2),  # 74 regs, 11264 B, mma
    ("input_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 80 regs, 20480 B, mma
    ("forward", "tf32", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 8, 3),  # 80 regs, 10240 B, wgmma
    ("weight_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_90"): (32, 16, 32, 8, 2),  # 74 regs, 11264 B, mma
    ("input_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 73 regs, 22528 B, wgmma
    ("forward", "ieee", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 8, 3),  # 101 regs, 10240 B, fma
    ("weight_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_80"): (32, 16, 32, 8, 2),  # 72 regs, 12288 B, fma
    ("input_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 64 regs, 20480 B, fma
    ("forward", "ieee", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 8, 3),  # 104 regs, 10240 B, fma
    ("weight_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_90"): (32, 16, 32, 8, 2),  # 57 regs, 12288 B, fma
    ("input_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_90"): (64, 16, 32, 8, 2),  # 64 regs, 20480 B, fma
    # four channels
    ("forward", "16", 4, 64, 3, 2, True, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 142 regs, 8192 B, mma
    ("weight_gradient", "16", 4, 64, 3, 1, True, False, "sm_80"): (64, 16, 64, 4, 2),  # 96 regs, 22528 B, mma
    ("input_gradient", "16", 4, 64, 3, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 62 regs, 11264 B, mma
    ("forward", "16", 4, 64, 3, 2, True, False, "sm_90"): (64, 64, 16, 1, 4, 3),  # 138 regs, 8192 B, wgmma
    ("weight_gradient", "16", 4, 64, 3, 1, True, False, "sm_90"): (64, 16, 64, 4, 2),  # 108 regs, 22528 B, mma
    ("input_gradient", "16", 4, 64, 3, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 56 regs, 10240 B, wgmma
    ("forward", "tf32", 4, 64, 3, 2, True, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 166 regs, 12288 B, mma
    ("weight_gradient", "tf32", 4, 64, 3, 1, True, False, "sm_80"): (32, 16, 64, 4, 2),  # 128 regs, 20480 B, mma
    ("input_gradient", "tf32", 4, 64, 3, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 72 regs, 20480 B, mma
    ("forward", "tf32", 4, 64, 3, 2, True, False, "sm_90"): (64, 64, 16, 1, 4, 3),  # 144 regs, 16384 B, wgmma
    ("weight_gradient", "tf32", 4, 64, 3, 1, True, False, "sm_90"): (32, 16, 64, 4, 2),  # 125 regs, 20480 B, mma
    ("input_gradient", "tf32", 4, 64, 3, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 70 regs, 22528 B, wgmma
    ("forward", "ieee", 4, 64, 3, 2, True, False, "sm_80"): (64, 64, 16, 1, 8, 3),  # 128 regs, 16384 B, fma
    ("weight_gradient", "ieee", 4, 64, 3, 1, True, False, "sm_80"): (32, 16, 64, 4, 2),  # 72 regs, 21504 B, fma
    ("input_gradient", "ieee", 4, 64, 3, 1, True, False, "sm_80"): (64, 16, 32, 4, 2),  # 57 regs, 20480 B, fma
    ("forward", "ieee", 4, 64, 3, 2, True, False, "sm_90"): (64, 64, 16, 1, 8, 3),  # 128 regs, 16384 B, fma
    ("weight_gradient", "ieee", 4, 64, 3, 1, True, False, "sm_90"): (32, 16, 64, 4, 2),  # 72 regs, 21504 B, fma
    ("input_gradient", "ieee", 4, 64, 3, 1, True, False, "sm_90"): (64, 16, 32, 4, 2),  # 49 regs, 20480 B, fma
    # 64 to 128
    ("forward", "16", 64, 128, 3, 2, True, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 166 regs, 45056 B, mma
    ("weight_gradient", "16", 64, 128, 3, 1, True, False, "sm_80"): (64, 128, 64, 4, 2),  # 218 regs, 36864 B, mma
    ("input_gradient", "16", 64, 128, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 14336 B, mma
    ("forward", "16", 64, 128, 3, 2, True, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 124 regs, 90112 B, wgmma
    ("weight_gradient", "16", 64, 128, 3, 1, True, False, "sm_90"): (64, 128, 64, 4, 2),  # 168 regs, 53248 B, wgmma
    ("input_gradient", "16", 64, 128, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 80 regs, 16384 B, wgmma
    ("forward", "tf32", 64, 128, 3, 2, True, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168 regs, 45056 B, mma
    ("weight_gradient", "tf32", 64, 128, 3, 1, True, False, "sm_80"): (32, 128, 64, 4, 2),  # 255 regs, 34816 B, mma
    ("input_gradient", "tf32", 64, 128, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 128 regs, 26624 B, mma
    ("forward", "tf32", 64, 128, 3, 2, True, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 129 regs, 57344 B, wgmma
    ("weight_gradient", "tf32", 64, 128, 3, 1, True, False, "sm_90"): (32, 128, 64, 4, 2),  # 254 regs, 34816 B, wgmma
    ("input_gradient", "tf32", 64, 128, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 101 regs, 34816 B, wgmma
    ("forward", "ieee", 64, 128, 3, 2, True, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 64, 128, 3, 1, True, False, "sm_80"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 64, 128, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 26624 B, fma
    ("forward", "ieee", 64, 128, 3, 2, True, False, "sm_90"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 64, 128, 3, 1, True, False, "sm_90"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 64, 128, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 111 regs, 26624 B, fma
    # 256 to 256
    ("forward", "16", 256, 256, 3, 2, True, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 194 regs, 45056 B, mma
    ("weight_gradient", "16", 256, 256, 3, 1, True, False, "sm_80"): (64, 128, 64, 4, 2),  # 216 regs, 36864 B, mma
    ("input_gradient", "16", 256, 256, 3, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 140 regs, 18432 B, mma
    ("forward", "16", 256, 256, 3, 2, True, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 122 regs, 90112 B, wgmma
    ("weight_gradient", "16", 256, 256, 3, 1, True, False, "sm_90"): (64, 128, 64, 4, 2),  # 168 regs, 53248 B, wgmma
    ("input_gradient", "16", 256, 256, 3, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 112 regs, 24576 B, wgmma
    ("forward", "tf32", 256, 256, 3, 2, True, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168 regs, 45056 B, mma
    ("weight_gradient", "tf32", 256, 256, 3, 1, True, False, "sm_80"): (32, 128, 64, 4, 2),  # 254 regs, 34816 B, mma
    ("input_gradient", "tf32", 256, 256, 3, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 166 regs, 34816 B, mma
    ("forward", "tf32", 256, 256, 3, 2, True, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 129 regs, 57344 B, wgmma
    ("weight_gradient", "tf32", 256, 256, 3, 1, True, False, "sm_90"): (32, 128, 64, 4, 2),  # 255 regs, 34816 B, wgmma
    ("input_gradient", "tf32", 256, 256, 3, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 158 regs, 51200 B, wgmma
    ("forward", "ieee", 256, 256, 3, 2, True, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 256, 256, 3, 1, True, False, "sm_80"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 256, 256, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 26624 B, fma
    ("forward", "ieee", 256, 256, 3, 2, True, False, "sm_90"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 256, 256, 3, 1, True, False, "sm_90"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 256, 256, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 111 regs, 26624 B, fma
    # 512 to 512
    ("forward", "16", 512, 512, 3, 2, True, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 178 regs, 45056 B, mma
    ("weight_gradient", "16", 512, 512, 3, 1, True, False, "sm_80"): (64, 128, 64, 4, 2),  # 216 regs, 36864 B, mma
    ("input_gradient", "16", 512, 512, 3, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 140 regs, 18432 B, mma
    ("forward", "16", 512, 512, 3, 2, True, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 122 regs, 90112 B, wgmma
    ("weight_gradient", "16", 512, 512, 3, 1, True, False, "sm_90"): (64, 128, 64, 4, 2),  # 168 regs, 53248 B, wgmma
    ("input_gradient", "16", 512, 512, 3, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 112 regs, 24576 B, wgmma
    ("forward", "tf32", 512, 512, 3, 2, True, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168 regs, 45056 B, mma
    ("weight_gradient", "tf32", 512, 512, 3, 1, True, False, "sm_80"): (32, 128, 64, 4, 2),  # 254 regs, 34816 B, mma
    ("input_gradient", "tf32", 512, 512, 3, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 166 regs, 34816 B, mma
    ("forward", "tf32", 512, 512, 3, 2, True, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 129 regs, 57344 B, wgmma
    ("weight_gradient", "tf32", 512, 512, 3, 1, True, False, "sm_90"): (32, 128, 64, 4, 2),  # 255 regs, 34816 B, wgmma
    ("input_gradient", "tf32", 512, 512, 3, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 158 regs, 51200 B, wgmma
    ("forward", "ieee", 512, 512, 3, 2, True, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 512, 512, 3, 1, True, False, "sm_80"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 512, 512, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 26624 B, fma
    ("forward", "ieee", 512, 512, 3, 2, True, False, "sm_90"): (64, 64, 32, 1, 8, 3),  # 128 regs, 32768 B, fma
    ("weight_gradient", "ieee", 512, 512, 3, 1, True, False, "sm_90"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 512, 512, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 111 regs, 26624 B, fma
    # padded, dilated
    ("forward", "16", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 64, 1, 4, 3),  # 255 regs, 32768 B, mma
    ("weight_gradient", "16", 64, 64, 3, 1, True, True, "sm_80"): (64, 128, 64, 4, 2),  # 233 regs, 36864 B, mma
    ("input_gradient", "16", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 14336 B, mma
    ("forward", "16", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 64, 1, 4, 3),  # 187 regs, 49152 B, wgmma
    ("weight_gradient", "16", 64, 64, 3, 1, True, True, "sm_90"): (64, 128, 64, 4, 2),  # 179 regs, 53248 B, wgmma
    ("input_gradient", "16", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 80 regs, 16384 B, wgmma
    ("forward", "tf32", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 32, 1, 4, 3),  # 234 regs, 32768 B, mma
    ("weight_gradient", "tf32", 64, 64, 3, 1, True, True, "sm_80"): (32, 128, 64, 4, 2),  # 255 regs, 34816 B, mma
    ("input_gradient", "tf32", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 128 regs, 26624 B, mma
    ("forward", "tf32", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 32, 1, 4, 3),  # 208 regs, 40960 B, wgmma
    ("weight_gradient", "tf32", 64, 64, 3, 1, True, True, "sm_90"): (32, 128, 64, 4, 2),  # 255 regs, 34816 B, wgmma
    ("input_gradient", "tf32", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 101 regs, 34816 B, wgmma
    ("forward", "ieee", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 16, 1, 4, 3),  # 254 regs, 16384 B, fma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_80"): (32, 64, 64, 4, 2),  # 96 regs, 27648 B, fma
    ("input_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 96 regs, 26624 B, fma
    ("forward", "ieee", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 16, 1, 4, 3),  # 228 regs, 16384 B, fma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_90"): (32, 64, 64, 4, 2),  # 92 regs, 27648 B, fma
    ("input_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 111 regs, 26624 B, fma
    # wide windows
    ("forward", "16", 32, 32, 3, 16, True, False, "sm_80"): (128, 32, 32, 3, 8, 2),  # 222 regs, 47104 B, mma
    ("weight_gradient", "16", 32, 32, 3, 1, True, False, "sm_80"): (64, 128, 32, 4, 2),  # 161 regs, 26624 B, mma
    ("input_gradient", "16", 32, 32, 3, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 80 regs, 12288 B, mma
    ("forward", "16", 32, 32, 3, 16, True, False, "sm_90"): (128, 32, 32, 3, 8, 2),  # 164 regs, 88064 B, wgmma
    ("weight_gradient", "16", 32, 32, 3, 1, True, False, "sm_90"): (64, 128, 32, 4, 2),  # 128 regs, 43008 B, wgmma
    ("input_gradient", "16", 32, 32, 3, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 64 regs, 12288 B, wgmma
    ("forward", "tf32", 32, 32, 3, 16, True, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 247 regs, 47104 B, mma
    ("weight_gradient", "tf32", 32, 32, 3, 1, True, False, "sm_80"): (32, 128, 32, 4, 2),  # 222 regs, 25600 B, mma
    ("input_gradient", "tf32", 32, 32, 3, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 96 regs, 22528 B, mma
    ("forward", "tf32", 32, 32, 3, 16, True, False, "sm_90"): (128, 32, 16, 3, 8, 2),  # 166 regs, 53248 B, wgmma
    ("weight_gradient", "tf32", 32, 32, 3, 1, True, False, "sm_90"): (32, 128, 32, 4, 2),  # 216 regs, 25600 B, wgmma
    ("input_gradient", "tf32", 32, 32, 3, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 80 regs, 26624 B, wgmma
    ("forward", "ieee", 32, 32, 3, 16, True, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 32, 32, 3, 1, True, False, "sm_80"): (32, 64, 32, 4, 2),  # 92 regs, 17920 B, fma
    ("input_gradient", "ieee", 32, 32, 3, 1, True, False, "sm_80"): (64, 32, 32, 4, 2),  # 72 regs, 22528 B, fma
    ("forward", "ieee", 32, 32, 3, 16, True, False, "sm_90"): (64, 32, 32, 1, 4, 3),  # 128 regs, 24576 B, fma
    ("weight_gradient", "ieee", 32, 32, 3, 1, True, False, "sm_90"): (32, 64, 32, 4, 2),  # 80 regs, 17920 B, fma
    ("input_gradient", "ieee", 32, 32, 3, 1, True, False, "sm_90"): (64, 32, 32, 4, 2),  # 76 regs, 22528 B, fma
    # long kernel
    ("forward", "16", 8, 16, 31, 4, True, False, "sm_80"): (64, 16, 64, 1, 4, 3),  # 139 regs, 18432 B, mma
    ("weight_gradient", "16", 8, 16, 31, 1, True, False, "sm_80"): (64, 128, 16, 4, 2),  # 119 regs, 21504 B, mma
    ("input_gradient", "16", 8, 16, 31, 1, True, False, "sm_80"): (64, 16, 16, 4, 2),  # 48 regs, 3584 B, mma
    ("forward", "16", 8, 16, 31, 4, True, False, "sm_90"): (64, 16, 64, 1, 4, 3),  # 96 regs, 26624 B, wgmma
    ("weight_gradient", "16", 8, 16, 31, 1, True, False, "sm_90"): (64, 128, 16, 4, 2),  # 80 regs, 37888 B, wgmma
    ("input_gradient", "16", 8, 16, 31, 1, True, False, "sm_90"): (64, 16, 16, 4, 2),  # 40 regs, 6144 B, wgmma
    ("forward", "tf32", 8, 16, 31, 4, True, False, "sm_80"): (64, 16, 32, 1, 4, 3),  # 154 regs, 20480 B, mma
    ("weight_gradient", "tf32", 8, 16, 31, 1, True, False, "sm_80"): (32, 128, 16, 4, 2),  # 168 regs, 20992 B, mma
    ("input_gradient", "tf32", 8, 16, 31, 1, True, False, "sm_80"): (64, 16, 16, 4, 2),  # 56 regs, 6144 B, mma
    ("forward", "tf32", 8, 16, 31, 4, True, False, "sm_90"): (64, 16, 32, 1, 4, 3),  # 124 regs, 22528 B, wgmma
    ("weight_gradient", "tf32", 8, 16, 31, 1, True, False, "sm_90"): (32, 128, 16, 4, 2),  # 216 regs, 20992 B, wgmma
    ("input_gradient", "tf32", 8, 16, 31, 1, True, False, "sm_90"): (64, 16, 16, 4, 2),  # 53 regs, 11264 B, wgmma
    ("forward", "ieee", 8, 16, 31, 4, True, False, "sm_80"): (64, 16, 32, 1, 4, 3),  # 128 regs, 20480 B, fma
    ("weight_gradient", "ieee", 8, 16, 31, 1, True, False, "sm_80"): (32, 64, 16, 4, 2),  # 72 regs, 13056 B, fma
    ("input_gradient", "ieee", 8, 16, 31, 1, True, False, "sm_80"): (64, 16, 16, 4, 2),  # 56 regs, 10240 B, fma
    ("forward", "ieee", 8, 16, 31, 4, True, False, "sm_90"): (64, 16, 32, 1, 4, 3),  # 168 regs, 20480 B, fma
    ("weight_gradient", "ieee", 8, 16, 31, 1, True, False, "sm_90"): (32, 64, 16, 4, 2),  # 72 regs, 13056 B, fma
    ("input_gradient", "ieee", 8, 16, 31, 1, True, False, "sm_90"): (64, 16, 16, 4, 2),  # 48 regs, 10240 B, fma
    # overlapping
    ("forward", "16", 64, 64, 5, 3, True, True, "sm_80"): (64, 64, 64, 1, 4, 3),  # 255 regs, 32768 B, mma
    ("weight_gradient", "16", 64, 64, 5, 1, True, True, "sm_80"): (64, 128, 64, 4, 2),  # 239 regs, 32768 B, mma
    ("input_gradient", "16", 64, 64, 5, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 110 regs, 8192 B, mma
    ("forward", "16", 64, 64, 5, 3, True, True, "sm_90"): (64, 64, 64, 1, 4, 3),  # 167 regs, 49152 B, wgmma
    ("weight_gradient", "16", 64, 64, 5, 1, True, True, "sm_90"): (64, 128, 64, 4, 2),  # 220 regs, 24576 B, wgmma
    ("input_gradient", "16", 64, 64, 5, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 89 regs, 8192 B, wgmma
    ("forward", "tf32", 64, 64, 5, 3, True, True, "sm_80"): (64, 64, 32, 1, 4, 3),  # 228 regs, 32768 B, mma
    ("weight_gradient", "tf32", 64, 64, 5, 1, True, True, "sm_80"): (32, 128, 64, 4, 2),  # 224 regs, 32768 B, mma
    ("input_gradient", "tf32", 64, 64, 5, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 127 regs, 8192 B, mma
    ("forward", "tf32", 64, 64, 5, 3, True, True, "sm_90"): (64, 64, 32, 1, 4, 3),  # 207 regs, 40960 B, wgmma
    ("weight_gradient", "tf32", 64, 64, 5, 1, True, True, "sm_90"): (32, 128, 64, 4, 2),  # 216 regs, 16384 B, wgmma
    ("input_gradient", "tf32", 64, 64, 5, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 121 regs, 16384 B, wgmma
    ("forward", "ieee", 64, 64, 5, 3, True, True, "sm_80"): (64, 64, 16, 1, 4, 3),  # 254 regs, 16384 B, fma
    ("weight_gradient", "ieee", 64, 64, 5, 1, True, True, "sm_80"): (32, 64, 64, 4, 2),  # 122 regs, 16384 B, fma
    ("input_gradient", "ieee", 64, 64, 5, 1, True, True, "sm_80"): (64, 64, 32, 4, 2),  # 110 regs, 16384 B, fma
    ("forward", "ieee", 64, 64, 5, 3, True, True, "sm_90"): (64, 64, 16, 1, 4, 3),  # 228 regs, 16384 B, fma
    ("weight_gradient", "ieee", 64, 64, 5, 1, True, True, "sm_90"): (32, 64, 64, 4, 2),  # 127 regs, 16384 B, fma
    ("input_gradient", "ieee", 64, 64, 5, 1, True, True, "sm_90"): (64, 64, 32, 4, 2),  # 104 regs, 16384 B, fma
}
