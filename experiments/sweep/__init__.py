"""Many runs: a table of methods, each with its grid, at several seeds, by any number of workers."""
