import triton_interpreter

triton_interpreter.repair()
