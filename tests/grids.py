"""Grids of parameters: ``make test`` has cases in which the values meet, ``make test-large`` has all others."""

import itertools

import pytest


def grid(together=2, indirect=(), **axes):
    """Return the mark that runs a test on every case of ``axes``; see :func:`marked`."""
    lists = [list(values) for values in axes.values()]
    numbers = list(itertools.product(*(range(len(values)) for values in lists)))
    given = [
        pytest.param(*(values[i] for values, i in zip(lists, number.values, strict=True)), marks=number.marks)
        for number in marked(numbers, together)
    ]
    return pytest.mark.parametrize(list(axes), given, indirect=list(indirect))


def marked(cases, together=2):
    """Return tuples of hashable values as parameters: those are large without which all meet.

    What meets is any ``together`` values of a case, two as a rule: each such pair is in a case that is not large.
    """
    kept = covering(cases, together)
    return [pytest.param(*case, marks=large(case not in kept)) for case in cases]


def rounds(number):
    """Return the mark that draws a test's examples anew, so many times in all: those beyond the first are large."""
    return pytest.mark.parametrize("turn", others_large(*range(number)))


def others_large(*values):
    """Return values, or tuples of them, as parameters: those behind the first are large."""
    cases = [value if type(value) is tuple else (value,) for value in values]
    return [pytest.param(*case, marks=large(number > 0)) for number, case in enumerate(cases)]


def large(is_large):
    return (pytest.mark.large,) if is_large else ()


def covering(cases, together):
    """Return the cases chosen one by one, each time the one with the most values that have not met before."""
    new = {case: set(itertools.combinations(enumerate(case), together)) for case in cases}
    kept = set()
    while new:
        best = max(new, key=lambda case: len(new[case]))
        found = new.pop(best)
        kept.add(best)
        new = {case: left for case, old in new.items() if (left := old - found)}
    return kept
