"""Hessian-aware pruning of residual networks, with implants: `python -m experiments prune`."""
