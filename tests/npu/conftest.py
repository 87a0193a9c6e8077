import os
import shutil
import sys

import pytest

from fake_npu.environment import Environment, ensure

# What is in there runs in the environment of the fake device, where this variable is set.
collect_ignore = [] if "FAKE_NPU_COUNT" in os.environ else ["inside"]


@pytest.fixture(scope="session")
def environment() -> Environment:
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing:
        pytest.skip(f"the fake NPU needs Linux with gcc and nm; missing: {', '.join(missing)}")
    return ensure()
