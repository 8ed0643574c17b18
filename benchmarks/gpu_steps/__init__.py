"""The steps of ``benchmarks/gpu.py``: each a module with ``run(emit, arguments)``."""
