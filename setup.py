"""Packaging: the shipped yaml files are installed with the package, PaddlePaddle itself only by an extra."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "paddlevit" / "__init__.py").read_text(encoding="utf-8")).group(1)

SERVE = ["fastapi>=0.110", "uvicorn>=0.29", "prometheus-client>=0.17"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2"]
EXPORT = [
    "paddle2onnx>=2.1; python_version < '3.13'",  # it writes ONNX, of which OpenVINO's files are made; no later build
    "onnxruntime>=1.16",
    "openvino>=2024.0",
    "nncf>=2.14",  # int8
]
FAST = ["opencv-python-headless>=4.5", "simplejpeg>=1.7"]  # training images twice as fast as by Pillow
KERNEL = ["ipykernel>=6", "matplotlib>=3.4"]
TEST = [
    *KERNEL,
    "nbclient>=0.6",
    *DOCS,
    *SERVE,
    *EXPORT,
    "pytest>=7",
    "pytest-xdist>=3.2",  # the first with --dist worksteal
    "hypothesis>=6",
    "ruff==0.17.5",
    "mypy==2.4.1; python_version >= '3.10'",
    "mypy==1.19.1; python_version < '3.10'",
    "types-PyYAML",
    "safetensors>=0.4",
    "scikit-learn>=1.0",
    *FAST,
    "tensorboardX>=2.6",
    "setuptools>=70.1",  # builds the wheel that a test looks into
]

setup(
    name="paddlevit",
    version=VERSION,
    description="Train, fine-tune, evaluate and deploy HVT, CvT, HRFormer and PiT with PaddlePaddle",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The paddlevit authors",
    python_requires=">=3.9",
    entry_points={"console_scripts": ["paddlevit = paddlevit.__main__:main"]},
    packages=find_packages(include=["paddlevit", "paddlevit.*"]),
    package_data={
        "paddlevit": [
            "py.typed",
            "configs/*.yaml",
            "configs/*/*.yaml",
            "data/imagenet_classes.txt",
            "weights/*.yaml",
            "report/templates/*",
            "runtime/*.cpp",
            "serve/page/*",
        ]
    },
    install_requires=[
        "jinja2>=3.0",
        "numpy>=1.21",
        "pillow>=9.5,<13",  # 13 resizes differently, so published accuracies could not be reproduced
        "pyyaml>=5.4",
        "tqdm>=4.60",
        "yacs>=0.1.8",
    ],
    extras_require={
        # A GPU user's build must not be overwritten by the CPU one. It has no extra: on PyPI they end at 2.6.2.
        "cpu": ["paddlepaddle>=3.0,<4"],
        "demo": ["scikit-learn>=1.0", *FAST],
        "fast": FAST,
        "export": EXPORT,
        "log": ["tensorboardX>=2.6", "visualdl>=2.5"],
        "notebooks": [*KERNEL, "jupyterlab>=4"],
        "serve": [*SERVE],
        "docs": DOCS,
        "test": TEST,
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
