import subprocess
import sys
import time


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, llm_infer.cli, llm_infer.stream, llm_infer.chat, llm_infer.engine\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_is_quick():
    command = [sys.executable, "-c", "from llm_infer.cli import main; main()", "--help"]
    used = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        used.append(time.perf_counter() - start)
    assert min(used) < 0.5
