"""The choice of a backend, on an operation of made-up kernels."""

import gc
import logging
import os
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from seqconv import BackendError, backends

OPERATION = "made_up"
REASON = (None, "is tired")


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    for name, kind in (("_candidates", dict), ("_logged", set)):
        monkeypatch.setattr(backends, name, kind(getattr(backends, name)))


@pytest.fixture
def add(monkeypatch):
    """Register a made-up kernel that returns its backend's name; count how often its module is looked into."""

    def add(backend, reason=None, slow=None):
        module = types.ModuleType(f"made_up_{backend}")
        setattr(module, OPERATION, lambda *arguments: backend)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        load = backends.attribute(module.__name__, OPERATION)
        backends.register(OPERATION, backend, load, lambda *arguments: reason, lambda *arguments: slow)

    return add


def run(backend="auto"):
    return backends.choose(OPERATION, backend, ())()


def test_prefers_in_order_whatever_the_order_of_registration(add):
    for backend in ("reference", "triton", "numba"):
        add(backend)
    assert backends.names(OPERATION) == backends.BACKENDS == ("triton", "numba", "reference")
    assert OPERATION in backends.operations()
    assert run() == "triton"


def test_falls_back_and_says_why_once_per_reason(add, caplog):
    add("triton", "is on a CPU")
    add("numba", "takes no complex numbers")
    add("reference")
    with caplog.at_level(logging.INFO, "seqconv"):
        assert [run(), run()] == ["reference"] * 2
        assert [record.getMessage() for record in caplog.records] == [
            "made_up: backend triton does not serve: is on a CPU",
            "made_up: backend numba does not serve: takes no complex numbers",
        ]
        add("triton", "has no memory")
        run()
    assert [record.getMessage() for record in caplog.records[2:]] == [
        "made_up: backend triton does not serve: has no memory"
    ]


def test_what_knows_itself_to_be_slower_serves_where_it_is_asked_for(add, caplog):
    add("numba", slow="is slower here")
    add("reference")
    with caplog.at_level(logging.INFO, "seqconv"):
        assert (run(), run("numba")) == ("reference", "numba")
    assert [record.getMessage() for record in caplog.records] == [
        "made_up: backend numba does not serve: is slower here"
    ]
    assert backends.explain_call(OPERATION, "auto", ()).reasons["numba"] == "is slower here"
    assert backends.explain_call(OPERATION, "numba", ()).backend == "numba"


def test_a_backend_asked_for_serves_or_raises(add, caplog):
    add("numba", "takes no complex numbers")
    add("reference")
    with caplog.at_level(logging.INFO, "seqconv"):
        assert run("reference") == "reference"
        with pytest.raises(BackendError, match=r"^backend 'numba' cannot serve made_up: takes no complex numbers$"):
            run("numba")
        with pytest.raises(BackendError, match=r"'triton' cannot serve made_up.*those that do: numba, reference$"):
            run("triton")
    assert not caplog.records


def test_the_environment_variable_is_a_wish_that_an_argument_overrides(add, monkeypatch):
    for backend in backends.BACKENDS:
        add(backend)
    monkeypatch.setenv("SEQCONV_BACKEND", "numba")
    assert run() == "numba"
    assert run("reference") == "reference"
    monkeypatch.setenv("SEQCONV_BACKEND", "auto")
    assert run() == "triton"
    monkeypatch.setenv("SEQCONV_BACKEND", "")
    assert run() == "triton"
    add("numba", "is tired")
    monkeypatch.setenv("SEQCONV_BACKEND", "numba")
    with pytest.raises(BackendError, match=r"is tired"):
        run()


def test_unknown_names(add, monkeypatch):
    add("reference")
    with pytest.raises(ValueError, match=r"^backend must be one of auto, triton, numba, reference, got 'cuda'$"):
        run("cuda")
    with pytest.raises(ValueError, match=r"^operation must be one of .*made_up.*, got 'unheard_of'$"):
        backends.choose("unheard_of", "auto", ())
    with pytest.raises(ValueError, match=r"^backend must be one of triton, numba, reference, got 'auto'$"):
        add("auto")
    monkeypatch.setenv("SEQCONV_BACKEND", "Numba")
    with pytest.raises(ValueError, match=r"^SEQCONV_BACKEND must be one of .* got 'Numba'$"):
        run()


@pytest.mark.parametrize("requested", ["auto", *backends.BACKENDS])
@pytest.mark.parametrize("variable", ["", *backends.BACKENDS])
@pytest.mark.parametrize("refusing", [(), ("triton",), ("triton", "numba"), ("reference",), backends.BACKENDS])
@pytest.mark.parametrize("missing", [(), ("triton",), ("triton", "numba")])
def test_the_explanation_is_what_happens(add, monkeypatch, missing, refusing, variable, requested):
    for backend in backends.BACKENDS:
        if backend not in missing:
            add(backend, f"{backend} is tired" if backend in refusing else None)
    monkeypatch.setenv("SEQCONV_BACKEND", variable)
    try:
        served = run(requested)
    except BackendError:
        with pytest.raises(
            BackendError, match=rf"^backend '{requested if requested != 'auto' else variable or 'auto'}'"
        ):
            backends.explain_call(OPERATION, requested, ())
        return
    explanation = backends.explain_call(OPERATION, requested, ())
    assert explanation.backend == served
    assert tuple(explanation.reasons) == backends.BACKENDS
    assert [name for name, reason in explanation.reasons.items() if reason is None] == [served]
    for backend, reason in explanation.reasons.items():
        if backend in missing:
            assert reason == "has no kernel for made_up"
        elif backend in refusing:
            assert reason == f"{backend} is tired"
    assert str(explanation).startswith(
        f"made_up: {served} (asked for: {requested if requested != 'auto' else variable or 'auto'})"
    )
    assert f"\n  {served}: serves this call" in str(explanation)


def test_an_explanation_loads_no_kernel():
    backends.register(OPERATION, "numba", backends.attribute("a_module_that_does_not_exist", OPERATION))
    assert backends.explain_call(OPERATION, "auto", ()).backend == "numba"
    with pytest.raises(ModuleNotFoundError):
        run()


def test_a_new_kernel_takes_the_place_of_the_old(add):
    add("reference")
    assert run() == "reference"
    backends.register(OPERATION, "reference", lambda: lambda: "another")
    assert run() == "another"


def test_refusals_see_the_arguments(add):
    add("reference")
    backends.register(
        OPERATION,
        "numba",
        lambda: lambda x: "numba",
        lambda x: None if x > 0 else f"{x} is not positive",
        lambda x: None if x > 1 else f"{x} is small",
    )
    assert backends.explain_call(OPERATION, "auto", (2,)).backend == "numba"
    assert backends.explain_call(OPERATION, "auto", (1,)).reasons["numba"] == "1 is small"
    assert backends.explain_call(OPERATION, "auto", (0,)).reasons["numba"] == "0 is not positive"
    assert backends.explain_call(OPERATION, "numba", (1,)).backend == "numba"
    with pytest.raises(BackendError, match=r"0 is not positive$"):
        backends.choose(OPERATION, "numba", (0,))


def test_threads_choose_alike_and_log_once(add, caplog):
    add("numba", "is tired")
    add("reference")
    barrier, served = threading.Barrier(8), []

    def work():
        barrier.wait()
        served.extend(run() for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    with caplog.at_level(logging.INFO, "seqconv"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert served == ["reference"] * 400
    assert len(caplog.records) == 1


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("refusing", [False, True])
def test_a_choice_does_not_break_a_graph(loaded, refusing):
    """A refused kernel is logged in plain calls alone: a logger would stop torch.compile. So would an import."""
    loads = []

    backends.register(OPERATION, "numba", lambda: loads.append("numba") or torch.neg, lambda x: REASON[refusing])
    backends.register(OPERATION, "reference", lambda: loads.append("reference") or torch.relu)
    backends.register("another", "reference", lambda: loads.append("another") or torch.abs)
    x = torch.tensor([-1.0, 2.0])

    def function(x):
        y = backends.choose(OPERATION, "auto", (x,))(x)
        return backends.choose("another", "auto", (y,))(y) + backends.choose(OPERATION, "auto", (x,))(x)

    expected = function(x) if loaded else None
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for _ in range(2):
        assert compiled(x).tolist() == ([0, 4] if refusing else [2, 0])
    assert expected is None or torch.equal(compiled(x), expected)
    assert loads == (["reference", "another"] if refusing else ["numba", "another"])


def test_threads_load_once():
    loads, barrier = [], threading.Barrier(8)

    def load():
        loads.append(threading.get_ident())
        time.sleep(0.05)
        return lambda: "numba"

    backends.register(OPERATION, "numba", load)

    def work():
        barrier.wait()
        assert run() == "numba"

    with ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(work) for _ in range(8)]:
            done.result()
    assert len(loads) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_behind_a_load_as_before(enabled, monkeypatch):
    """During it, it is not; whether or not the module can be imported."""
    during = []
    monkeypatch.setattr(backends.importlib, "import_module", lambda _: during.append(gc.isenabled()) or 1 / 0)
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            backends.load("kernels")
        assert during == [False]
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_garbage_is_collected_behind_the_last_of_several_loads(monkeypatch):
    first_began, second_ended = threading.Event(), threading.Event()

    def wait(module):
        if module == "first":
            first_began.set()
            assert second_ended.wait(10)

    monkeypatch.setattr(backends.importlib, "import_module", wait)
    assert gc.isenabled()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backends.load, "first")
        assert first_began.wait(10)
        backends.load("second")
        assert not gc.isenabled()
        second_ended.set()
        first.result()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_during_a_load_collects_garbage(monkeypatch):
    """It has not the thread that would begin to again."""
    began, ends = threading.Event(), threading.Event()
    monkeypatch.setattr(backends.importlib, "import_module", lambda _: (began.set(), ends.wait(10)))
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(backends.load, "kernels")
        assert began.wait(10)
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.isenabled() else 1)
        ends.set()
        load.result()
    assert os.waitpid(child, 0)[1] == 0
    assert gc.isenabled()


def test_says_what_cannot_run_here():
    reasons = backends.unavailable()
    assert set(reasons) <= {"triton", "numba"}
    assert "numba" not in reasons
    assert ("triton" in reasons) or torch.cuda.is_available()
