"""Python runs this at start: whoever imports torch_npu later gets the fake device's computing."""

import atexit
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _EnterAfter(importlib.abc.Loader):
    """Loads torch_npu, then enters the mode for the rest of the process."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from fake_npu.device import FakeNpu
        from fake_npu.groups import carry_by_gloo

        # torch's stack of modes holds no reference of its own once a mode was popped and pushed.
        self.mode = FakeNpu()
        self.mode.__enter__()
        if "FAKE_NPU_CALLS" in os.environ:
            atexit.register(self.mode.write_calls, os.environ["FAKE_NPU_CALLS"])
        carry_by_gloo(module._C._distributed_c10d.ProcessGroupHCCL)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch_npu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _EnterAfter(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
