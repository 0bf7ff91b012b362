# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   ktlib:
#     uses: [mini]
#     data: [digits]  # ruff: noqa: E402, I001
#     uses: [mini]
# ---

# %% [markdown]
# # A small chapter
#
# Its only result is {glue:text}`scaled:.2f`.

# %% tags=["parameters"]
seeds = [0]  # one repetition per seed
device = "cpu"  # where to compute
precision = "float32"  # precision of products
profile = "cpu"  # name of this set of values
run_dir = ""  # folder for the record
rate = 0.5  # factor
groups = ["few", "many"]  # what is scaled
wait = ""  # file to wait for
fail = False  # whether to raise

# %%
from experiments.mini import MiniParameters, points, scaled
from experiments.run.parameters import check_parameters

parameters = check_parameters(globals(), MiniParameters)

# %%
import os
import time
from pathlib import Path

if wait:
    Path(wait + ".new").write_text(str(os.getpid()))
    Path(wait + ".new").rename(wait)
    while not Path(wait + ".go").exists():
        time.sleep(0.05)

# %%
if fail:
    raise RuntimeError("this chapter was told to fail")
result = scaled(3.0, rate)

# %%
from myst_nb import glue

glue("scaled", result, display=False)

# %%
from experiments.run.results import RunRecord

record = RunRecord.start("mini", parameters, data={})
record.metric("scaled", result)
record.table("points", points(parameters))
record.table("settings", [{"setting": "rate", "value": rate}])
record.save(run_dir)
