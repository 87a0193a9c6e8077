import os

# What is in there runs in the environment of triton-ascend.
collect_ignore = [] if os.environ.get("TRITON_AOT_ASCEND") == "1" else ["inside"]
