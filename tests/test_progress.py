"""Bars on terminals, lines in logs, and the end on a signal."""

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

CODE = """
import sys, time
import ddpm.util.progress as p
p.SECONDS = 0.2
with p.progress(total=8, desc="work", unit="forward") as bar:
    for i in range(8):
        time.sleep(0.1)
        bar.update(1)
        if i == 5:
            p.say("hello")
"""


def test_a_log_gets_lines() -> None:
    log = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stderr.decode()
    assert "\r" not in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert lines.count("hello") == 1
    shown = [line for line in lines if line != "hello"]
    assert 1 <= len(shown) <= 5
    assert all(line.startswith("work: ") and "/8 [" in line for line in shown)


def test_what_is_quick_leaves_no_trace_in_a_log() -> None:
    code = CODE.replace("p.SECONDS = 0.2\n", "").replace('p.say("hello")', "bar.set_postfix(loss=0.5)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the terminal is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    assert b"\rwork: 100%" in shown
    assert b"hello" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_remove_temporary_files(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import signal, time
from ddpm.util.files import atomic_path
from ddpm.util.progress import orderly_end
signal.signal({int(number)}, signal.SIG_DFL)  # which nohup ignores
with orderly_end(), atomic_path({str(tmp_path / "x.png")!r}) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_signal_ends_a_training_in_order(photos: Path, tmp_path: Path) -> None:
    """No half-written state is left, nor the lock; every command does so, as it is the group's work."""
    code = """
import sys, time
from accelerate import Accelerator
from agents.cli import main
def save_state(self, folder):
    open(folder + "/half", "w").close()
    print("saving", flush=True)
    time.sleep(60)
Accelerator.save_state = save_state
main(sys.argv[1:])
"""
    options = ["--width=8", "--multipliers=1", "--norm-groups=4", "--crop=16", "--batch-size=1", "--iterations=1"]
    command = [sys.executable, "-c", code, "train-ddpm", f"--images={photos}", f"--out={tmp_path / 'run'}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"saving\n"
        process.terminate()
        assert process.stderr.read() == b"", "no bar in a log of what is quick"
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "tensorboard", "versions.json"]
