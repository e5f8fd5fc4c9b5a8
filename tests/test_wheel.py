"""The wheel and the source archive: all that the package reads is in them, and nothing else."""

import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tracked(*folders):
    """The files of a clone, or of an unpacked source archive, below some folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("this is no clone of the repository")
    return set(listed.stdout.splitlines())


def built(kind, builder, folder):
    """The one file that hatchling makes of the repository: a wheel, or a source archive."""
    builders = pytest.importorskip(
        f"hatchling.builders.{kind}", reason="hatchling is not installed"
    )
    (path,) = getattr(builders, builder)(str(ROOT)).build(directory=str(folder))
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(built("wheel", "WheelBuilder", tmp_path_factory.mktemp("wheel"))) as file:
        yield file


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with tarfile.open(built("sdist", "SdistBuilder", tmp_path_factory.mktemp("sdist"))) as file:
        yield file


def test_the_wheel_holds_the_package_whole(wheel):
    """Templates, styles, programs, presets, facts: whatever lies in the source."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name.removeprefix("src/") for name in tracked("src/retcon")}
    ends = {Path(name).suffix for name in names}
    assert {".py", ".j2", ".css", ".js", ".toml", ".yaml", ".jsonl", ".txt"} <= ends


def test_the_wheel_says_what_it_is(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    told = wheel.read(about["METADATA"]).decode()
    assert f"Version: {project['version']}\n" in told and "License-Expression: MIT" in told
    assert "LICENSE" in about and "](" not in told  # no link that leads nowhere from an index
    assert "retcon = retcon.cli.main:run" in wheel.read(about["entry_points.txt"]).decode()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = citation.partition("date-released: ")[2].partition("\n")[0]
    assert f"version: {project['version']}\n" in citation
    assert f"## {project['version']} ({released})\n" in changes


def test_the_archive_holds_what_is_built_read_and_tested(archive):
    (top,) = {name.partition("/")[0] for name in archive.getnames()}
    names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    wanted = tracked("src", "docs", "examples", "tests")
    assert names >= {*wanted, "README.md", "LICENSE", "CITATION.cff", "constraints.txt"}
    assert not {name for name in names if name.startswith(("results/", "benchmarks/", ".git/"))}
