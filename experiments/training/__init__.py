"""How a network is trained: state, step, loop, checkpoints and logs."""
