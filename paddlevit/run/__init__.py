"""Runs put together from their parts: training, and evaluation. The only room that sees every other."""
