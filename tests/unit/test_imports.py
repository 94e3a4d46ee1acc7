"""Rules of the source tree that import-linter (``make lint``) can't check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "persona_lab"
FILES = sorted(PACKAGE.rglob("*.py"))

LIGHT_MODULES = ["persona_lab", "persona_lab.settings", "persona_lab.japanese"]
HEAVY_LIBRARIES = {
    "anthropic",
    "gradio",
    "llama_cpp",
    "openai",
    "pandas",
    "sqlalchemy",
    "sudachipy",
}


def _relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text("utf-8"))))


def test_only_settings_reads_the_environment() -> None:
    """``Settings`` reads it through pydantic; ``os.environ`` is used once, to set OpenMP's mode."""
    users = [
        _relative(file)
        for file in FILES
        for node in _nodes(file)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert users == ["llama/bindings.py"]
    derived = [
        _relative(file)
        for file in FILES
        for node in _nodes(file)
        if isinstance(node, ast.Name) and node.id == "BaseSettings"
    ]
    assert derived == ["settings.py"]


def test_imports_are_absolute() -> None:
    relative = {
        _relative(file)
        for file in FILES
        for node in _nodes(file)
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert relative == set()


def test_imports_by_name_are_few() -> None:
    """``import_module`` hides an import from import-linter, so every user of it is listed."""
    users = {
        _relative(file)
        for file in FILES
        for node in _nodes(file)
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
    }
    assert users == {"__init__.py", "lazy_imports.py", "clients/registry.py", "clients/weights.py"}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_module_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split()
    assert set(loaded) & HEAVY_LIBRARIES == set()


def test_public_names_are_listed_once() -> None:
    import persona_lab

    for name in persona_lab.__all__:
        assert getattr(persona_lab, name).__name__ == name
    assert len(persona_lab.__all__) == len(set(persona_lab.__all__))
