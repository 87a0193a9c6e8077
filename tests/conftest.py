"""Settings every test starts with: one thread a process, nothing compiled, nothing fetched."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_COMPILE_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Files whose tests share work of minutes: one worker runs all of a file's, and begins with it.
# The mark `xdist_group` is meant for this, and pytest-xdist 3.8 does not see it under pytest 9.2.
ONE_WORKER = ("tests/system/test_system_quickstart.py", "tests/llm_train/test_train_layouts.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "load":
        return None  # another way of sharing the tests out was asked for
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file in ONE_WORKER else nodeid

    return Scheduler(config, log)
