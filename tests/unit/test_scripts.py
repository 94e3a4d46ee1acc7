"""The page's scripts as modules, and as the one script that they are delivered as."""

from __future__ import annotations

import re
from collections import Counter

from persona_lab.ui.scripts import MODULES, STATIC, bundle

SOURCES = {name: (STATIC / f"{name}.js").read_text("utf-8") for name in MODULES}
EXPORT = re.compile(r"^export (?:const|let|function|async function) (\w+)", re.MULTILINE)
IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";$', re.MULTILINE)
TOP_LEVEL = re.compile(r"^(?:export )?(?:const|let|function|async function) (\w+)", re.MULTILINE)


def test_every_module_is_delivered() -> None:
    own = {path.stem for path in STATIC.glob("*.js")} - {"switches"}  # a component's own script
    assert own == set(MODULES)


def test_imports_name_exports_of_earlier_modules() -> None:
    for position, (name, source) in enumerate(SOURCES.items()):
        assert source.count("\nimport ") + source.startswith("import ") == len(
            IMPORT.findall(source)
        ), name
        for names, module in IMPORT.findall(source):
            assert module in MODULES[:position], (name, module)
            assert set(names.split(", ")) <= set(EXPORT.findall(SOURCES[module])), (name, module)


def test_imported_names_are_used() -> None:
    assert any(IMPORT.search(source) for source in SOURCES.values())
    for name, source in SOURCES.items():
        body = IMPORT.sub("", source)
        for names, _ in IMPORT.findall(source):
            for imported in names.split(", "):
                assert re.search(rf"\b{imported}\b", body), (name, imported)


def test_names_at_the_top_level_are_unique() -> None:
    names = Counter(found for source in SOURCES.values() for found in TOP_LEVEL.findall(source))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_bundle_is_one_closed_scope() -> None:
    script = bundle()
    assert script.startswith("(() => {")
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    assert "</script" not in script
