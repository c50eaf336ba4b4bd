"""Operation of a process: settings, metrics, logs, files, child processes, shutdown."""
