"""One word, one thing: no two modules define classes of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.test_imports import FOLDERS, modules

# The kernels' Windows are what the layers' Windows become; Dense is a source of rows there, a baseline among models.
# Layer: of the census, and of what a configuration may depend on.
KNOWN = {"Dense", "Layer", "Windows"}


def test_no_two_modules_define_classes_of_the_same_name():
    found = defaultdict(list)
    for module, path in modules(FOLDERS).items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module)
    assert len(found) > 100
    assert {name: where for name, where in found.items() if len(where) > 1 and name not in KNOWN} == {}
