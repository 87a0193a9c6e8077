import os

import pytest

from fake_npu.environment import Environment, ensure

# What is in there runs in the environment of the fake device, where this variable is set.
collect_ignore = [] if "FAKE_NPU_COUNT" in os.environ else ["inside"]


@pytest.fixture(scope="session")
def environment() -> Environment:
    return ensure()
