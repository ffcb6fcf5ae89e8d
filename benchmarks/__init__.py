"""How fast seqconv is beside what its users would otherwise run.

What users type::

    python -m benchmarks [NAME] [--quick]           the suites; a results file, its tables and its pictures
    pytest benchmarks -k imdb1                      the same by pytest-benchmark: its JSON, compare and histogram
    python -m benchmarks.gpu                        on a GPU: tests, then benchmarks (``make gpu``)
    python -m benchmarks.report FILE                a results file's tables and pictures
    python -m benchmarks.epochs                     a whole training by the clock, against Keras
    python -m benchmarks.tune                       the Triton kernels' tiles, on a GPU

The map; arrows are imports, and there is no circle::

    registry (Case, Provider, Operation)    timing (sides in turn)    worker (a process that is asked)
        ^                                       ^                         ^
    operations/ (the work, and who can do it): layers, gather, windows, models, recurrent, rivals, wild <- peers
        ^
    checking (nothing is timed before it is right) <- runner (one comparison: check, settle, take turns)
        ^                                               ^
    suites (the table) <- test_suites, conftest     jobs (what a GPU's worker does) <- gpu_plan <- gpu_run, gpu_warm
        ^                                                                               ^
    __main__ -> results, report (tables, promises, plots) <---------------------------- gpu

To change what is measured, open

- which cases a suite has, or a new suite: ``suites``; in which order a GPU does what: ``gpu_plan``
- a layer or model, its inputs, its definition: its file in ``operations/``; torch's peers: ``operations/torch_peers``
- a published model, of which torch alone is known: its file in ``models/``, and ``WILD`` there
- another framework: ``peers`` (what it needs) and ``frameworks`` (how it does a case's work, in its own process)
- how sides take turns, blocks, stopwatches: ``timing``; tolerances: ``checking``
- what is no comparison of two times: ``dispatch``, ``peak``, ``fresh`` (first calls, memory), ``gpu_parts`` (kernels
  alone), ``roofline`` (a card's limits and a layer's floor)
- anything in a process of its own: a function, asked for through ``worker.Worker``
- the file's format: ``results``; tables: ``report``; pictures: ``plots``; what was promised of a GPU: ``promises``
- the GPU's tests and their time: ``gpu_tests``; packages on a lent machine: ``gpu_env``
- the tuner: ``tune`` (command), ``tune_tiles`` (what to try), ``tune_timing``, ``tune_cache``, ``tune_table``
"""
