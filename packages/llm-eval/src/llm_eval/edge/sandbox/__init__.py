"""Programs a model has written, run where they can do no harm: Linux namespaces and seccomp.

No process, no network, no file but Python's own library (read-only) and a small private /tmp, no
/proc, no signals to others; limits on memory, CPU and wall time, files. Bubblewrap would give the
same namespaces at the price of one more process and an optional dependency, so it is not used.
"""
