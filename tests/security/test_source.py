"""What the source itself does not do: run what is data, load what runs, or start a program in a way not listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "code")
"""What turns bytes into code or objects of any class; nothing imports it."""
CALLS = ("eval", "exec", "__import__")
"""Functions of Python that run text, or import what a text names."""
NAMES = (
    "torch.load", "os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "subprocess.getoutput",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub", "runpy.run_path", "runpy.run_module",
    "shutil.unpack_archive", "pandas.read_pickle", "numpy.load", "np.load", "importlib.reload", "tempfile.mktemp",
)  # fmt: skip
"""Not to be used; `numpy.load` unless it says that it reads no objects."""
CONVERTER = "mmtune/checkpoint/foreign/_unpickle.py"
STARTS = {
    "mmtune/children.py": "isolated Python",
    "mmtune/checkpoint/store.py": "git, asked for the revision of this program",
    "mmtune/checkpoint/foreign/_files.py": "isolated Python, for pickled files",
    "mmtune/data/convert/rows.py": "isolated Python, for columns of parquet and Arrow",
    "mmtune/data/pool.py": "forks, which import nothing again",
    "mmtune/data/world/make.py": "spawned workers, isolated",
}
"""The only files of the package that start processes, and what they start."""
IMPORTS = {
    "mmtune/registry.py": "entries of rooms, and what was allowed by name",
    "mmtune/__init__.py": "the verbs",
    "mmtune/media/__init__.py": "the public names of the room",
    "mmtune/media/_backends.py": "decoders, by names that are written there",
    "mmtune/llm/hf.py": "a module of transformers, by a name that is written there",
    "mmtune/commands/env.py": "packages that are written there",
    "mmtune/data/convert/rows.py": "pyarrow, which is looked for and not imported",
    "mmtune/guard.py": "the module of mmtune that a child runs",
    "mmtune/serve/run_info.py": "files of the room of media, by kinds that are written in the types",
    "mmtune/training/trackers.py": "wandb",
    "mmtune/encoders/_thin.py": "modules of transformers and timm, by names that are written there",
}
"""The only files of the package that import by a name which is not written in an import statement."""


def files(*folders: str) -> list[Path]:
    """The Python files of folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def faults(tree: ast.AST) -> Iterator[str]:
    """What a file does that it must not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {fault}" for fault in _call(node))


def _call(node: ast.Call) -> Iterator[str]:
    name, keywords = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
    if name in CALLS:
        yield f"{name}()"
    if name in NAMES and not (name.endswith(".load") and keywords.get("allow_pickle") == "False"):
        yield name
    if keywords.get("shell", "False") != "False":
        yield "shell=True"
    if keywords.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    if keywords.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if name == "yaml.load" and ast.unparse(node.args[1] if len(node.args) > 1 else node) != "_Loader":
        yield "yaml.load without the safe loader"
    if name.endswith((".extract", ".extractall")) and keywords.get("filter") != "'data'":
        yield "an archive unpacked where it says"
    if name.endswith(".from_pretrained") and name != "self.from_pretrained":
        if keywords.get("local_files_only") != "True":
            yield "from_pretrained that may fetch"
        if name.startswith("Auto") and keywords.get("trust_remote_code") != "False":
            yield "from_pretrained that may run code"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "eval(x)", "exec(x)", "torch.load(f)", "os.system('ls')",
        "subprocess.run('ls', shell=True)", "np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f, Loader)",
        "AutoA.from_pretrained(f, local_files_only=True)", "A.from_pretrained(f)",
        "pipeline(trust_remote_code=x)", "tar.extractall(p)", "__import__(name)",
    ],
)  # fmt: skip
def test_a_fault_is_seen(code: str) -> None:
    assert list(faults(ast.parse(code)))


def test_nothing_runs_what_is_data() -> None:
    read = files("mmtune", "tools")
    assert len(read) > 200
    found = {str(path.relative_to(ROOT)): list(faults(ast.parse(path.read_text()))) for path in read}
    # the converter of pickled files, in a process of its own: a few harmless classes, everything else is refused
    converter = ast.parse((ROOT / CONVERTER).read_text())
    assert sorted(fault.partition(": ")[2] for fault in found.pop(CONVERTER)) == [
        "import pickle", "torch.load", "torch.load"
    ]  # fmt: skip
    calls = [node for node in ast.walk(converter) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func).endswith(("load", "loads", "Unpickler"))]
    safe = "weights_only=True"
    assert all(ast.unparse(call.func) in ("torch.load", "load") for call in loads)
    assert all(safe in ast.unparse(call) for call in loads if ast.unparse(call.func) == "torch.load")
    assert {name: several for name, several in found.items() if several} == {}


def test_who_starts_processes() -> None:
    starts = ("subprocess", "multiprocessing", "concurrent.futures", "pty", "os.fork", "os.posix_spawn")
    found = set()
    for path in files("mmtune"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name == one or name.startswith(one + ".") for name in names for one in starts):
                found.add(str(path.relative_to(ROOT)))
    # those that wait for a child that another file started, and the guard, which is one
    assert found - {"mmtune/experts/_process.py", "mmtune/guard.py"} == set(STARTS)


def test_tools_start_no_python_that_looks_in_the_current_folder() -> None:
    for path in files("tools"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                rest = [ast.unparse(one) for one in node.elts[1:3]]
                assert rest[0] not in ("'-m'", "'-c'"), f"{path}: {ast.unparse(node)}"
            elif isinstance(node, ast.With) and "ProcessPoolExecutor" in ast.unparse(node.items[-1]):
                assert "isolated()" in ast.unparse(node.items[0]), path


def test_who_imports_by_a_name_that_is_data() -> None:
    found = set()
    for path in files("mmtune"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "exec_module", "module_from_spec", "find_spec")
            ):
                found.add(str(path.relative_to(ROOT)))
    assert found == set(IMPORTS)
