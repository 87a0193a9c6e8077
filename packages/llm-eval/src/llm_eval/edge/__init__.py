"""Files, processes and devices: everything here may fail because of the world outside."""
