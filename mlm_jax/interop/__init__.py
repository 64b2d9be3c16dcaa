"""Encoders of `transformers`: their configurations, the names of their weights, and directories that others can use.

Each architecture is one small table, used both ways (`registry.py` lists them). Neither PyTorch nor transformers is
imported, and the tables know no JAX: configurations are read where no device is.
"""
