"""What meets the machine: devices and files."""
