"""What a wheel and a source archive hold, and that version, names and bounds are the same everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import knn_cli
from knn_cli.core.toml_files import tomllib
from tests.helpers.documents import TOP

# What a package of PyPI is called in conda-forge.
IN_CONDA = {
    "torch": "pytorch",
    "soundfile": "pysoundfile",
    "soxr": "python-soxr",
    "matplotlib": "matplotlib-base",
}
MODELS = ("language", "segmentation", "voice")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))


def recipe() -> dict[str, Any]:
    """The conda recipe, with its only variable put in."""
    text = (TOP / "packaging" / "conda" / "meta.yaml").read_text(encoding="utf-8")
    version = re.search(r'set version = "([^"]+)"', text)
    assert version is not None
    text = re.sub(r"^\{%.*%\}$", "", text, flags=re.MULTILINE).replace("{{ version }}", version[1])
    found: dict[str, Any] = yaml.safe_load(text.replace("{{ PYTHON }}", "python"))
    return found


def bounds(requirement: str) -> tuple[str, str]:
    """Name and bounds of a requirement, without its marker."""
    match = re.fullmatch(r"([\w.-]+?)(\[[\w,]+\])? *((?:[<>=!~].*)?)", requirement.split(";")[0].strip())
    assert match is not None, requirement
    return match[1], match[3].replace(" ", "")


def test_the_version_comes_from_one_place(project: dict[str, Any]) -> None:
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "knn_cli/__init__.py"
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == recipe()["package"]["version"] == knn_cli.__version__
    assert f"## {knn_cli.__version__}" in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_conda_recipe_asks_for_the_same(project: dict[str, Any]) -> None:
    wanted = dict(bounds(one) for one in project["project"]["dependencies"])
    asked = dict(line.partition(" ")[::2] for line in recipe()["requirements"]["run"])
    assert asked.pop("python") == project["project"]["requires-python"]
    assert asked == {IN_CONDA.get(name, name): limits for name, limits in wanted.items()}
    assert recipe()["build"]["entry_points"] == [
        f"{name} = {target}" for name, target in project["project"]["scripts"].items()
    ]


def test_the_conda_package_is_the_same_for_every_python() -> None:
    """A selector such as `# [py<311]` would be decided by the Python of the build: no tomli for an older one."""
    assert recipe()["build"]["noarch"] == "python"
    assert "# [" not in (TOP / "packaging" / "conda" / "meta.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["README.md", "Dockerfile", "docs/install.md"])
def test_torch_is_asked_for_within_the_same_bounds(text: str, project: dict[str, Any]) -> None:
    wanted = {one for one in project["project"]["dependencies"] if one.startswith("torch")}
    lines = [
        line for line in (TOP / text).read_text(encoding="utf-8").splitlines() if '"torch' in line and "install" in line
    ]
    assert lines and all({f'"{one}"' in line for one in wanted} == {True} for line in lines)


def test_extras_in_messages_exist(project: dict[str, Any]) -> None:
    """`pip install 'knn-cli[hub]'` is what a user of a wheel can type."""
    extras = project["project"]["optional-dependencies"]
    named = set()
    for path in [*(TOP / "knn_cli").rglob("*.py"), TOP / "README.md", *(TOP / "docs").glob("*.md")]:
        for name, extra in re.findall(r"pip install ['\"]([\w.-]*)\[(\w+)\]", path.read_text(encoding="utf-8")):
            assert name in (project["project"]["name"], "."), path
            assert name != "." or path.suffix == ".md", f"{path}: an installed wheel has no checkout"
            named.add(extra)
    assert named <= {*extras} and {"hub", "onnx", "lmdb", "hdbscan", "parquet"} <= named


def test_the_manual_names_every_extra(project: dict[str, Any]) -> None:
    text = (TOP / "docs" / "install.md").read_text(encoding="utf-8").partition("## Extras")[2]
    named = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert {*named} == {*project["project"]["optional-dependencies"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None:
        pytest.skip("needs hatchling (pip install hatchling)")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=TOP, check=True, capture_output=True
    )
    return out


def test_a_wheel_holds_the_models_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
        configurations = [json.loads(wheel.read(f"knn_cli/models/{name}/config.json")) for name in MODELS]
    assert all(config["weights_sha256"] for config in configurations)
    for model in MODELS:
        assert {f"knn_cli/models/{model}/{name}" for name in ("weights.safetensors", "README.md")} <= names
    assert not {name for name in names if name.startswith(("tests/", "docs/", "tools/")) or "__pycache__" in name}
    assert {"LICENSE", "NOTICE"} <= {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name}
    assert f"Version: {knn_cli.__version__}" in text and "License-Expression: Apache-2.0" in text
    templates = {path.relative_to(TOP).as_posix() for path in (TOP / "knn_cli").rglob("*.html")}
    assert templates and templates <= names


def test_a_source_archive_builds_and_is_tested_by_itself(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "NOTICE", "LICENSE"}
    assert wanted | {"mkdocs.yml", "Dockerfile", "packaging/conda/meta.yaml", "tests/conftest.py"} <= names
    assert {f"models/{model}/weights.safetensors" for model in MODELS} <= names
    assert {"examples/meeting.flac", "docs/images/player.png"} <= names
    assert not {name for name in names if "__pycache__" in name or name.startswith((".git/", "shared/"))}


def test_the_description_can_be_shown(built: Path) -> None:
    if find_spec("twine") is None:
        pytest.skip("needs twine (pip install twine)")
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
