"""Every architecture of the installed transformers: what there is, what rulequant makes of it, whether it runs."""
