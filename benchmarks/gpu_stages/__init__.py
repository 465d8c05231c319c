"""The stages of benchmarks/gpu_check.py; each is a module with a function ``run(check)``."""
