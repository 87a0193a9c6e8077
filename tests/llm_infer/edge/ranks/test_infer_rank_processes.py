"""How ranks end: with an error that says why, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckpt_zoo import CASES
from llm_infer.edge.ranks.interrupts import deferred_interrupt

LIMIT_S = 60
# Opens a model on two ranks, tells the other's process, computes for ever.
PROGRAM = """
import sys
from pathlib import Path
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.decoders import arch_of, open_source, plan_of
from llm_infer.edge.ranks.lead import Lead
from llm_infer.engines.tensor_parallel import SharedModel
from llm_infer.model.steps import Part

folder, options = Path(sys.argv[1]), LoadOptions(engine="native", device="cpu")
lead = Lead(2, device="cpu")
lead.load(folder, options)
with open_source(folder, None) as source:
    arch = arch_of(source, folder, options)
    decoder = plan_of(arch, source, options, group=lead.group).read()
lead.join()
runner = SharedModel(decoder, lead).runner(num_blocks=2, block_tokens=64)
(other,) = lead._others
part = Part(tokens=[1, 2, 3], first=0, blocks=[0], wants_logits=True)
expected = runner.run([part])
try:
    print(other.process.pid, flush=True)
    while sys.argv[2] == "idle" and sys.stdin.readline():
        pass
    while True:
        assert runner.run([part]).equal(expected)
except KeyboardInterrupt:
    assert runner.run([part]).equal(expected)
    print("interrupted", flush=True)
while True:
    runner.run([part])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    case = next(case for case in CASES if case.id == "qwen3")
    return case.save(tmp_path_factory.mktemp("ranks") / "hf")


@pytest.fixture
def start(folder):
    """Start the program; gives its process and the process id of the other rank."""
    started = []

    def run(what):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.communicate()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(pid):
    deadline = time.monotonic() + LIMIT_S
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_a_dead_rank_ends_all_with_an_error_that_names_it(start, what):
    process, other = start(what)
    os.kill(other, signal.SIGKILL)
    error = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 1
    assert "rank 1 of 2 was ended by SIGKILL (out of memory?)" in error


def test_ctrl_c_leaves_ranks_in_step_and_a_killed_parent_leaves_none(start):
    process, other = start("busy")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert is_running(other)
    process.kill()
    process.wait()
    wait_until_ended(other)


def test_an_interrupt_acts_after_a_step():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        done += [signal.raise_signal(signal.SIGINT)]
    assert done == [None]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
