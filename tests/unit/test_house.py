"""The house rules that a machine can hold, so that nobody need remember them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from peftplan.methods import METHODS
from peftplan.optimizers import OPTIMIZERS
from peftplan.sources import SOURCES

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "peftplan"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 300  # about: a file above it is named, one above the limit is refused
LINE_LIMIT = 600

# Rooms that may print, read files, and look at the clock or the environment.
OUTSIDE_THE_CORE = {"cli", "measure", "catalog"}
# Rooms that may turn GiB, GB and teraflop into bytes and flop: the units, and the catalogue's readers.
KNOW_UNITS = {"units.py", "catalog"}
UNIT_VALUES = {base**power for base in (1024, 1000) for power in (2, 3, 4) if (base, power) != (1000, 2)}


def room(path: Path) -> str:
    """The folder or file directly below the package: `memory`, `units.py`."""
    return path.relative_to(PACKAGE).parts[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:60]}"


# ---- imports


def test_import_of_peftplan_is_light() -> None:
    """`import peftplan` loads no torch, pandas, rich, streamlit or other heavy library."""
    heavy = "torch", "transformers", "peft", "bitsandbytes", "numpy", "pandas", "rich", "typer", "streamlit"
    code = f"import sys, peftplan; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---- units


def unit_literals(node: ast.AST) -> Iterator[ast.AST]:
    """Powers of 1024 and of 1000 that turn units, however written; bounds of values are none."""
    if isinstance(node, ast.keyword) and node.arg in ("limit", "le", "lt", "ge", "gt"):
        return
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if all(isinstance(target, ast.Name) and target.id.startswith("MAX_") for target in targets):
            return
    if constant_value(node) in UNIT_VALUES:
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from unit_literals(child)


def constant_value(node: ast.AST) -> float | None:
    """What a number, or a power, shift or product of numbers, comes to."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if not isinstance(node, ast.BinOp):
        return None
    left, right = constant_value(node.left), constant_value(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Pow) and 0 <= right <= 64:
        return left**right
    if isinstance(node.op, ast.LShift) and 0 <= right <= 64:
        return int(left) << int(right)
    return left * right if isinstance(node.op, ast.Mult) else None


def test_only_units_and_the_catalogue_know_powers_of_1024_and_1000() -> None:
    """Bytes are bytes everywhere else: no 1024**3, 1 << 30, 1e9 or 10**12."""
    found = [
        shown(path, node) for path in FILES if room(path) not in KNOW_UNITS for node in unit_literals(tree(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("x = n / 1024**3", True),
        ("x = n / (1 << 30)", True),
        ("x = n * 1e9", True),
        ("x = 1024 * 1024", True),
        ("x = 1_000_000_000_000", True),
        ("block = 1024", False),
        ("MAX_TOKENS = 10**9", False),
        ("c.size('positions', limit=10**9)", False),
    ],
)
def test_the_search_for_units_finds_them(code: str, refused: bool) -> None:
    """A unit is found however it is written; a plain 1024 and the bounds of a value are let through."""
    assert bool(list(unit_literals(ast.parse(code)))) is refused


# ---- no effects in the core

BANNED_MODULES = {"datetime", "io", "logging", "os", "random", "shutil", "socket", "subprocess", "time"}
BANNED_MODULES |= {"tempfile", "urllib"}
BANNED_CALLS = {"breakpoint", "exec", "eval", "input", "open", "print"}
BANNED_METHODS = {"read_bytes", "read_text", "write_bytes", "write_text"}
BANNED_OF_SYS = {"sys.argv", "sys.exit", "sys.stderr", "sys.stdin", "sys.stdout"}


def effects(module: ast.Module) -> Iterator[ast.AST]:
    """Imports and calls that print, log, or touch files, the clock, chance or the environment."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            if any(alias.name.partition(".")[0] in BANNED_MODULES for alias in node.names):
                yield node
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in BANNED_MODULES:
                yield node
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in BANNED_CALLS:
                yield node
            if isinstance(called, ast.Attribute) and called.attr in BANNED_METHODS:
                yield node
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in BANNED_OF_SYS:
            yield node


def test_the_core_has_no_effects() -> None:
    """Nothing below cli, measure and catalog prints, logs, or touches files, clock or environment."""
    found = [
        shown(path, node) for path in FILES if room(path) not in OUTSIDE_THE_CORE for node in effects(tree(path))
    ]
    assert found == []


# ---- sources


def names_in(where: str) -> set[str]:
    """What a source's `where` lists: files by their last part (`engine.cpp`), and names after a comma."""
    files = re.findall(r"[\w*./-]+\.(?:py|cpp|h|cu|yaml)\b", where)
    return {path.rpartition("/")[2] for path in files} | set(re.findall(r", (\w+)(?=[,;]|$)", where))


def mentions(text: str, names: set[str]) -> bool:
    """Whether one of the names stands in a text as a whole word; a star stands for part of a name."""
    patterns = "|".join(re.escape(name).replace(r"\*", r"\w+") for name in names)
    return bool(names) and re.search(rf"(?<![\w-])(?:{patterns})(?![\w-])", text) is not None


@cache
def source_paragraphs() -> dict[str, str]:
    """By file and line: every `Source:` of a docstring or comment, up to the end of its paragraph."""
    found = {}
    for path in FILES:
        if room(path) in {"catalog", "sources"}:  # a record of the catalogue carries its own
            continue
        text = path.read_text(encoding="utf-8").replace('"""', "\n\n")
        for match in re.finditer(r"\bSources?: (.+?)(?=\n[ #]*\n|\Z)", text, re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found[f"{path.relative_to(REPOSITORY)}:{line}"] = match[1]
    return found


@cache
def cited() -> set[str]:
    """Keys that something cites: a table, a `Source:`, or any text by a hyphened key or a file's name."""
    tables = {row.source for row in (*OPTIMIZERS.values(), *METHODS.values())}
    paragraphs = "\n".join(source_paragraphs().values())
    package = "\n".join(path.read_text(encoding="utf-8") for path in FILES if path.parent.name != "sources")
    return tables | {
        key
        for key, source in SOURCES.items()
        if mentions(paragraphs, {key})
        or mentions(package, names_in(source.where) | ({key} if "-" in key else set()))
    }


def test_every_named_source_is_known() -> None:
    """What stands behind `Source:` is a key of SOURCES, or a file or name that one of them lists."""
    known = set(SOURCES).union(*(names_in(source.where) for source in SOURCES.values()))
    unknown = [
        f"{where}: {text.splitlines()[0]}"
        for where, text in source_paragraphs().items()
        if not mentions(text, known)
    ]
    assert unknown == []


def test_every_source_is_used() -> None:
    """A source that nothing cites is dropped, or it is listed as waiting for its formula."""
    assert set(SOURCES) - cited() == set()


@pytest.mark.parametrize("key", SOURCES)
def test_every_source_can_be_found(key: str) -> None:
    """A source has a title, a version or year, and files or an identifier to look it up by."""
    source = SOURCES[key]
    assert source.title
    assert re.search(r"\d", source.version)
    assert names_in(source.where) or "arXiv:" in source.where or "documentation" in source.where


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_source(name: str) -> None:
    """An optimizer says whose states and temporaries it counts, and what it is in one sentence."""
    assert OPTIMIZERS[name].source in SOURCES
    assert OPTIMIZERS[name].summary


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_source(name: str) -> None:
    """A method says where it comes from, and what it does in one sentence."""
    assert METHODS[name].source in SOURCES
    assert METHODS[name].summary


# ---- sizes and sentences


def test_files_stay_short() -> None:
    """A file is about 300 lines at most: longer ones are named, much longer ones refused."""
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    long = {str(p.relative_to(REPOSITORY)): n for p, n in lines.items() if n > MAX_LINES}
    if long:
        warnings.warn(f"files above {MAX_LINES} lines: {long}", stacklevel=1)
    assert [name for name, n in long.items() if n > LINE_LIMIT] == []


def test_every_test_states_its_behaviour() -> None:
    """Each test function carries one sentence that says what holds."""
    silent = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.name}"
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_method_is_asked_for_by_name_outside_its_room() -> None:
    """Nothing downstream asks which method or model family this is: what differs is in the spec."""
    found = [
        shown(path, node)
        for path in FILES
        if room(path) not in {"arch", "methods"}
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare) and names_a_method_or_family(node)
    ]
    assert found == []


def names_a_method_or_family(node: ast.Compare) -> bool:
    """`request.method == "lora"`, `model_type in (…)`: a comparison of either with a literal."""
    sides = [node.left, *node.comparators]
    asked = any(
        getattr(side, "id", getattr(side, "attr", "")) in {"family", "kind", "method", "model_type"}
        for side in sides
    )
    words = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
    return asked and bool(words & (set(METHODS) | {"llama", "mistral", "gpt2", "qwen2"}))
