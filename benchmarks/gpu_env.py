"""Make a virtual environment over this interpreter's packages, with seqconv in it.

A machine lent with a GPU often has torch and no network, and its Python is not ours to install into. A nested
environment with ``--system-site-packages`` would see the base interpreter's packages and miss those of the environment
in between, so the folders that this interpreter really imports from are listed in a ``.pth`` file. Wheels in the folder
that the environment variable ``SEQCONV_WHEELS`` names are installed into it: packages that the machine lacks, all that
they need among them. ``python benchmarks/gpu_env.py FOLDER``; standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = "SEQCONV_WHEELS"

# The folder kernels/ is imported as seqconv.kernels, as setup.py has it installed.
FINDER = """\
import importlib.util
import sys


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = {{"seqconv": {package!r}, "seqconv.kernels": {kernels!r}}}.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, folder + "/__init__.py", submodule_search_locations=[folder]
        )


sys.meta_path.append(Finder)
"""


def make(folder: Path) -> Path:
    """Make the environment, or bring it up to date; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    parents = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (packages / "parent.pth").write_text("".join(f"{entry}\n" for entry in parents), encoding="utf-8")
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    if wheels := os.environ.get(WHEELS):
        found = sorted(map(str, Path(wheels).glob("*.whl")))
        if not found:
            sys.exit(f"{WHEELS} must name a folder with wheels, got {wheels!r}, which holds none")
        subprocess.run([*install, *found], check=True)
    done = subprocess.run(
        [*install, "--no-build-isolation", "--editable", str(ROOT)], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:  # without pip or setuptools
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        print(f"benchmarks: {folder} imports seqconv from where it stands ({why})")
        finder = FINDER.format(package=str(ROOT / "seqconv"), kernels=str(ROOT / "kernels"))
        (packages / "seqconv_finder.py").write_text(finder, encoding="utf-8")
        (packages / "seqconv_finder.pth").write_text("import seqconv_finder\n", encoding="utf-8")
    return python


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/gpu_env.py FOLDER")
    make(Path(sys.argv[1]))
