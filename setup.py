"""Packaging of seqconv; tool settings stand in pyproject.toml, pinned versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# The folder kernels/ is installed as seqconv.kernels: a top-level package "kernels" would collide with one on PyPI.
PACKAGES = find_packages(include=["seqconv", "seqconv.*"]) + [
    "seqconv." + name for name in find_packages(include=["kernels", "kernels.*"])
]

TEST = [
    "hypothesis>=6.100",
    "mypy>=1.15",
    "pandas-stubs",
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-cov>=5",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.11",
    'triton>=3.6; platform_system == "Linux"',
]

# What the suite `peers` and `python -m benchmarks.epochs` set beside seqconv where it is installed; no test needs it.
PEERS = [
    "jax>=0.6",
    "keras>=3.10",
    "onnx>=1.19",
    "onnxruntime>=1.22",
    "onnxscript>=0.5",
    "openvino>=2025.2",
    "tensorflow-cpu>=2.20",
]

setup(
    name="seqconv",
    version="0.1.0",
    description="Hand-written kernels for 1-D convnets on sequences, as drop-in torch modules",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir={"seqconv": "seqconv", "seqconv.kernels": "kernels"},
    package_data={"seqconv": ["py.typed"], "seqconv.kernels.triton": ["tiles.json"]},
    install_requires=[
        "matplotlib>=3.8",
        "numba>=0.61",
        "numpy>=2.0",
        "pandas>=2.2",
        "pooch>=1.8",
        "tabulate>=0.9",
        "torch>=2.11",
        "tqdm>=4.66",
    ],
    extras_require={"test": TEST, "bench": ["pytest>=8", "pytest-benchmark>=5"], "peers": PEERS},
    entry_points={
        "console_scripts": ["seqconv = seqconv.cli:main"],
        "torch_dynamo_backends": ["seqconv = seqconv.fusion.backend:compile_graph"],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
