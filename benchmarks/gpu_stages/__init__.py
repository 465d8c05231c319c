"""The stages of benchmarks/gpu_check.py, each a module with ``run(check)``."""
