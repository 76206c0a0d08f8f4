"""Reading, quantizing and writing checkpoint folders."""
