"""Pretraining of masked-language encoders in JAX: MLM and its relatives, on TPU pods and GPUs."""

__version__ = '0.1.0'
