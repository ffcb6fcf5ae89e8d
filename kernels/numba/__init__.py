"""CPU kernels, compiled by Numba: the map of the floor.

A call comes in at :mod:`.conv_pool` (``forward``, ``backward``) and takes one of three ways; with a batch norm in
training it comes in at :mod:`.conv_norm_pool`, a recurrent layer at :mod:`.recurrent`, and what is evaluated for all
windows of a series at :mod:`.sliding`::

    conv_pool ── dense ─────────── conv_pool_blocking, conv_pool_kernel       an input (N, C, L), and windows in place
       │           │               conv_pool_inputs, conv_pool_sums           what it reads; its sums
       │           │               fast_products                              its sums by fewer products
       │         dense_backward ── conv_pool_backward_blocking, argmax_lists  their gradients, from argmax alone
       │
       ├──────── gather ────────── gathered, ../plans                         rows of a table, read through an index
       │           ├─ gather_folded   fold, pooling                           additions of rows of the folded table
       │           └─ dense                                                   on rows gathered for a few samples
       └──────── gather_backward
                   ├─ gather_backward_folded   gather_backward_spread         gradients summed by row, then multiplied
                   └─ gather_backward_direct                                  products for every window's maximum

    conv_norm_pool ─ norm_pool_kernel                                         torch's convolution, then the norm

    recurrent ────── recurrent_forward, recurrent_backward ─ recurrent_kernel   GRU and LSTM through all time steps

    sliding ──────── sliding_kernel                                           all windows of a series, block by block

    norm                                                                      a norm folded into weights
    windows, rmsprop                                                          kernels of their own
    support                                                                   which calls are served; imports no Numba
    micro/      simd, control, memory, tile, pair_tile, igemm, gemm, sparse_products, packing, transposition,
                argmaxpool, half_floats, channel_blocks, activations
    runtime/    compilation, threads

To change: which calls are served, :mod:`.support`; how a call is cut into parts, ``*_blocking``; when a table is
folded, or sums take fewer products, :mod:`~seqconv.kernels.plans`; the register tile, :mod:`.micro.tile`; how kernels
are compiled and kept, :mod:`.runtime.compilation`.

Words:

ahead
    Time steps whose inputs are multiplied with a recurrent layer's weights together.
argmax
    The position of a window's maximum, counted from the window's beginning; -1 where no gradient flows. Stored
    as int8, int16 or int32.
block
    Channels, or weights, that are loaded together; of the work, what is handed to threads one by one.
blocking
    The sizes that a call's work is cut into, from shapes and strides alone.
chunk
    Positions that are convolved before they are pooled, or time steps of a recurrent layer whose gradients are
    multiplied together: they stay in the first cache levels.
fast products
    Products that two positions share, fewer than a convolution has (Winograd's F(2,3)); the plan ``fast``.
few outputs
    Output channels that fill at most half a vector: vectors hold positions instead.
fold
    Multiply a table with a layer's weights once, so that a position of the convolution is ``K`` additions.
gemm, igemm
    Matrix products of a register tile: both operands in place, or rows through an indirection.
half floats
    float16 and bfloat16.
indirection
    A table of addresses, one for each row that a kernel reads.
limits
    The number of positions and of windows of a sample, where samples have lengths of their own.
lanes
    Numbers of a vector register.
pair
    Two positions of a convolution, one dilation apart, that share fast products.
plan
    ``folded`` or ``direct``: how a call on rows of a table is computed; ``fast`` or ``direct``: how sums are.
plane
    One of the transforms of a block's input rows, of which fast products are made.
running maxima
    Of elements of windows that overlap, from a position on or up to one: two of them make a window's maximum.
map
    What a sliding program computes for every row of a series: a step's result.
share, part
    What one thread does of a call; what is computed in one go.
slot
    Where a gate's numbers are among those of its time step.
tap
    A row of a map, or a number of a convolution's input, that a step reads.
tile
    Sums that stay in registers: positions x output channels. Of a recurrent layer, the sequences that a thread takes
    through all time steps.
"""
