"""The experiments of the paper and beyond: `python -m experiments --help`."""
