"""The tiles of layers that were looked at, as ``python -m seqconv.kernels.triton.census --table`` writes them.

A key is a kernel's name and a :class:`.configurations.Layer`, a value the fields of its configuration. Beside it stand
registers a thread, shared bytes a block and the matrix instructions, as Triton 3.7.1 compiles them; no stack is used,
nor by 3.6.0. An entry that is deleted is chosen anew by the rules. Times of
some stand in :mod:`.configurations`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TABLE"]

TABLE: dict[tuple[Any, ...], tuple[int, ...]] = {
    # imdb1
    ("forward", "16", 128, 32, 7, 5, False, False, "sm_80"): (128, 32, 16, 5, 8, 2),  # 154, 52224, mma
    ("weight_gradient", "16", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 161, 26624, mma
    ("input_gradient", "16", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 164, 18432, mma
    ("forward", "16", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 32, 5, 4, 2),  # 122, 73728, wgmma
    ("forward", "tf32", 128, 32, 7, 5, False, False, "sm_80"): (64, 32, 16, 5, 4, 2),  # 180, 59392, mma
    ("weight_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_80"): (32, 128, 32, 4, 2),  # 238, 25600, mma
    ("input_gradient", "tf32", 128, 32, 7, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 190, 34816, mma
    ("forward", "tf32", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 16, 5, 4, 2),  # 124, 73728, wgmma
    ("forward", "ieee", 128, 32, 7, 5, False, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 127, 24576, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 90, 17920, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 96, 26624, fma
    ("forward", "ieee", 128, 32, 7, 5, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 164, 20480, wgmma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 80, 17920, fma
    ("input_gradient", "ieee", 128, 32, 7, 1, False, False, "sm_90"): (64, 64, 32, 4, 2),  # 121, 26624, fma
    # imdb2
    ("forward", "16", 32, 32, 7, 0, False, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 205, 47104, mma
    ("forward", "16", 32, 32, 7, 0, False, False, "sm_90"): (64, 32, 32, 3, 4, 2),  # 128, 51200, wgmma
    ("forward", "tf32", 32, 32, 7, 0, False, False, "sm_80"): (64, 32, 16, 2, 4, 2),  # 180, 47104, mma
    ("forward", "tf32", 32, 32, 7, 0, False, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 152, 65536, wgmma
    ("forward", "ieee", 32, 32, 7, 0, False, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 122, 12288, fma
    ("weight_gradient", "ieee", 32, 32, 7, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 90, 18944, fma
    ("input_gradient", "ieee", 32, 32, 7, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 112, 24576, fma
    ("forward", "ieee", 32, 32, 7, 0, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 152, 20480, wgmma
    ("weight_gradient", "ieee", 32, 32, 7, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 80, 18944, fma
    ("input_gradient", "ieee", 32, 32, 7, 1, False, False, "sm_90"): (64, 32, 32, 4, 2),  # 112, 24576, fma
    # jena1
    ("forward", "16", 14, 32, 5, 3, False, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 116, 41984, mma
    ("weight_gradient", "16", 14, 32, 5, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 254, 26624, mma
    ("input_gradient", "16", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 80, 11264, mma
    ("forward", "16", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 16, 3, 4, 3),  # 88, 37888, wgmma
    ("forward", "tf32", 14, 32, 5, 3, False, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 146, 83968, mma
    ("weight_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_80"): (32, 128, 32, 4, 2),  # 218, 25600, mma
    ("input_gradient", "tf32", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 96, 20480, mma
    ("forward", "tf32", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 89, 47104, wgmma
    ("forward", "ieee", 14, 32, 5, 3, False, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 123, 24576, fma
    ("weight_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 96, 17920, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 80, 20480, fma
    ("forward", "ieee", 14, 32, 5, 3, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 164, 20480, wgmma
    ("weight_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 96, 17920, fma
    ("input_gradient", "ieee", 14, 32, 5, 1, False, False, "sm_90"): (64, 16, 32, 4, 2),  # 94, 20480, fma
    # jena2
    ("forward", "16", 32, 32, 5, 3, False, False, "sm_80"): (128, 32, 32, 3, 8, 2),  # 140, 75776, mma
    ("weight_gradient", "16", 32, 32, 5, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 160, 26624, mma
    ("input_gradient", "16", 32, 32, 5, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 96, 12288, mma
    ("forward", "16", 32, 32, 5, 3, False, False, "sm_90"): (64, 32, 32, 3, 4, 2),  # 92, 43008, wgmma
    ("forward", "tf32", 32, 32, 5, 3, False, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 128, 67584, mma
    ("weight_gradient", "tf32", 32, 32, 5, 1, False, False, "sm_80"): (32, 128, 32, 4, 2),  # 224, 25600, mma
    ("input_gradient", "tf32", 32, 32, 5, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 121, 22528, mma
    ("forward", "tf32", 32, 32, 5, 3, False, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 92, 49152, wgmma
    ("forward", "ieee", 32, 32, 5, 3, False, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 125, 24576, fma
    ("weight_gradient", "ieee", 32, 32, 5, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 90, 17920, fma
    ("input_gradient", "ieee", 32, 32, 5, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 96, 22528, fma
    ("forward", "ieee", 32, 32, 5, 3, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 164, 20480, wgmma
    ("weight_gradient", "ieee", 32, 32, 5, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 90, 17920, fma
    ("input_gradient", "ieee", 32, 32, 5, 1, False, False, "sm_90"): (64, 32, 32, 4, 2),  # 96, 22528, fma
    # jena3
    ("forward", "16", 32, 32, 5, 0, False, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 196, 34816, mma
    ("forward", "16", 32, 32, 5, 0, False, False, "sm_90"): (64, 32, 32, 3, 4, 2),  # 128, 38912, wgmma
    ("forward", "tf32", 32, 32, 5, 0, False, False, "sm_80"): (64, 32, 32, 2, 4, 2),  # 186, 69632, mma
    ("forward", "tf32", 32, 32, 5, 0, False, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 148, 49152, wgmma
    ("forward", "ieee", 32, 32, 5, 0, False, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 122, 12288, fma
    ("forward", "ieee", 32, 32, 5, 0, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 152, 20480, wgmma
    # few windows
    ("weight_gradient", "16", 390, 130, 9, 1, False, False, "sm_80"): (64, 128, 64, 8, 2),  # 228, 32768, mma
    ("input_gradient", "16", 390, 130, 9, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 255, 16384, mma
    ("weight_gradient", "tf32", 390, 130, 9, 1, False, False, "sm_80"): (32, 128, 64, 8, 2),  # 216, 32768, mma
    ("input_gradient", "tf32", 390, 130, 9, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 255, 32768, mma
    ("weight_gradient", "ieee", 390, 130, 9, 1, False, False, "sm_80"): (32, 64, 64, 8, 2),  # 96, 26624, fma
    ("input_gradient", "ieee", 390, 130, 9, 1, False, False, "sm_80"): (64, 64, 32, 8, 2),  # 128, 24576, fma
    ("weight_gradient", "ieee", 390, 130, 9, 1, False, False, "sm_90"): (32, 64, 64, 8, 2),  # 99, 26624, fma
    ("input_gradient", "ieee", 390, 130, 9, 1, False, False, "sm_90"): (64, 64, 32, 8, 2),  # 128, 24576, fma
    # few, global
    ("weight_gradient", "ieee", 64, 32, 9, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 90, 18944, fma
    ("input_gradient", "ieee", 64, 32, 9, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 128, 28672, fma
    ("weight_gradient", "ieee", 64, 32, 9, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 80, 18944, fma
    ("input_gradient", "ieee", 64, 32, 9, 1, False, False, "sm_90"): (64, 64, 32, 4, 2),  # 149, 28672, fma
    # imdb1, contiguous
    # univariate
    ("forward", "16", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 96, 4096, mma
    ("weight_gradient", "16", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 8, 2),  # 77, 10240, mma
    ("input_gradient", "16", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 77, 11264, mma
    ("forward", "16", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 4, 3),  # 96, 4096, wgmma
    ("forward", "tf32", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 4, 3),  # 128, 10240, mma
    ("weight_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_80"): (32, 16, 32, 8, 2),  # 73, 11264, mma
    ("input_gradient", "tf32", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 96, 20480, mma
    ("forward", "tf32", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 4, 3),  # 118, 10240, wgmma
    ("forward", "ieee", 1, 32, 7, 2, False, False, "sm_80"): (64, 32, 16, 1, 8, 3),  # 80, 10240, fma
    ("weight_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_80"): (32, 16, 32, 8, 2),  # 48, 12288, fma
    ("input_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_80"): (64, 16, 16, 4, 2),  # 72, 10240, fma
    ("forward", "ieee", 1, 32, 7, 2, False, False, "sm_90"): (64, 32, 16, 1, 4, 2),  # 128, 8192, wgmma
    ("weight_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_90"): (32, 16, 32, 8, 2),  # 48, 12288, fma
    ("input_gradient", "ieee", 1, 32, 7, 1, False, False, "sm_90"): (64, 16, 16, 4, 2),  # 72, 10240, fma
    # four channels
    ("forward", "16", 4, 64, 3, 2, False, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 140, 8192, mma
    ("weight_gradient", "16", 4, 64, 3, 1, False, False, "sm_80"): (32, 16, 64, 4, 2),  # 96, 11264, mma
    ("input_gradient", "16", 4, 64, 3, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 78, 11264, mma
    ("forward", "16", 4, 64, 3, 2, False, False, "sm_90"): (64, 64, 16, 1, 4, 3),  # 141, 8192, wgmma
    ("forward", "tf32", 4, 64, 3, 2, False, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 164, 12288, mma
    ("weight_gradient", "tf32", 4, 64, 3, 1, False, False, "sm_80"): (32, 16, 64, 4, 2),  # 121, 20480, mma
    ("input_gradient", "tf32", 4, 64, 3, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 96, 20480, mma
    ("forward", "tf32", 4, 64, 3, 2, False, False, "sm_90"): (64, 64, 16, 1, 4, 3),  # 149, 16384, wgmma
    ("forward", "ieee", 4, 64, 3, 2, False, False, "sm_80"): (64, 64, 16, 1, 8, 3),  # 117, 16384, fma
    ("weight_gradient", "ieee", 4, 64, 3, 1, False, False, "sm_80"): (32, 16, 64, 4, 2),  # 72, 21504, fma
    ("input_gradient", "ieee", 4, 64, 3, 1, False, False, "sm_80"): (64, 16, 32, 4, 2),  # 80, 20480, fma
    ("forward", "ieee", 4, 64, 3, 2, False, False, "sm_90"): (64, 64, 16, 1, 4, 2),  # 148, 16384, wgmma
    ("weight_gradient", "ieee", 4, 64, 3, 1, False, False, "sm_90"): (32, 16, 64, 4, 2),  # 72, 21504, fma
    ("input_gradient", "ieee", 4, 64, 3, 1, False, False, "sm_90"): (64, 16, 32, 4, 2),  # 80, 20480, fma
    # 64 to 128
    ("forward", "16", 64, 128, 3, 2, False, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 174, 45056, mma
    ("weight_gradient", "16", 64, 128, 3, 1, False, False, "sm_80"): (64, 128, 64, 4, 2),  # 219, 36864, mma
    ("input_gradient", "16", 64, 128, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 124, 14336, mma
    ("forward", "16", 64, 128, 3, 2, False, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 126, 57344, wgmma
    ("forward", "tf32", 64, 128, 3, 2, False, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168, 45056, mma
    ("weight_gradient", "tf32", 64, 128, 3, 1, False, False, "sm_80"): (32, 128, 64, 4, 2),  # 255, 34816, mma
    ("input_gradient", "tf32", 64, 128, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 128, 26624, mma
    ("forward", "tf32", 64, 128, 3, 2, False, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 132, 57344, wgmma
    ("forward", "ieee", 64, 128, 3, 2, False, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 127, 32768, fma
    ("weight_gradient", "ieee", 64, 128, 3, 1, False, False, "sm_80"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 64, 128, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 96, 26624, fma
    ("forward", "ieee", 64, 128, 3, 2, False, False, "sm_90"): (64, 64, 32, 1, 4, 2),  # 254, 32768, wgmma
    ("weight_gradient", "ieee", 64, 128, 3, 1, False, False, "sm_90"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 64, 128, 3, 1, False, False, "sm_90"): (64, 64, 32, 4, 2),  # 120, 26624, fma
    # 256 to 256
    ("forward", "16", 256, 256, 3, 2, False, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 174, 45056, mma
    ("weight_gradient", "16", 256, 256, 3, 1, False, False, "sm_80"): (64, 128, 64, 4, 2),  # 216, 36864, mma
    ("input_gradient", "16", 256, 256, 3, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 155, 18432, mma
    ("forward", "16", 256, 256, 3, 2, False, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 124, 57344, wgmma
    ("forward", "tf32", 256, 256, 3, 2, False, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168, 45056, mma
    ("weight_gradient", "tf32", 256, 256, 3, 1, False, False, "sm_80"): (32, 128, 64, 4, 2),  # 254, 34816, mma
    ("input_gradient", "tf32", 256, 256, 3, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 168, 34816, mma
    ("forward", "tf32", 256, 256, 3, 2, False, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 132, 57344, wgmma
    ("forward", "ieee", 256, 256, 3, 2, False, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128, 32768, fma
    ("weight_gradient", "ieee", 256, 256, 3, 1, False, False, "sm_80"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 256, 256, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 96, 26624, fma
    ("forward", "ieee", 256, 256, 3, 2, False, False, "sm_90"): (64, 64, 32, 1, 4, 2),  # 254, 32768, wgmma
    ("weight_gradient", "ieee", 256, 256, 3, 1, False, False, "sm_90"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 256, 256, 3, 1, False, False, "sm_90"): (64, 64, 32, 4, 2),  # 120, 26624, fma
    # 512 to 512
    ("forward", "16", 512, 512, 3, 2, False, False, "sm_80"): (128, 64, 32, 2, 8, 2),  # 174, 45056, mma
    ("weight_gradient", "16", 512, 512, 3, 1, False, False, "sm_80"): (64, 128, 64, 4, 2),  # 216, 36864, mma
    ("input_gradient", "16", 512, 512, 3, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 155, 18432, mma
    ("forward", "16", 512, 512, 3, 2, False, False, "sm_90"): (128, 64, 32, 2, 8, 2),  # 124, 57344, wgmma
    ("forward", "tf32", 512, 512, 3, 2, False, False, "sm_80"): (128, 64, 16, 2, 8, 2),  # 168, 45056, mma
    ("weight_gradient", "tf32", 512, 512, 3, 1, False, False, "sm_80"): (32, 128, 64, 4, 2),  # 254, 34816, mma
    ("input_gradient", "tf32", 512, 512, 3, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 168, 34816, mma
    ("forward", "tf32", 512, 512, 3, 2, False, False, "sm_90"): (128, 64, 16, 2, 8, 2),  # 132, 57344, wgmma
    ("forward", "ieee", 512, 512, 3, 2, False, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128, 32768, fma
    ("weight_gradient", "ieee", 512, 512, 3, 1, False, False, "sm_80"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 512, 512, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 96, 26624, fma
    ("forward", "ieee", 512, 512, 3, 2, False, False, "sm_90"): (64, 64, 32, 1, 4, 2),  # 254, 32768, wgmma
    ("weight_gradient", "ieee", 512, 512, 3, 1, False, False, "sm_90"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 512, 512, 3, 1, False, False, "sm_90"): (64, 64, 32, 4, 2),  # 120, 26624, fma
    # padded, dilated
    ("forward", "16", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 64, 1, 8, 3),  # 128, 32768, mma
    ("weight_gradient", "16", 64, 64, 3, 1, True, False, "sm_80"): (64, 128, 64, 4, 2),  # 234, 36864, mma
    ("input_gradient", "16", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 124, 14336, mma
    ("forward", "16", 64, 64, 3, 1, True, False, "sm_90"): (64, 64, 64, 1, 4, 3),  # 216, 40960, wgmma
    ("forward", "tf32", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128, 32768, mma
    ("weight_gradient", "tf32", 64, 64, 3, 1, True, False, "sm_80"): (32, 128, 64, 4, 2),  # 255, 34816, mma
    ("input_gradient", "tf32", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 128, 26624, mma
    ("forward", "tf32", 64, 64, 3, 1, True, False, "sm_90"): (64, 64, 32, 1, 4, 3),  # 200, 40960, wgmma
    ("forward", "ieee", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 204, 16384, fma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, False, "sm_80"): (32, 64, 64, 4, 2),  # 96, 27648, fma
    ("input_gradient", "ieee", 64, 64, 3, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 96, 26624, fma
    ("forward", "ieee", 64, 64, 3, 1, True, False, "sm_90"): (64, 64, 32, 1, 4, 2),  # 250, 32768, wgmma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, False, "sm_90"): (32, 64, 64, 4, 2),  # 92, 27648, fma
    ("input_gradient", "ieee", 64, 64, 3, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 120, 26624, fma
    # wide windows
    ("forward", "16", 32, 32, 3, 16, False, False, "sm_80"): (128, 32, 32, 3, 8, 2),  # 189, 47104, mma
    ("weight_gradient", "16", 32, 32, 3, 1, False, False, "sm_80"): (64, 128, 32, 4, 2),  # 160, 26624, mma
    ("input_gradient", "16", 32, 32, 3, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 96, 12288, mma
    ("forward", "16", 32, 32, 3, 16, False, False, "sm_90"): (64, 32, 32, 3, 4, 3),  # 140, 47104, wgmma
    ("forward", "tf32", 32, 32, 3, 16, False, False, "sm_80"): (128, 32, 16, 3, 8, 2),  # 231, 47104, mma
    ("weight_gradient", "tf32", 32, 32, 3, 1, False, False, "sm_80"): (32, 128, 32, 4, 2),  # 222, 25600, mma
    ("input_gradient", "tf32", 32, 32, 3, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 121, 22528, mma
    ("forward", "tf32", 32, 32, 3, 16, False, False, "sm_90"): (64, 32, 16, 3, 4, 2),  # 156, 32768, wgmma
    ("weight_gradient", "tf32", 32, 32, 3, 1, False, False, "sm_90"): (32, 128, 32, 4, 2),  # 220, 25600, wgmma
    ("input_gradient", "tf32", 32, 32, 3, 1, False, False, "sm_90"): (64, 32, 32, 4, 2),  # 101, 26624, wgmma
    ("forward", "ieee", 32, 32, 3, 16, False, False, "sm_80"): (64, 32, 32, 1, 4, 3),  # 125, 24576, fma
    ("weight_gradient", "ieee", 32, 32, 3, 1, False, False, "sm_80"): (32, 64, 32, 4, 2),  # 92, 17920, fma
    ("input_gradient", "ieee", 32, 32, 3, 1, False, False, "sm_80"): (64, 32, 32, 4, 2),  # 96, 22528, fma
    ("forward", "ieee", 32, 32, 3, 16, False, False, "sm_90"): (64, 32, 32, 1, 4, 2),  # 166, 20480, wgmma
    ("weight_gradient", "ieee", 32, 32, 3, 1, False, False, "sm_90"): (32, 64, 32, 4, 2),  # 80, 17920, fma
    ("input_gradient", "ieee", 32, 32, 3, 1, False, False, "sm_90"): (64, 32, 32, 4, 2),  # 96, 22528, fma
    # long kernel
    ("forward", "16", 8, 16, 31, 4, False, False, "sm_80"): (64, 16, 64, 1, 4, 3),  # 126, 20480, mma
    ("weight_gradient", "16", 8, 16, 31, 1, False, False, "sm_80"): (64, 128, 16, 4, 2),  # 128, 21504, mma
    ("input_gradient", "16", 8, 16, 31, 1, False, False, "sm_80"): (64, 16, 16, 4, 2),  # 72, 3584, mma
    ("forward", "16", 8, 16, 31, 4, False, False, "sm_90"): (64, 16, 64, 1, 4, 3),  # 96, 22528, wgmma
    ("weight_gradient", "16", 8, 16, 31, 1, False, False, "sm_90"): (64, 128, 16, 4, 2),  # 80, 37888, wgmma
    ("input_gradient", "16", 8, 16, 31, 1, False, False, "sm_90"): (64, 16, 16, 4, 2),  # 56, 6144, wgmma
    ("forward", "tf32", 8, 16, 31, 4, False, False, "sm_80"): (64, 16, 32, 1, 4, 3),  # 96, 20480, mma
    ("weight_gradient", "tf32", 8, 16, 31, 1, False, False, "sm_80"): (32, 128, 16, 4, 2),  # 168, 20992, mma
    ("input_gradient", "tf32", 8, 16, 31, 1, False, False, "sm_80"): (64, 16, 16, 4, 2),  # 68, 6144, mma
    ("forward", "tf32", 8, 16, 31, 4, False, False, "sm_90"): (64, 16, 32, 1, 4, 3),  # 104, 22528, wgmma
    ("weight_gradient", "tf32", 8, 16, 31, 1, False, False, "sm_90"): (32, 128, 16, 4, 2),  # 216, 20992, wgmma
    ("input_gradient", "tf32", 8, 16, 31, 1, False, False, "sm_90"): (64, 16, 16, 4, 2),  # 74, 11264, wgmma
    ("forward", "ieee", 8, 16, 31, 4, False, False, "sm_80"): (64, 16, 32, 1, 4, 3),  # 128, 20480, fma
    ("weight_gradient", "ieee", 8, 16, 31, 1, False, False, "sm_80"): (32, 64, 16, 4, 2),  # 72, 13056, fma
    ("input_gradient", "ieee", 8, 16, 31, 1, False, False, "sm_80"): (64, 16, 16, 4, 2),  # 72, 10240, fma
    ("forward", "ieee", 8, 16, 31, 4, False, False, "sm_90"): (64, 16, 32, 1, 4, 2),  # 126, 14336, wgmma
    ("weight_gradient", "ieee", 8, 16, 31, 1, False, False, "sm_90"): (32, 64, 16, 4, 2),  # 72, 13056, fma
    ("input_gradient", "ieee", 8, 16, 31, 1, False, False, "sm_90"): (64, 16, 16, 4, 2),  # 78, 10240, fma
    # overlapping
    ("forward", "16", 64, 64, 5, 3, True, False, "sm_80"): (64, 64, 64, 1, 8, 3),  # 160, 32768, mma
    ("weight_gradient", "16", 64, 64, 5, 1, True, False, "sm_80"): (64, 128, 64, 4, 2),  # 239, 32768, mma
    ("input_gradient", "16", 64, 64, 5, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 125, 8192, mma
    ("forward", "16", 64, 64, 5, 3, True, False, "sm_90"): (64, 64, 64, 1, 4, 3),  # 210, 40960, wgmma
    ("weight_gradient", "16", 64, 64, 5, 1, True, False, "sm_90"): (64, 128, 64, 4, 2),  # 220, 24576, wgmma
    ("input_gradient", "16", 64, 64, 5, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 103, 8192, wgmma
    ("forward", "tf32", 64, 64, 5, 3, True, False, "sm_80"): (64, 64, 32, 1, 8, 3),  # 156, 32768, mma
    ("weight_gradient", "tf32", 64, 64, 5, 1, True, False, "sm_80"): (32, 128, 64, 4, 2),  # 232, 32768, mma
    ("input_gradient", "tf32", 64, 64, 5, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 128, 8192, mma
    ("forward", "tf32", 64, 64, 5, 3, True, False, "sm_90"): (64, 64, 32, 1, 4, 3),  # 226, 40960, wgmma
    ("weight_gradient", "tf32", 64, 64, 5, 1, True, False, "sm_90"): (32, 128, 64, 4, 2),  # 216, 16384, wgmma
    ("input_gradient", "tf32", 64, 64, 5, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 128, 16384, wgmma
    ("forward", "ieee", 64, 64, 5, 3, True, False, "sm_80"): (64, 64, 16, 1, 4, 3),  # 204, 16384, fma
    ("weight_gradient", "ieee", 64, 64, 5, 1, True, False, "sm_80"): (32, 64, 64, 4, 2),  # 122, 16384, fma
    ("input_gradient", "ieee", 64, 64, 5, 1, True, False, "sm_80"): (64, 64, 32, 4, 2),  # 126, 16384, fma
    ("forward", "ieee", 64, 64, 5, 3, True, False, "sm_90"): (64, 64, 32, 1, 4, 2),  # 250, 32768, wgmma
    ("weight_gradient", "ieee", 64, 64, 5, 1, True, False, "sm_90"): (32, 64, 64, 4, 2),  # 127, 16384, fma
    ("input_gradient", "ieee", 64, 64, 5, 1, True, False, "sm_90"): (64, 64, 32, 4, 2),  # 124, 16384, fma
    # imdb1, tokens
    ("forward", "16", 128, 32, 7, 5, False, True, "sm_80"): (128, 32, 16, 5, 8, 2),  # 255, 52224, mma
    ("weight_gradient", "16", 128, 32, 7, 1, False, True, "sm_80"): (64, 128, 32, 4, 2),  # 168, 26624, mma
    ("forward", "16", 128, 32, 7, 5, False, True, "sm_90"): (64, 32, 32, 5, 4, 2),  # 177, 73728, wgmma
    ("forward", "tf32", 128, 32, 7, 5, False, True, "sm_80"): (64, 32, 16, 5, 8, 2),  # 255, 59392, mma
    ("weight_gradient", "tf32", 128, 32, 7, 1, False, True, "sm_80"): (32, 128, 32, 4, 2),  # 220, 25600, mma
    ("forward", "tf32", 128, 32, 7, 5, False, True, "sm_90"): (64, 32, 16, 5, 4, 2),  # 221, 73728, wgmma
    ("forward", "ieee", 128, 32, 7, 5, False, True, "sm_80"): (64, 32, 16, 1, 4, 3),  # 139, 8192, fma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, True, "sm_80"): (32, 64, 32, 4, 2),  # 80, 17920, fma
    ("forward", "ieee", 128, 32, 7, 5, False, True, "sm_90"): (64, 32, 32, 1, 4, 2),  # 156, 20480, wgmma
    ("weight_gradient", "ieee", 128, 32, 7, 1, False, True, "sm_90"): (32, 64, 32, 4, 2),  # 90, 17920, fma
    # imdb1, folded
    # textcnn
    ("forward", "16", 300, 100, 3, 0, False, True, "sm_80"): (64, 64, 32, 1, 8, 3),  # 96, 8704, mma
    ("forward", "16", 300, 100, 3, 0, False, True, "sm_90"): (64, 64, 32, 1, 8, 3),  # 112, 12800, wgmma
    ("forward", "tf32", 300, 100, 3, 0, False, True, "sm_80"): (64, 64, 32, 1, 8, 3),  # 120, 16896, mma
    ("forward", "tf32", 300, 100, 3, 0, False, True, "sm_90"): (64, 64, 32, 1, 8, 3),  # 122, 25088, wgmma
    ("forward", "ieee", 300, 100, 3, 0, False, True, "sm_80"): (64, 64, 16, 1, 8, 3),  # 127, 8704, fma
    ("weight_gradient", "ieee", 300, 100, 3, 1, False, True, "sm_80"): (32, 64, 64, 8, 2),  # 64, 30720, fma
    ("input_gradient", "ieee", 300, 100, 3, 1, False, False, "sm_80"): (64, 64, 32, 4, 2),  # 156, 28672, fma
    ("forward", "ieee", 300, 100, 3, 0, False, True, "sm_90"): (64, 64, 32, 1, 4, 2),  # 234, 32768, wgmma
    ("weight_gradient", "ieee", 300, 100, 3, 1, False, True, "sm_90"): (32, 64, 64, 8, 2),  # 80, 30720, fma
    ("input_gradient", "ieee", 300, 100, 3, 1, False, False, "sm_90"): (64, 64, 32, 8, 2),  # 80, 28672, fma
    # textcnn, folded
    # padded tokens
    ("forward", "16", 64, 64, 3, 2, True, True, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128, 8704, mma
    ("weight_gradient", "16", 64, 64, 3, 1, True, True, "sm_80"): (64, 64, 64, 4, 2),  # 136, 28672, mma
    ("forward", "16", 64, 64, 3, 2, True, True, "sm_90"): (64, 64, 32, 1, 8, 3),  # 119, 12800, wgmma
    ("forward", "tf32", 64, 64, 3, 2, True, True, "sm_80"): (64, 64, 32, 1, 8, 3),  # 128, 16896, mma
    ("weight_gradient", "tf32", 64, 64, 3, 1, True, True, "sm_80"): (32, 64, 64, 4, 2),  # 228, 26624, mma
    ("forward", "tf32", 64, 64, 3, 2, True, True, "sm_90"): (64, 64, 32, 1, 8, 3),  # 124, 25088, wgmma
    ("forward", "ieee", 64, 64, 3, 2, True, True, "sm_80"): (64, 64, 16, 1, 4, 3),  # 255, 8704, fma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_80"): (32, 64, 64, 8, 2),  # 65, 28672, fma
    ("forward", "ieee", 64, 64, 3, 2, True, True, "sm_90"): (64, 64, 32, 1, 4, 2),  # 250, 32768, wgmma
    ("weight_gradient", "ieee", 64, 64, 3, 1, True, True, "sm_90"): (32, 64, 64, 8, 2),  # 64, 28672, fma
    # jena1, windows
}
