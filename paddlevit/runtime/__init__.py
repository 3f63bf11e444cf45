"""The process and its machine: ranks, devices, seeds, settings, and the launcher of several processes."""
