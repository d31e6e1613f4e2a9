"""How strong the penalty may be, and in which form: many short runs of small networks."""
