"""Settings every test starts with: one thread a process, nothing compiled, nothing fetched."""

import gc
import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_COMPILE_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Files whose tests share work: one worker runs all of a file's. They come first, the longest before
# the others, so that no worker is left alone with one at the end.
# The mark `xdist_group` is meant for this, and pytest-xdist 3.8 does not see it under pytest 9.2.
ONE_WORKER = (
    "tests/system/test_system_quickstart.py",
    "tests/npu/test_npu_training.py",
    "tests/llm_train/test_train_layouts.py",
    "tests/llm_train/test_train_pipeline.py",
    "tests/llm_train/test_train_mixers.py",
    "tests/llm_train/test_train_context.py",
    "tests/llm_train/test_train_moe.py",
    "tests/llm_train/test_train_mtp.py",
    "tests/llm_train/test_train_loop.py",
    "tests/llm_train/test_train_sft.py",
    "tests/llm_train/test_train_lora.py",
    "tests/llm_train/test_train_options.py",
    "tests/llm_train/test_train_golden.py",
    "tests/llm_train/test_train_indexer.py",
    "tests/llm_train/test_train_rare_layers.py",
)
# Then what else takes seconds a test.
LONG = ("tests/system/", "tests/npu/", "tests/llm_kernels_npu/aot/", "tests/llm_train/")


def pytest_collection_modifyitems(items):
    def place(item):
        file = _file(item.nodeid)
        if file in ONE_WORKER:
            return ONE_WORKER.index(file)
        return len(ONE_WORKER) + (not file.startswith(LONG))

    items.sort(key=place)


def pytest_collection_finish():
    """Modules and tests stay to the end: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "load":
        return None  # another way of sharing the tests out was asked for
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = _file(nodeid)
            return file if file in ONE_WORKER else nodeid

    config.option.loadscopereorder = False  # our order, not that of the number of tests
    return Scheduler(config, log)


def _file(nodeid):
    return nodeid.partition("::")[0]
