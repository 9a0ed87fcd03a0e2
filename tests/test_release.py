"""Test that the files around the package agree: versions, pins, the lock, CI, and the citation."""

import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from people import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
TEST_TOOLS = {"hypothesis", "playwright", "pyright", "pytest", "pytest-xdist", "ruff"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """Return the package of a requirement such as "jax[cuda13]; sys_platform == 'linux'"."""
    return normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def pins() -> dict[str, str]:
    """Return the version of each package in constraints.txt."""
    found = re.findall(r"^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len({name for name, _ in found}) == len(found), "pip refuses two pins of one package"
    return {normal(name): version for name, version in found}


def test_pip_and_uv_install_the_same_versions():
    locked = {(normal(each["name"]), each.get("version")) for each in LOCK["package"]}
    assert not pins().items() - locked


def test_every_dependency_and_extra_is_pinned():
    wanted = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    assert {name_of(each) for each in wanted} - {"nrsrd-jax"} <= pins().keys()


def test_the_lock_has_the_requirements_of_pyproject():
    (own,) = (each["metadata"] for each in LOCK["package"] if each["source"] == {"editable": "."})
    ours = {("", *parts(Requirement(each))) for each in PROJECT["dependencies"]}
    ours |= {(name, *parts(Requirement(each))) for name, extra in EXTRAS.items() for each in extra}
    locked = set()
    for each in own["requires-dist"]:
        extra = re.search(r"extra == '(.+?)'", each.get("marker", ""))
        text = f"{each['name']}[{','.join(each.get('extras', ()))}]{each.get('specifier', '')}"
        locked.add((extra[1] if extra else "", *parts(Requirement(text))))
    assert locked == ours
    assert set(own["provides-extras"]) == set(EXTRAS)


def parts(requirement: Requirement) -> tuple[str, frozenset, SpecifierSet]:
    return normal(requirement.name), frozenset(requirement.extras), requirement.specifier


def test_test_tools_are_in_the_extra_test_alone():
    extras = {name: {name_of(each) for each in extra} for name, extra in EXTRAS.items()}
    assert extras["test"] >= TEST_TOOLS
    del extras["test"]
    others = {name_of(each) for each in PROJECT["dependencies"]}.union(*extras.values())
    assert not others & TEST_TOOLS


def test_one_version_stands_in_pyproject_changelog_and_citation():
    version = PROJECT["version"]
    assert re.search(rf"^## {re.escape(version)}(, unreleased)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_a_tagged_commit_has_the_version_of_its_tag():
    if not (ROOT / ".git").exists():
        pytest.skip("this folder is not a git checkout")
    command = ["git", "tag", "--points-at", "HEAD", "v*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tags in ([], [f"v{PROJECT['version']}"])


def test_the_citation_has_the_keys_of_its_format_and_the_papers_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    paper = citation["preferred-citation"]
    assert paper.keys() >= {"type", "title", "authors"}
    assert [author["family-names"] for author in paper["authors"]] == ["Guo", "Hu", "Zhu", "Wang"]
    assert citation["license"] == PROJECT["license"]


def test_ci_runs_the_checks_and_tests_on_each_python():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [target for command in commands if command.startswith("make ") for target in command.split()[1:]]
    assert {"check", "test-all"} <= set(made) <= targets
    assert any("chromium" in command for command in commands)
    # Both would otherwise be read as numbers: 3.10 is not 3.1.
    assert all(isinstance(python, str) for python in pythons)


def test_pre_commit_formats_as_make_check_does():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["rev"] == f"v{pins()['ruff']}"
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff-check", "ruff-format"}
