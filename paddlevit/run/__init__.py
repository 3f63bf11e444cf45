"""Runs put together from their parts: training, and evaluation."""
