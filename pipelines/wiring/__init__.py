"""Composition: adapters and domain put together into the jobs that DAG tasks, the CLI and the demo call."""
