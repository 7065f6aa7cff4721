"""The command line: dispatch, one-line errors, exit codes, configuration mistakes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import types

import pytest

from streamsplit import __version__
from streamsplit.cli import console
from streamsplit.cli import main as entry
from streamsplit.errors import AudioError, ConnectionRefused


@pytest.fixture
def command(monkeypatch):
    """Installs a function as the command 'demo' and gives a way to run command lines."""

    def install(run, add_arguments=lambda parser: parser.add_argument("--data")):
        module = types.ModuleType("streamsplit.cli.demo")
        module.add_arguments, module.run = add_arguments, run
        monkeypatch.setitem(sys.modules, "streamsplit.cli.demo", module)

    return install


def raising(error):
    def run(args):
        raise error

    return run


def test_version_and_help_name_the_program_and_all_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == f"streamsplit {__version__}"
    with pytest.raises(SystemExit):
        entry.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "server", "edge", "profile"))


def test_without_a_command_help_is_shown_and_the_code_is_that_of_a_usage_error(capsys):
    assert entry.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_an_unknown_command_or_option_is_a_usage_error(capsys):
    for line in (["serve"], ["profile", "--colour"]):
        with pytest.raises(SystemExit) as ended:
            entry.main(line)
        assert ended.value.code == 2
    assert "invalid choice: 'serve'" in capsys.readouterr().err


def test_the_demo_gets_its_own_options(command):
    seen = []
    command(lambda args: seen.append(args.data))
    assert entry.main(["demo", "--data", "somewhere"]) == 0
    assert seen == ["somewhere"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (AudioError("no such\n  file"), 1, "no such file"),
        (ConnectionRefused("wrong token"), 4, "wrong token"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 3, "'.[learn]'"),
        (ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn.config"), 3, "'.[server]'"),
    ],
)
def test_errors_are_one_line_on_stderr_and_an_exit_code(command, capsys, error, code, text):
    command(raising(error))
    assert entry.main(["demo"]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and text in shown.err
    assert shown.err.startswith("streamsplit: error: ") and shown.err.count("\n") == 1


def test_a_bug_is_not_hidden(command):
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        entry.main(["demo"])
    command(raising(ModuleNotFoundError("No module named 'left_pad'", name="left_pad")))
    with pytest.raises(ModuleNotFoundError):
        entry.main(["demo"])


def test_control_c_ends_with_130_and_no_traceback(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert entry.main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import sys, types\n"
        "m = types.ModuleType('streamsplit.cli.demo')\n"
        "m.add_arguments = lambda p: None\n"
        "def run(args):\n"
        "    for i in range(100000): print(i)\n"
        "m.run = run\n"
        "sys.modules['streamsplit.cli.demo'] = m\n"
        "from streamsplit.cli.main import main\n"
        "code = main(['demo']); sys.stderr.write(f'code {code}')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "0\n"
    child.stdout.close()
    errors = child.stderr.read()
    assert child.wait(60) == 0
    assert errors == "code 0"


def test_only_the_chosen_command_is_loaded():
    code = (
        "import sys\nfrom streamsplit.cli.main import main\n"
        "try: main(['profile', '--help'])\nexcept SystemExit: pass\n"
        "loaded = {m for m in sys.modules if m.startswith('streamsplit.cli.')}\n"
        "assert loaded == {'streamsplit.cli.main', 'streamsplit.cli.console', 'streamsplit.cli.profile'}, loaded\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_logging_is_set_up_once_and_goes_to_stderr(capsys):
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        console.set_up_logging("INFO")
        console.set_up_logging("WARNING")
        ours = [handler for handler in root.handlers if handler not in before]
        assert len(ours) == 1 and root.level == logging.WARNING
        logging.getLogger("streamsplit.x").warning("hello %d", 3)
        shown = capsys.readouterr()
        assert shown.out == "" and "WARNING streamsplit.x: hello 3" in shown.err
    finally:
        root.handlers[:] = before


def test_json_has_no_nan(capsys):
    console.print_json({"a": float("nan"), "b": [1, float("inf")], "c": {"d": 2.5}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, None], "c": {"d": 2.5}}
