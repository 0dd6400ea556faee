"""What may import what, what importing costs, and that the committed stubs are the contract's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {names!r}:
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocked())
"""


def test_client_imports_without_torch_and_server() -> None:
    files = [path for path in (REPO / "phs_milvus").rglob("*.py") if not path.stem.startswith("_")]
    names = [".".join(path.relative_to(REPO).with_suffix("").parts) for path in files if path.parent.name != "_pb"]
    imports = "".join(f"import {name}\n" for name in names)
    code = BLOCK.format(names=["torch", "transformers", "phs_server"]) + imports
    code += "import phs_milvus\nfor name in phs_milvus.__all__: getattr(phs_milvus, name)\n"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_server_imports_without_pymilvus() -> None:
    code = BLOCK.format(names=["pymilvus", "milvus_lite"]) + "import phs_server.app, phs_server.pipeline"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_quick() -> None:
    """Under 0.3 s more than what it stands on; the best of three, so that a busy machine does not fail it."""
    code = """
import time, numpy, PIL.Image, grpc
start = time.perf_counter()
import phs_milvus
print(time.perf_counter() - start)
"""
    assert min(float(run_python(code).stdout) for _ in range(3)) < 0.3


def imports_of(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((REPO / "server/phs_server").glob("*.py")), ids=lambda path: path.stem)
def test_server_uses_only_the_shared_modules(path: Path) -> None:
    shared = ("_pb", "wire", "types", "errors", "state", "images")
    for name in imports_of(path):
        if name.startswith("phs_milvus"):
            assert name.split(".")[1] in shared, f"{path.name} imports {name}"
        assert not name.startswith("pymilvus")


def test_only_one_module_imports_pymilvus_and_only_wire_and_clients_the_stubs() -> None:
    files = [path for path in (REPO / "phs_milvus").rglob("*.py") if path.parent.name != "_pb"]
    sources = {path: imports_of(path) for path in files}
    milvus = {path.name for path, names in sources.items() if any(name.startswith("pymilvus") for name in names)}
    stubs = {path.name for path, names in sources.items() if any("._pb" in name for name in names)}
    assert milvus == {"milvus.py"}
    assert stubs <= {"wire.py", "calls.py", "client.py", "async_client.py", "bulk.py"}


def test_evaluation_is_a_pure_client() -> None:
    for path in (REPO / "phs_milvus/evaluation").rglob("*.py"):
        for name in imports_of(path):
            assert not name.startswith(("torch", "transformers", "phs_server", "pymilvus", "phs_milvus._pb")), path
    code = BLOCK.format(names=["torch", "transformers", "phs_server", "pymilvus", "matplotlib"])
    done = run_python(code + "import phs_milvus.evaluation.experiments, phs_milvus.evaluation.tune")
    assert done.returncode == 0, done.stderr


def test_dependencies_have_no_cycles() -> None:
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for root, package in ((REPO, "phs_milvus"), (REPO / "server", "phs_server"))
        for path in (root / package).rglob("*.py")
        if path.stem != "__init__" and path.parent.name != "_pb"
    }

    def module_of(name: str) -> str | None:
        """The module that an imported name is, or is in."""
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    graph = {module: {module_of(name) for name in imports_of(path)} - {None} for module, path in files.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in graph.get(module, ()):
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_committed_stubs_are_what_the_contract_generates(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "phs_milvus/_pb=proto/phs/v1"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    subprocess.run([*command, "phs_milvus/_pb/encoder.proto"], cwd=REPO, check=True, timeout=60)
    made = {path.name: path.read_text() for path in (tmp_path / "phs_milvus/_pb").iterdir()}
    committed = {path.name: path.read_text() for path in (REPO / "phs_milvus/_pb").glob("encoder_pb2*")}
    assert made == committed, "run `make proto` and commit the result"
