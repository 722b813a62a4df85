"""What the rules of the house look at: files, module graph, functions, documents. Reads the tree; imports nothing of it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "harmonywatch"
TEXT_SUFFIXES = {
    ".cfg", ".css", ".html", ".ini", ".js", ".json", ".lock", ".mako", ".md", ".ndjson", ".py", ".sh", ".sql", ".toml",
    ".ts", ".txt", ".yaml", ".yml", "",
}  # fmt: skip
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    """`where`: `gateway/door.py:Door.answer`; `lines`: of its body, without docstring; `arguments`: without self."""

    where: str
    lines: int
    arguments: int


@cache
def tracked() -> tuple[Path, ...]:
    """Every text file of the repository; of an unpacked archive without git, every one outside of generated folders."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    else:
        places = [ROOT / name for name in (".ci", "bench", "docs", "src", "tests")]
        paths = [path for place in places for path in place.rglob("*") if "__pycache__" not in path.parts]
        paths += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".lock")]
    return tuple(sorted(path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()))


def markdown() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def documents() -> list[Path]:
    """What a reader is told at the top of the repository and in docs."""
    return [path for path in markdown() if path.parent == ROOT or ROOT / "docs" in path.parents]


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def module_of(path: Path) -> str:
    parts = ("harmonywatch", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def short(path: Path) -> str:
    """As a reader writes it."""
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports when it runs, at its top or inside a function, with the line."""
    for node in _running(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Depth first, without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports."""
    modules = {module_of(path): path for path in sources()}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for name, _ in imports_of(path):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                found[module].add(target)
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(edges.get(node, ())):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            at = stack.index(node)
            part, stack[at:] = stack[at:], []
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def functions(path: Path, base: Path = SOURCE) -> list[Function]:
    """The functions of a file, methods and inner ones too."""
    found: list[Function] = []

    def walk(node: ast.AST, at: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, AnyFunction):
                found.append(_function(child, at))
                walk(child, f"{at}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                walk(child, f"{at}{child.name}.")
            else:
                walk(child, at)

    walk(tree_of(path), f"{path.relative_to(base).as_posix()}:")
    return found


def _function(node: AnyFunction, at: str) -> Function:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    last = node.end_lineno or node.lineno
    lines = last - body[0].lineno + 1 if body else 0
    arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return Function(at + node.name, lines, len([name for name in arguments if name not in ("self", "cls")]))
