"""`python -m llm_kernels_npu` is the command `llm-kernels-npu`."""

from llm_kernels_npu.cli import main

if __name__ == "__main__":
    main(prog_name="llm-kernels-npu")
