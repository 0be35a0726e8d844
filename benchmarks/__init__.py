"""Benchmarks, each with its baseline run beside it: ``python -m benchmarks [NAME]``. See README.md."""
