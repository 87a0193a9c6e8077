"""A fake Ascend device for tests: the real torch_npu, stub CANN libraries, the CPU computing.

- cann.py and cann.c: the C libraries torch_npu links against, on host memory.
- environment.py: a virtual environment of its own with torch_npu, and the variables to run in it.
- device.py: the dispatch mode that sends what is computed on `npu` to the CPU.
- operators.py and operators_*.py: what torch_npu's fused operators compute, written from their
  documentation.
- schemas.py: the schemas of those we call, committed in tests/npu/schemas.json.
- site/: switches the mode on in every process of that environment that imports torch_npu; with
  FAKE_NPU_CALLS=folder each process writes there at its end what it called.

What it proves: the calls fit torch_npu's real schemas, Meta kernels and autograd formulas, and
the program around them is right. What it cannot: CANN's numerics, limits and speed, HCCL.
"""
