# %% [markdown]
# # Reproducing a table
#
# The paper's tables are sweeps: a table of methods, each with a grid, at several seeds. All work
# alike; this one, `digits-small`, needs no data and takes some minutes. From a checkout:
#
# ```sh
# python -m experiments sweep digits-small --seeds 2
# python -m experiments report runs/sweeps/digits-small
# ```
#
# The same two commands with `table1` train ResNet-18 on CIFAR-10 as the paper does, with
# `table1-small` at the size of two CPU cores. Stop the first at any moment and give it again: it
# goes on. Give it in two terminals, or on many machines with one `--storage`, and they share the
# work.
#
# ## The report
#
# It reads what the runs logged, and nothing else, at any time. Here it reads the logs that come
# with the project: `table3-small`, a 2-layer LSTM on the beginning of WikiText-2, one seed.

# %%
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = next(path for path in (Path.cwd(), *Path.cwd().parents) if (path / "experiments").is_dir())
temporary = tempfile.TemporaryDirectory()
directory = Path(temporary.name) / "table3-small"
shutil.copytree(
    ROOT / "results" / "table3-small", directory, ignore=shutil.ignore_patterns("report")
)
done = subprocess.run(
    [sys.executable, "-m", "experiments", "report", directory],
    cwd=ROOT,
    env=os.environ | {"COLUMNS": "100"},
    capture_output=True,
    text=True,
    check=True,
)
print(done.stdout)

# %% [markdown]
# ## Its numbers
#
# `report.html` is one file with all of it. For further work the numbers are in `report.json`, and
# the runs in `runs.csv`.

# %%
report = json.loads((directory / "report" / "report.json").read_text())
for row in report["rows"]:
    perplexity = row["metrics"]["test_perplexity"]
    print(f"{row['label']:>22}: {perplexity['mean']:6.1f} (n = {perplexity['n']})")

# %% [markdown]
# A mean is over the seeds, with its standard error where there are several; what is chosen is
# chosen on validation data; diverged runs are counted. [Sweeps](../sweeps.html) has the rest:
# workers, settings, room on the disk, and which command is which table.

# %%
temporary.cleanup()
