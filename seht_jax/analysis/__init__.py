"""What the curvature of a trained network looks like, and what the paper's theory says of it."""
