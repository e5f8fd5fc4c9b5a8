"""The rules of the house that a program can see."""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import retcon

SOURCE = Path(retcon.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(SOURCE.rglob("*.py"))


def functions(path: Path):
    """Name and length of each function: from its `def` line on, docstring aside."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_are_short(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 500
    assert not [(name, lines) for name, lines in functions(path) if lines > 60]


def test_the_median_function_is_short():
    lengths = [lines for path in FILES for _, lines in functions(path)]
    assert statistics.median(lengths) <= 15


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"register_forward", "model/hooks.py"),
        (r"\.model\(\s*input_ids", "model/forward.py"),
        (r"^\s*print\(", "cli/"),
        (r"\.copy_\(weight|weight\.copy_", "model/handle.py"),
        (r"^\s*global ", None),
        (r"except\s*:", None),
        (r"\b(TODO|FIXME|XXX|HACK)\b", None),
    ],
)
def test_some_things_happen_in_one_place(pattern, allowed):
    found = [
        str(path.relative_to(SOURCE))
        for path in FILES
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert [name for name in found if allowed is None or not name.startswith(allowed)] == []


def test_a_module_s_name_says_which_it_is():
    """A command is named as what it calls, which is a module too."""
    stems = Counter(
        path.stem
        for path in FILES
        if path.stem != "__init__" and path.parent != SOURCE / "cli" / "commands"
    )
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_a_class_s_name_says_which_it_is():
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_docstring_begins_with_a_verb_or_names_the_thing():
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    docstrings = [
        ast.get_docstring(node) or ""
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented)
    ]
    clause = re.compile(r"(What|Whether|How|Of|Those|Who)\b")
    assert [text.splitlines()[0] for text in docstrings if clause.match(text)] == []


def test_the_formatter_lays_out_the_code():
    """But tables of data, whose columns line up."""
    kept = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"# fmt: (skip|off)", line)
    ]
    assert len(kept) <= 10, kept


def test_there_is_no_drawer_for_everything():
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc", "common")]


@pytest.mark.parametrize("statement", ["import retcon", "import retcon.cli.main", "retcon.Edit"])
def test_imports_are_light_and_do_nothing(statement):
    code = (
        f"import sys, os; import retcon\nbefore = dict(os.environ)\n"
        f"{statement}\nassert dict(os.environ) == before\n"
        f"assert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_unknown_ones_do_not():
    for name in retcon.__all__:
        assert getattr(retcon, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = retcon.nonsense


def test_version_is_the_package_s():
    from importlib.metadata import version

    assert version("retcon-llm") == retcon.__version__


def test_results_are_packed_and_few_files_are_tracked():
    command = ["git", "ls-files"]
    tracked = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    files = tracked.stdout.split()
    if not files:
        pytest.skip("this is no clone of the repository")
    assert len(files) <= 560
    assert sum((ROOT / name).stat().st_size for name in files if (ROOT / name).exists()) < 26e6
