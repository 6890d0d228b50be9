"""The structure that docs/architecture.md draws, kept true: packages in order, light imports, the field's words."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import knn_cli

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "knn_cli"

# Each package imports only from those before it; imports inside functions count.
PACKAGES = (
    "core",
    "audio",
    "store",
    "formats",
    "networks",
    "embedding",
    "evaluation",
    "recognition",
    "diarization",
    "training",
    "reports",
    "cli",
)
# Modules outside this order: the lazy public API, and the two ways to start the program.
ENTRY_POINTS = {"knn_cli", "knn_cli.__main__"}
# Imports inside functions that may point to a later package: (importing module, imported module).
UPWARD_IMPORTS: set[tuple[str, str]] = set()

MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_MODULE_LINES = 400
MAX_NAMES_AT_TOP = 15

# Private vocabulary that was replaced by the field's words: none of these is a name in the code.
# A word stands for a whole part of a name: "heard" forbids `heard` and `heard_seconds`, not `overheard`.
FORBIDDEN_WORDS = {
    "across", "apart", "doubt", "doubted", "doubtful", "doubts", "finer", "forgiving", "heard", "lanes", "rests",
    "room", "rooms", "said", "stitching", "strangers", "strays", "talk", "told", "voices",
}  # fmt: skip
# "room" as the acoustic space is the field's own word.
ALLOWED_NAMES = {"room", "rooms", "room_impulse_response"}
FORBIDDEN_CONSTANTS = {
    "ACTIVE", "AGREEMENT", "CERTAIN", "DOUBT", "ENOUGH", "FAINT", "PIECE", "SECOND", "SHARPNESS", "SHORT", "SURE",
}  # fmt: skip
FORBIDDEN_CLASSES = {"Design", "Plan", "Run", "Said", "Talk", "Task", "Team", "Found", "Part", "Voices"}


def modules() -> list[str]:
    """Dotted names of all modules, packages by their own name."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(TOP).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def path_of(module: str) -> Path:
    path = TOP.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def package_of(module: str) -> str:
    return module.split(".")[1]


MODULES = modules()
CODE = [module for module in MODULES if module not in ENTRY_POINTS]


@cache
def imports(module: str, *, type_checking: bool = False) -> frozenset[str]:
    """Modules of ours that a module imports, inside functions too; those for type checkers only where asked for."""
    tree = tree_of(module)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.ImportFrom, ast.Import)) or (id(node) in guarded and not type_checking):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "knn_cli"}
        elif (node.module or "").split(".")[0] == "knn_cli" and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        assert not getattr(node, "level", 0), f"{module}: imports are absolute"
    return frozenset(found)


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(qualified name, definition) of every function and method, nested ones too."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = prefix + (getattr(child, "name", None) or "")
            if isinstance(child, ast.FunctionDef):
                yield name, child
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(tree_of(module), "")


def test_the_top_is_one_glance() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.name not in {"__pycache__", "models"}}
    assert len(names) <= MAX_NAMES_AT_TOP
    assert {name for name in names if "." not in name} == set(PACKAGES)


@pytest.mark.parametrize("module", CODE)
def test_imports_point_to_earlier_packages(module: str) -> None:
    own = PACKAGES.index(package_of(module))
    wrong = {
        other
        for other in imports(module, type_checking=True)
        if other == "knn_cli" or PACKAGES.index(package_of(other)) > own
    }
    wrong -= {"knn_cli"} if wrong == {"knn_cli"} and _imports_only_version(module) else set()
    assert not {other for other in wrong if (module, other) not in UPWARD_IMPORTS}


def _imports_only_version(module: str) -> bool:
    return all(
        [alias.name for alias in node.names] == ["__version__"]
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ImportFrom) and node.module == "knn_cli"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles_inside_a_package(package: str) -> None:
    inside = [module for module in CODE if package_of(module) == package]
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in imports(module):
                if package_of(other + ".") == package:
                    visit(other, (*path, module))
            done.add(module)

    for module in inside:
        visit(module, ())


@pytest.mark.parametrize("module", [module for module in CODE if path_of(module).name == "__init__.py"])
def test_packages_say_what_lives_in_them(module: str) -> None:
    body = tree_of(module).body
    assert len(body) == 1 and ast.get_docstring(tree_of(module)), "an __init__ is a docstring and nothing else"


def package_table() -> str:
    """The table of docs/architecture.md: a row per package, made of the docstrings."""
    rows = ["| package | what lives there |", "|---|---|"]
    for module in MODULES:
        if module != "knn_cli" and path_of(module).name == "__init__.py":
            text = " ".join((ast.get_docstring(tree_of(module)) or "").split())
            rows.append(f"| `{module.removeprefix('knn_cli.').replace('.', '/')}` | {text} |")
    order = {package: index for index, package in enumerate(PACKAGES)}
    return "\n".join([*rows[:2], *sorted(rows[2:], key=lambda row: order[row.split("`")[1].split("/")[0]])])


def test_architecture_has_the_table_of_packages() -> None:
    assert package_table() in (TOP / "docs" / "architecture.md").read_text(encoding="utf-8"), package_table()


def texts(module: str) -> Iterator[tuple[int, str]]:
    """(line, text) of comments and string literals, docstrings among them."""
    with path_of(module).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(
                tokenize, "FSTRING_MIDDLE", -1
            ):
                yield token.start[0], token.string


@pytest.mark.parametrize("module", [module for module in CODE if package_of(module) != "cli"])
def test_no_flags_outside_the_command_line(module: str) -> None:
    """Python users are not told to leave an option out that they never gave."""
    flags = [(line, text) for line, text in texts(module) if re.search(r"(?<![-\w/|])--[a-z][a-z-]*[a-z]\b", text)]
    assert not flags


@pytest.mark.parametrize("module", CODE)
def test_private_names_stay_private(module: str) -> None:
    known = {}
    private = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "knn_cli":
            for alias in node.names:
                known[alias.asname or alias.name] = alias.name
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    private.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree_of(module)):
        owned = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known
        if owned and node.attr.startswith("_") and not node.attr.startswith("__"):
            private.add(f"{node.value.id}.{node.attr}")
    assert not private


def test_public_class_names_are_unique() -> None:
    places = defaultdict(list)
    for module in CODE:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("module", CODE)
def test_functions_are_short(module: str) -> None:
    long = {}
    for name, function in functions(module):
        first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
        lines = (function.end_lineno or 0) - first + 1
        taken = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = len([one for one in taken if one.arg not in ("self", "cls")])
        exempt = package_of(module) == "cli" or function.name == "__init__"
        if not exempt and (lines > MAX_FUNCTION_LINES or count > MAX_PARAMETERS):
            long[name] = (lines, count)
    assert not long


@pytest.mark.parametrize("module", CODE)
def test_modules_are_short(module: str) -> None:
    assert len(path_of(module).read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


def defined_names(module: str) -> set[str]:
    """Names that a module defines: modules, classes, functions, parameters, attributes and variables."""
    found = {module.rsplit(".", 1)[-1]}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


@pytest.mark.parametrize("module", CODE)
def test_names_are_the_fields_words(module: str) -> None:
    names = defined_names(module)
    words = {name for name in names - ALLOWED_NAMES if FORBIDDEN_WORDS & set(re.split(r"_+", name.lower()))}
    assert not words | (names & (FORBIDDEN_CONSTANTS | FORBIDDEN_CLASSES))


@pytest.mark.parametrize("arguments", [["--help"], ["diarize", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    """No torch, scipy or h5py behind the help."""
    script = f"""
import sys
from knn_cli.__main__ import main
sys.argv = ["knn", *{arguments!r}]
try:
    main()
except SystemExit as leave:
    heavy = [name for name in ("torch", "scipy", "h5py", "pandas", "numpy", "pyannote.core") if name in sys.modules]
    print(leave.code, heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_diarize_imports_what_it_needs(example: Path, tmp_path: Path) -> None:
    """What only pictures, scores, other commands and other methods need costs as much time as all of a short file."""
    out = str(tmp_path / "a.json")
    command = [sys.executable, "-X", "importtime", "-m", "knn_cli", "diarize", str(example), "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    heavy = {
        "matplotlib",
        "pyannote.core",
        "scipy.optimize",
        "scipy.special",
        "scipy.signal",
        "pandas",
        "torchaudio",
        "silero_vad",
    }
    unused = {"knn_cli.recognition.glc", "knn_cli.evaluation.metrics", "knn_cli.diarization.clustering.vbx"}
    assert unused <= set(MODULES)
    assert "torch" in imported and not imported & {*heavy, *unused}


def test_importing_the_package_is_free() -> None:
    """`import knn_cli` imports none of its packages, and nothing that is not Python's own."""
    script = "import sys; before = set(sys.modules); import knn_cli; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=TOP)
    extra = [name for name in ast.literal_eval(done.stdout) if name.split(".")[0] not in sys.stdlib_module_names]
    assert extra == ["knn_cli"]


def test_nothing_happens_at_import() -> None:
    """Importing every module neither opens a file of ours, nor warns, nor changes torch's threads."""
    names = [module for module in MODULES if module != "knn_cli.__main__"]
    script = f"""
import torch, warnings, importlib
before = torch.get_num_threads()
with warnings.catch_warnings(record=True) as seen:
    for name in {names!r}:
        importlib.import_module(name)
assert torch.get_num_threads() == before
assert not [w for w in seen if "knn_cli" in str(w.filename)], seen
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=TOP)


PUBLIC = (
    "Classifier", "Diarization", "Embedder", "EmbeddingSet", "KnnError", "ScoreTable", "Waveform", "convert",
    "diarization_error", "diarize", "embed_file", "evaluate", "find_model", "read_audio", "read_rttm",
    "train_classifier", "write_rttm",
)  # fmt: skip


DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def beside_the_meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An otherwise empty folder with the example meeting is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("meeting.flac", "meeting.rttm"):
        (tmp_path / name).write_bytes((TOP / "examples" / name).read_bytes())


def test_public_api() -> None:
    assert set(knn_cli.__all__) == {*PUBLIC, "__version__"} and set(PUBLIC) <= set(dir(knn_cli))


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.usefixtures("beside_the_meeting")
def test_public_names_resolve_and_show_their_use(name: str) -> None:
    """Each has a `>>>` example in its docstring."""
    public = getattr(knn_cli, name)
    home = importlib.import_module(public.__module__)
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(public, name, module=home) if test.examples]
    assert tests, f"{name} has no >>> example"
    for test in tests:
        assert doctest.DocTestRunner(optionflags=DOCTEST_FLAGS).run(test).failed == 0


@pytest.mark.parametrize("module", [module for module in CODE if ">>> " in path_of(module).read_text(encoding="utf-8")])
@pytest.mark.usefixtures("beside_the_meeting")
def test_examples_of_docstrings(module: str) -> None:
    """The `>>>` examples of all other names of all packages."""
    public = {f"{module}.{getattr(knn_cli, name).__name__}" for name in PUBLIC}
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module)):
        if test.name not in public:
            assert doctest.DocTestRunner(optionflags=DOCTEST_FLAGS).run(test).failed == 0
