"""All probes, of all classes."""

from probes import PROBES, environment, files, kernel, processes, services

__all__ = ["PROBES", "environment", "files", "kernel", "processes", "services"]
