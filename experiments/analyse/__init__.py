"""The curvature of a trained network, its plain twin beside it."""
