"""Runs and patches a transformers model."""
