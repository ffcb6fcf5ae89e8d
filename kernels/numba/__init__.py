"""CPU kernels, compiled by Numba: the map of the floor.

A call comes in at :mod:`.conv_pool` (``forward``, ``backward``) and takes one of three ways::

    conv_pool ── dense ─────────── conv_pool_plan, conv_pool_kernel      an input (N, C, L), and windows read in place
       │         dense_backward ── conv_pool_backward_plan, winners      their gradients, at the positions that won
       │
       ├──────── gather ────────── gathered, ../plans                    rows of a table, read through an index
       │           ├─ gather_folded   fold, pooling                      additions of rows of the folded table
       │           └─ gather_direct                                      products with the rows as they are read
       └──────── gather_backward
                   ├─ gather_backward_folded   gather_backward_spread    gradients summed by row, then multiplied
                   └─ gather_backward_direct                             products for every winner

    windows, rmsprop                                                     kernels of their own
    support                                                              what is served; imports no Numba
    micro/      simd, memory, tiles, products, sparse_products, packing, transposition, maxima, narrow, channel_blocks
    runtime/    compilation, threads

To change: which calls are served, :mod:`.support`; how a call is cut into threads' parts, ``*_plan``; when a table is
folded, :mod:`~seqconv.kernels.plans`; the register tile, :mod:`.micro.tiles`; how kernels are compiled and kept,
:mod:`.runtime.compilation`.

Words:

argmax
    The number of the position that won in a window, -1 where none did.
block
    Channels, or weights, that are loaded together.
chunk
    Positions that are convolved before they are pooled: they stay in the first cache.
fold
    Multiply a table with a layer's weights once, so that a position of the convolution is ``K`` additions.
limits
    The positions and windows that a sample has, where samples have lengths of their own.
lanes
    Numbers of a vector register.
plan
    How a call is computed, told from its sizes alone; ``folded`` or ``direct`` for rows of a table.
share, part
    What one thread does of a call; what is handed to threads one by one.
tile
    Sums that stay in registers: positions x output channels.
winner
    A window's position that has a gradient.
"""
