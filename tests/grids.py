"""Grids of parameters: ``make test`` has cases in which the values meet, ``make test-large`` has all others."""

import itertools

import pytest


def grid(together=2, indirect=(), **axes):
    """Return the mark that runs a test on every case of ``axes``.

    Cases in which any values of ``together`` axes meet are for every run, the rest of them are large.
    """
    cases = list(itertools.product(*(range(len(values)) for values in axes.values())))
    kept = covering(cases, together)
    given = [
        pytest.param(*(values[i] for values, i in zip(axes.values(), case, strict=True)), marks=large(case not in kept))
        for case in cases
    ]
    return pytest.mark.parametrize(list(axes), given, indirect=list(indirect))


def rounds(number):
    """Return the mark that draws a test's examples anew, so many times in all: those beyond the first are large."""
    return pytest.mark.parametrize("turn", [pytest.param(turn, marks=large(turn > 0)) for turn in range(number)])


def large(is_large):
    return (pytest.mark.large,) if is_large else ()


def covering(cases, together):
    """Return cases in which meets whatever meets in ``cases``, chosen one by one: the one that adds the most."""
    new = {case: set(itertools.combinations(enumerate(case), together)) for case in cases}
    kept = set()
    while new:
        best = max(new, key=lambda case: len(new[case]))
        found = new.pop(best)
        kept.add(best)
        new = {case: left for case, old in new.items() if (left := old - found)}
    return kept
