"""GPU kernels, written in Triton: the map of the floor. Importing this package does not import Triton.

A call comes in at :mod:`.conv_pool` (``forward``, ``backward``)::

    conv_pool ── forward ──────────── split, pooling, ../plans       an input (N, C, L), and rows looked up directly
       │         backward ─────────── phase_backward                 gradients; windows side by side
       │             └─────────────── global_backward                of the global maximum
       ├──────── gather ───────────── fold, ../plans                 rows of a table or a series
       └──────── gather_backward ──── folded_backward, occurrences   gradients summed by row, then multiplied

    recurrent                                                        GRU and LSTM, all steps in one launch
    conv_norm_pool                                                   norm, ReLU and pool behind torch's convolution
    sliding                                                          all windows of a series, by conv_pool
    rmsprop                                                          a kernel of its own
    rows, transposition      where rows lie; tensors whose channels are no neighbours
    configurations           tiles by dtype, channels and windows; tiles.json has those of single layers
    groups                   what kernels are given in groups: weights, steps, tile, how to multiply, where rows lie
    launch, replay           device, precision, layout; a call like an earlier one, launched again
    support                  which calls are served; imports no Triton
    census, loops            every kernel compiled for GPUs that need not be there, what it takes and its main loop
    device/                  what runs on the GPU: conv_pool, convolution and maxima are shared by the others

To change: which calls are served, :mod:`.support`; when a table is folded, or an activation stored for windows that
overlap, :mod:`~seqconv.kernels.plans`; the tile of a kernel, :mod:`.configurations`; what a kernel computes, its file
in :mod:`.device`. After each: the interpreter's tests (``TRITON_INTERPRET=1``) and ``python -m
seqconv.kernels.triton.census``.
"""
