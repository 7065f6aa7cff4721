"""Who may import whom, what pure rooms may not touch, and what a device without the extras can load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "streamsplit"

_BELOW = {"errors", "config", "wire"}
_PURE_TOP = _BELOW | {"audio", "codec", "encoders", "learning", "splitting", "weights", "refinement"}
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "wire": {"errors"},
    "audio": _BELOW,
    "codec": _BELOW | {"audio"},
    "encoders": _BELOW | {"audio"},
    "learning": _BELOW | {"audio", "codec", "encoders", "weights"},
    "splitting": _BELOW | {"audio", "codec", "encoders", "weights"},
    "weights": _BELOW | {"encoders", "codec"},
    "refinement": _BELOW | {"audio", "codec", "encoders", "learning", "splitting", "weights"},
    "network": _PURE_TOP,
    "transport": _BELOW,
    "edge": _PURE_TOP | {"transport"},
    "server": _PURE_TOP | {"transport"},
    "export": _PURE_TOP,
    "simulation": _PURE_TOP | {"network", "transport", "edge", "server"},
    "evaluation": _PURE_TOP | {"export", "network", "edge", "server", "simulation"},
    "framework": _PURE_TOP | {"edge", "server", "evaluation", "facade"},
    "facade": _PURE_TOP | {"edge", "server", "evaluation"},
    "cli": _PURE_TOP | {"export", "network", "edge", "server", "simulation", "evaluation", "framework", "facade"},
    "": {"errors", "codec", "framework", "facade", "evaluation", "weights"},  # streamsplit/__init__.py: lazy exports
}
PURE = ("errors", "config", "wire", "audio", "codec", "encoders", "learning", "splitting", "weights", "refinement")
ENDS_ONLY = {
    "socket", "ssl", "select", "selectors", "threading", "_thread", "asyncio", "multiprocessing", "subprocess",
    "concurrent", "http", "urllib", "requests", "websockets", "starlette", "uvicorn", "aioquic", "sqlite3",
    "sounddevice", "psutil",
}  # fmt: skip
_TIME = ("time", "time_ns", "sleep", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
_DATE = ("now", "utcnow", "today")
CLOCKS = {*(("time", name) for name in _TIME), *(("datetime", name) for name in _DATE), ("date", "today")}
BASE_PACKAGES = {
    "numpy", "msgspec", "websockets", "psutil", "yaml", "soundfile", "soxr", "opuslib_next", "safetensors", "rich",
}  # fmt: skip
WITHOUT_EXTRAS = ("errors", "config", "wire", "audio", "codec", "splitting", "edge", "cli")
NEEDS_TORCH = {f"streamsplit.splitting.{name}" for name in ("profile", "paths", "quality", "privacy")} | {
    f"streamsplit.codec.tinystream.{name}"
    for name in (
        "layers",
        "front",
        "decoder",
        "quantizer",
        "model",
        "losses",
        "discriminators",
        "integerise",
        "streams",
        "segment_decoder",
        "file_decoder",
    )
}


class Import(NamedTuple):
    module: str  # importing
    target: str  # dotted name imported
    line: int


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def modules() -> dict[str, ast.Module]:
    trees = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["streamsplit", *path.relative_to(SOURCE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


TREES = modules()


def imports(module: str) -> Iterator[Import]:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(module, full if full in TREES else str(node.module), node.lineno)


ALL = [found for module in TREES for found in imports(module)]


def test_every_room_is_in_the_table():
    assert {room_of(module) for module in TREES} <= set(MAY_IMPORT)


def test_the_table_has_no_cycles():
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        free = {room for room, below in MAY_IMPORT.items() if room not in done and below - {room} <= done}
        assert free, f"a cycle among {sorted(set(MAY_IMPORT) - done)}"
        done |= free


def test_imports_go_downward_only():
    wrong = [
        f"{found.module}:{found.line} imports {found.target}"
        for found in ALL
        if found.target.startswith("streamsplit.")
        and room_of(found.target) != room_of(found.module)
        and room_of(found.target) not in MAY_IMPORT[room_of(found.module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_version_is_the_only_thing_taken_from_the_package_root():
    allowed = {"__version__"}
    wrong = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "streamsplit":
                names = {alias.name for alias in node.names} - allowed
                wrong += [f"{module}:{node.lineno} {name}" for name in names if f"streamsplit.{name}" not in TREES]
    assert not wrong


def test_pure_rooms_touch_no_socket_thread_or_process():
    wrong = [
        f"{found.module}:{found.line} imports {found.target}"
        for found in ALL
        if room_of(found.module) in PURE and found.target.split(".")[0] in ENDS_ONLY
    ]
    assert not wrong, "\n".join(wrong)


def clock_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            for alias in node.names:
                if (node.module, alias.name) in CLOCKS:
                    yield node.lineno, f"{node.module}.{alias.name}"
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if (name, node.attr) in CLOCKS:
                yield node.lineno, f"{name}.{node.attr}"


def test_pure_rooms_read_no_clock_and_do_not_sleep():
    wrong = [
        f"{module}:{line} {what}"
        for module, tree in TREES.items()
        if room_of(module) in PURE
        for line, what in clock_uses(tree)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    ["import time\ntime.time()", "from time import sleep", "import datetime\ndatetime.datetime.now()", "date.today()"],
)
def test_a_clock_is_found_however_it_is_written(code):
    assert list(clock_uses(ast.parse(code)))


def test_process_time_is_no_clock():
    assert not list(clock_uses(ast.parse("import time\ntime.process_time_ns()")))


def test_wire_imports_the_standard_library_and_msgspec_only():
    outside = {
        found.target.split(".")[0]
        for found in ALL
        if room_of(found.module) == "wire" and not found.target.startswith("streamsplit.")
    }
    assert outside - set(sys.stdlib_module_names) <= {"msgspec"}


def test_room_packages_hold_a_docstring_only():
    wrong = [
        module for module in TREES
        if (SOURCE / module.replace(".", "/").removeprefix("streamsplit/") / "__init__.py").exists()
        and module != "streamsplit"
        and (len(TREES[module].body) != 1 or not ast.get_docstring(TREES[module]))
    ]  # fmt: skip
    assert not wrong


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


BLOCKER = """
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {allowed!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (not in the base install)", name=name)
sys.meta_path.insert(0, Blocked())
for module in {modules!r}:
    importlib.import_module(module)
"""
# What the base packages themselves import, where they find it.
THEIRS = {
    "cffi",
    "_cffi_backend",
    "pygments",
    "markdown_it",
    "mdurl",
    "_soundfile",
    "_soundfile_data",
    "_yaml",
    "typing_extensions",
}


def test_a_device_loads_its_rooms_with_the_base_install_alone():
    rooms = [module for module in TREES if room_of(module) in WITHOUT_EXTRAS and module not in NEEDS_TORCH]
    code = BLOCKER.format(allowed={"streamsplit", *BASE_PACKAGES, *THEIRS}, modules=rooms)
    run(code + "assert 'torch' not in sys.modules")


def test_the_block_on_extras_blocks():
    code = BLOCKER.format(allowed={"streamsplit", *BASE_PACKAGES, *THEIRS}, modules=["torch"])
    with pytest.raises(AssertionError, match="not in the base install"):
        run(code)


IMPORT_TIME = """
import time
start = time.perf_counter()
import {module}
took = time.perf_counter() - start
import sys
assert not {{"torch", "scipy", "sklearn", "matplotlib", "starlette"}} & set(sys.modules)
print(took)
"""


@pytest.mark.parametrize("module", ["streamsplit", "streamsplit.cli.main"])
def test_the_package_and_the_command_import_in_under_three_tenths_of_a_second(module):
    took = min(float(run(IMPORT_TIME.format(module=module))) for _ in range(3))
    assert took < 0.3


def test_the_names_of_the_package_are_there_before_they_are_loaded():
    code = "import sys, streamsplit\nassert 'torch' not in sys.modules\nprint(' '.join(dir(streamsplit)))"
    names = set(run(code).split())
    assert {"StreamSplitFramework", "EdgeModule", "DynamicSplittingAgent", "evaluate_embeddings"} <= names


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import streamsplit

    with pytest.raises(AttributeError, match="StreamSplitFramewerk"):
        streamsplit.StreamSplitFramewerk  # noqa: B018
