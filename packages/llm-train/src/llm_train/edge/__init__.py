"""Processes, devices and files: the only ring that touches the machine."""
