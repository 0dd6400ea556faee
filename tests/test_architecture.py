"""What may import what, what importing costs, and that the committed stubs are the contract's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2

from phs_milvus.contract._pb import encoder_pb2

REPO = Path(__file__).resolve().parents[1]
STUBS = REPO / "phs_milvus/contract/_pb"


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
    code = BLOCK.format(names=["pymilvus", "milvus_lite"]) + "import phs_server.app, phs_server.flow.pipeline"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_it_stands_on() -> None:
    """Importing is quick because every name is loaded when it is first used."""
    done = run_python("import phs_milvus, sys; print(*{name.partition('.')[0] for name in sys.modules})")
    loaded = set(done.stdout.split())
    assert "phs_milvus" in loaded
    assert not loaded & {"numpy", "PIL", "grpc", "google", "pymilvus", "pandas", "torch", "asyncio", "tqdm"}


def imports_of(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# The allowed arrows: a package may import itself and what its line names; `contract` is the plugin's.
ARROWS = {
    "phs_milvus": """
        contract   ->
        pointing   -> contract
        client     -> contract pointing
        milvus     -> contract
        search     -> contract pointing client milvus
        ingest     -> contract client milvus search
        scale      -> contract client milvus search ingest
        web        -> contract pointing client milvus search
        integrations -> contract pointing client milvus search
        evaluation -> contract pointing client milvus search ingest
        demo       -> contract pointing client milvus search ingest evaluation
        cli        -> contract pointing client milvus search ingest scale web evaluation demo
    """,
    "phs_server": """
        config     -> contract
        ops        -> contract
        model      -> contract
        flow       -> contract config model
        edge       -> contract config flow ops
        app        -> contract config flow ops edge
        process    -> contract config ops edge app
        probe      -> contract config
    """,
}
# Which third-party package may be imported where; everywhere else it may not.
ONLY_IN = {
    "pymilvus": {"phs_milvus.milvus"},
    "milvus_lite": {"phs_milvus.milvus"},
    "ray": {"phs_milvus.scale"},
    "starlette": {"phs_milvus.web"},
    "uvicorn": {"phs_milvus.web"},
    "torch": {"phs_server.model", "phs_server.flow"},
    "transformers": {"phs_server.model"},
    # Only for commands that start a server of their own; the command line says so where it is not installed.
    "phs_server": {"phs_milvus.cli", "phs_server"},
}
PACKAGES = {"phs_milvus": REPO / "phs_milvus", "phs_server": REPO / "server/phs_server"}


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name; generated stubs are left out."""
    return {
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, root in PACKAGES.items()
        for path in root.rglob("*.py")
        if path.parent.name != "_pb" and path.stem != "__main__"
    }


def room_of(name: str) -> str:
    """phs_milvus.search.rerank -> phs_milvus.search"""
    return ".".join(name.split(".")[:2])


def allowed() -> dict[str, set[str]]:
    table = {}
    for package, text in ARROWS.items():
        for line in text.strip().splitlines():
            room, _, targets = line.partition("->")
            ours = [f"{'phs_milvus' if target == 'contract' else package}.{target}" for target in targets.split()]
            table[f"{package}.{room.strip()}"] = {f"{package}.{room.strip()}", *ours}
    return table


def test_packages_import_only_what_the_table_allows() -> None:
    table, wrong = allowed(), []
    for name, path in modules().items():
        room = room_of(name)
        if room in PACKAGES:  # the facade, which loads names when they are used
            continue
        for imported in imports_of(path):
            top = imported.partition(".")[0]
            if top in PACKAGES and room_of(imported) not in table[room] and room not in ONLY_IN.get(top, ()):
                wrong.append(f"{name} imports {imported}")
            if top in ONLY_IN and not {room, room.partition(".")[0]} & ONLY_IN[top]:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_package_is_in_the_table() -> None:
    assert {room_of(name) for name in modules()} - set(PACKAGES) == set(allowed())


def test_only_the_client_the_service_and_wire_use_the_stubs() -> None:
    using = {name for name, path in modules().items() if any("._pb" in imported for imported in imports_of(path))}
    assert {room_of(name) for name in using} <= {"phs_milvus.contract", "phs_milvus.client", "phs_server.edge"}
    assert all(name.startswith("phs_milvus.contract.wire") for name in using if "contract" in name)


def test_evaluation_needs_neither_a_server_nor_milvus_to_be_imported() -> None:
    code = BLOCK.format(names=["torch", "transformers", "phs_server", "pymilvus", "matplotlib"])
    done = run_python(code + "import phs_milvus.evaluation.experiments, phs_milvus.evaluation.tune")
    assert done.returncode == 0, done.stderr


def test_dependencies_have_no_cycles() -> None:
    """Neither between modules nor between packages."""
    files = modules()

    def module_of(name: str) -> str | None:
        """The module that an imported name is, or is in."""
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    graph = {module: {module_of(name) for name in imports_of(path)} - {None, module} for module, path in files.items()}
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        rooms.setdefault(room_of(module), set()).update({room_of(target) for target in targets} - {room_of(module)})
    for facade in PACKAGES:
        graph.pop(facade), rooms.pop(facade)
    for table in (graph, rooms):
        done: set[str] = set()
        for start in table:
            visit(start, (), table, done)


def visit(name: str, trail: tuple[str, ...], graph: dict[str, set[str]], done: set[str]) -> None:
    assert name not in trail, " -> ".join((*trail, name))
    if name in done:
        return
    for target in graph.get(name, ()):
        visit(target, (*trail, name), graph, done)
    done.add(name)


def test_what_cites_the_design_names_a_section_of_it() -> None:
    """Always as docs/DESIGN.md, "Title", so that sections can move; and the design's table of arrows is ours."""
    page = (REPO / "docs/DESIGN.md").read_text()
    titles = set(re.findall("^## (.+)$", page, re.MULTILINE))
    for name, path in modules().items():
        text = " ".join(path.read_text().split())
        cited = re.findall(r'docs/DESIGN\.md, "([^"]+)"', text)
        assert len(cited) == text.count("DESIGN.md") and set(cited) <= titles, f"{name} cites {cited}"
    rows = re.findall(r"^\| ([a-z, ]+) \| ([a-z, ]*)\|$", page, re.MULTILINE)
    told = {room: set(targets.replace(",", " ").split()) for rooms, targets in rows for room in rooms.split(", ")}
    for lines in ARROWS.values():
        for line in lines.strip().splitlines():
            room, _, targets = line.partition("->")
            everything = room.strip() == "cli" and told["cli"] == {"all", "of", "the", "above"}
            assert everything or told[room.strip()] == set(targets.split()), f"docs/DESIGN.md: {room.strip()}"


def test_test_files_are_short() -> None:
    """A longer one is split by what its tests are about; what the parts share goes into support.py beside them."""
    long = {path: len(path.read_text().splitlines()) for path in (REPO / "tests").rglob("*.py")}
    assert not {str(path.relative_to(REPO)): lines for path, lines in long.items() if lines > 350}


def test_committed_stubs_are_the_contract(tmp_path: Path) -> None:
    """Compiled here by whatever generator is installed: messages and services alike, whoever wrote the text."""
    compiled = tmp_path / "encoder.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "phs_milvus/contract/_pb=proto/phs/v1"]
    command += [f"--descriptor_set_out={compiled}", "phs_milvus/contract/_pb/encoder.proto"]
    subprocess.run(command, cwd=REPO, check=True, timeout=60)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto.FromString(encoder_pb2.DESCRIPTOR.serialized_pb)
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")  # derived; the generated file leaves it out
    assert committed == file, "run `make proto` and commit the result"
    text = (STUBS / "encoder_pb2_grpc.py").read_text()
    paths = {f"/{file.package}.{service.name}/{method.name}" for service in file.service for method in service.method}
    assert set(re.findall(r"'(/phs\.[^']+)'", text)) == paths
    types = (STUBS / "encoder_pb2.pyi").read_text()
    for message in file.message_type:
        assert f"class {message.name}(" in types
        assert all(re.search(rf"\b{field.name}: ", types) for field in message.field), message.name


def test_stubs_accept_every_version_that_the_package_allows() -> None:
    """Generated code refuses what is older than its generator."""
    floors = dict(re.findall(r'"(grpcio|protobuf)>=([\d.]+)', (REPO / "pyproject.toml").read_text()))
    grpc = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (STUBS / "encoder_pb2_grpc.py").read_text())
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", (STUBS / "encoder_pb2.py").read_text())
    assert grpc and protobuf
    assert numbers(grpc[1]) <= numbers(floors["grpcio"]) and numbers(protobuf[1]) <= numbers(floors["protobuf"])


def numbers(version: str) -> list[int]:
    found = [int(part) for part in version.split(".")]
    return found + [0] * (3 - len(found))
