"""What is handed out: the archive of the sources, the wheel built from it, and the citation."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import paddlevit

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"build", "dist", "output", "data", "site"}  # what is no source, at the top
SMOKE = """
import paddlevit, paddle
from pathlib import Path
from paddlevit.config import get_config

assert Path(paddlevit.__file__).is_relative_to({folder!r}), paddlevit.__file__
model = paddlevit.build_model(get_config("pit_ti_224"))
model.eval()
assert model(paddle.zeros([1, 3, 224, 224])).shape == [1, 1000]
assert len(paddlevit.list_models()) > 25
"""


def is_source(path):
    return "__pycache__" not in path.parts and path.is_file()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The archive, and the wheel that is built from what was packed into it."""
    folder = tmp_path_factory.mktemp("release")
    copy = folder / "copy"
    copy.mkdir()
    half_written = shutil.ignore_patterns("*.pyc.*")  # by tests beside this one
    for path in ROOT.iterdir():
        if path.name not in OUTSIDE and not path.name.startswith(".") and not path.name.endswith(".egg-info"):
            place = copy / path.name
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True, ignore=half_written)
            else:
                shutil.copy(path, place)

    def build(kind, source):
        call = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
        subprocess.run([sys.executable, "-c", call], cwd=source, capture_output=True, check=True)

    build("sdist", copy)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
        names = tar.getnames()
    build("wheel", folder / archive.name[: -len(".tar.gz")])
    return names, next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_archive_has_what_one_needs_to_work_on_it(built):
    names = {name.partition("/")[2] for name in built[0]}
    for top in ("paddlevit", "configs", "docs", "notebooks", "run_scripts", "tests", "tools"):
        own = {str(path.relative_to(ROOT)) for path in (ROOT / top).rglob("*") if is_source(path)}
        assert own - names == set()
    for file in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "mkdocs.yml", "setup.py"):
        assert file in names
    assert not [name for name in names if name.endswith((".pyc", ".pdparams")) or "__pycache__" in name]


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "paddlevit").rglob("*") if is_source(path)}
    configs = {f"paddlevit/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if is_source(path)}
    assert names == package | configs


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_sources(built, tmp_path):
    zipfile.ZipFile(built[1]).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = SMOKE.format(folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_the_citation_is_of_this_version_and_names_the_papers_that_the_readme_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == paddlevit.__version__
    notes = [paper["notes"].split(",")[0] for paper in citation["references"]]
    assert notes == ["HVT", "CvT", "HRFormer", "PiT", "DeiT", "RegNetY"]
    papers = re.findall(r"https://arxiv.org/abs/[\d.]+", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(papers) == {paper["url"] for paper in citation["references"]}


def test_what_is_never_required():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (required,) = (node.value for node in ast.walk(tree) if getattr(node, "arg", None) == "install_requires")
    names = {re.match(r"[\w-]+", item).group() for item in ast.literal_eval(required)}
    assert not names & {"paddlepaddle", "paddlepaddle-gpu", "visualdl", "tensorboardX", "paddle2onnx"}
