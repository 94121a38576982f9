"""requirements.lock holds everything that requirements.txt installs, and other files of the root are well-formed."""

import re
from importlib.metadata import distribution

import pytest
from common import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(name):
    """The requirements of a file, without its comments."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("--")]


def pinned(found):
    """{name: version} of requirements that all have exactly one version."""
    for requirement in found:
        operators = [specifier.operator for specifier in requirement.specifier]
        assert operators == ["=="], f"{requirement} is not one version"
    return {canonicalize_name(own.name): next(iter(own.specifier)).version for own in found}


def unmet(roots, lock):
    """What these requirements need, whatever they need in turn, and the lock lacks or has in another version."""
    missing, seen, todo = [], set(), list(roots)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in lock or not requirement.specifier.contains(lock[name], prereleases=True):
            missing.append(f"{requirement} (locked: {lock.get(name)})")
            continue
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            for text in distribution(name).requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return sorted(missing), {name for name, _ in seen}


def test_the_lock_is_whole():
    """The installed packages are the locked ones, so what they say they need is what the locked versions need."""
    locked = requirements("requirements.lock")
    lock = pinned(locked)
    assert len(lock) == len(locked), "a package is locked twice"
    assert pinned(requirements("requirements.txt")).items() <= lock.items()
    other = {name: distribution(name).version for name in lock if distribution(name).version != lock[name]}
    if other:
        pytest.skip(f"installed are other versions than the locked ones, of which the lock knows nothing: {other}")
    missing, needed = unmet(requirements("requirements.txt"), lock)
    assert missing == []
    assert set(lock) == needed, "locked, and nothing needs it"


def test_a_gap_in_the_lock_is_seen():
    lock = pinned(requirements("requirements.lock"))
    roots = requirements("requirements.txt")
    assert any(text.startswith("jaxlib") for text in unmet(roots, lock | {"jaxlib": "0.1.0"})[0])
    without = {name: version for name, version in lock.items() if name != "treescope"}
    assert [text.split()[-1] for text in unmet(roots, without)[0]] == ["None)"]
    with pytest.raises(AssertionError):
        pinned([Requirement("numpy>=2")])


def test_the_dockerfile_installs_the_lock_and_names_its_python():
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^# For Python (\d+\.\d+)\.", (ROOT / "requirements.lock").read_text(), re.M)[1]
    assert f"FROM python:{version}-" in text and "--requirement requirements.lock" in text
    assert f'python-version: "{version}"' in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_workflow_runs_what_ci_runs():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.search(r"^ +- run: \.ci/run$", text, re.M) and (ROOT / ".ci/run").stat().st_mode & 0o100


def test_the_citation_has_what_its_schema_asks_for():
    text = (ROOT / "CITATION.cff").read_text()
    keys = re.findall(r"^([\w-]+):", text, re.M)
    assert {"cff-version", "message", "title", "authors"} <= set(keys) and len(keys) == len(set(keys))
    assert "license: MIT" in text and (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_rules_fit_on_a_page():
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= 30
