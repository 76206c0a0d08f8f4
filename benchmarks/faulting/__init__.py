"""What disturbs runs of `rulequant apply`, and what is asked of what they leave; used by `benchmarks/faults.py`."""
