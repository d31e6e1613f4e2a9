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
# `table1-small` at the size of two CPU cores. Here they run for one epoch at one seed, into a
# directory that is thrown away.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = next(path for path in (Path.cwd(), *Path.cwd().parents) if (path / "experiments").is_dir())
directory = tempfile.TemporaryDirectory()


def experiments(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout or done.stderr)
    done.check_returncode()


experiments(
    "sweep", "digits-small", "--seeds", "1", "--epochs", "1", "--output-dir", directory.name
)

# %% [markdown]
# Stop it at any moment and give the command again: it goes on. Give it in two terminals, or on
# many machines with one `--storage`, and they share the work.
#
# ## The report
#
# It reads what the runs logged, and nothing else.

# %%
experiments("report", directory.name)

# %% [markdown]
# `report.html` is one file with all of it. For further work the numbers are in `report.json` and
# the runs in `runs.csv`:

# %%
report = json.loads((Path(directory.name) / "report" / "report.json").read_text())
print(json.dumps(report, indent=1)[:1500])

# %% [markdown]
# A mean is over the seeds at the last epoch, with its standard error; what is chosen is chosen on
# validation data; diverged runs are counted. [Sweeps](../sweeps.md) has the rest: workers,
# settings, room on the disk, and which command is which table.
