import subprocess
import sys


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, llm_infer.cli, llm_infer.stream, llm_infer.chat, llm_infer.engine\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
