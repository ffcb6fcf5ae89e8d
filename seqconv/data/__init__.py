"""Windows over a series, the two tasks' data sets, CSV files of one's own, and loaders that make batches of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqconv.data.batches import ArrayBatches
    from seqconv.data.generator import seed_generator
    from seqconv.data.imdb import ImdbData, load_imdb
    from seqconv.data.jena import JenaData, load_jena
    from seqconv.data.sequences import pad_sequences
    from seqconv.data.series import SeriesData
    from seqconv.data.series_csv import load_csv
    from seqconv.data.windows import SlidingWindows, gap_groups

__all__ = [
    "ArrayBatches",
    "ImdbData",
    "JenaData",
    "SeriesData",
    "SlidingWindows",
    "gap_groups",
    "load_csv",
    "load_imdb",
    "load_jena",
    "pad_sequences",
    "seed_generator",
]

# Imported at first use: pandas, Numba and pooch together take longer to import than the rest of the package. No module
# here may bear the name of a public function, since importing it would put the module in the function's place.
MODULES = {
    "ArrayBatches": "batches",
    "ImdbData": "imdb",
    "JenaData": "jena",
    "SeriesData": "series",
    "SlidingWindows": "windows",
    "gap_groups": "windows",
    "load_csv": "series_csv",
    "load_imdb": "imdb",
    "load_jena": "jena",
    "pad_sequences": "sequences",
    "seed_generator": "generator",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
