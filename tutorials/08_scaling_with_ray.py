# %% [markdown]
# # 08 Scaling a study with Ray
#
# A study on a 7B model is thousands of forward passes: items times conditions. They do
# not depend on each other, so they can run anywhere, as long as the rows that come out
# are the ones that a single process would have written. This tutorial checks just
# that, for the two ways there are:
#
# - *shards*: independent jobs that share a folder (Slurm, several terminals);
# - *Ray*: one driver that hands batches to workers, each with a model of its own.
#
# The second needs `pip install "eah-interp[ray]"`. Without it, that part says so and
# the rest runs.

# %%
MODEL = "toy"  # or a checkpoint, such as "llava-hf/llava-1.5-7b-hf"

# %%
import importlib.util
import tempfile
import time
from pathlib import Path

import eah_interp as eah
from eah_interp.studies import Condition, ModelSource, Study, toy_items

HAS_RAY = importlib.util.find_spec("ray") is not None
ON_TOY = MODEL.startswith("toy")
OPTIONS = {} if ON_TOY else {"dtype": "bfloat16", "device_map": "auto"}
model = eah.load(MODEL, **OPTIONS)
scratch = tempfile.TemporaryDirectory()
here = Path(scratch.name)

# %% [markdown]
# ## A small study
#
# `batch_size` belongs to the study: every engine and every shard cuts the same batches,
# because padding, and so the last digits of a float, depend on who shares a batch.

# %%
items = toy_items(8, captions=False, samplings=("adversarial",))
conditions = (Condition("baseline"), Condition("EAH", eah.EAH(layers=(1,))))
study = Study(model, items, conditions, batch_size=4, source=ModelSource(MODEL))
start = time.perf_counter()
local = study.run(here / "local", progress=False)
alone = time.perf_counter() - start
rows = local.frame()
print(len(items), "items,", len(conditions), "conditions,", len(rows), "rows")
assert local.is_complete
assert len(rows) == len(items) * len(conditions)

# %%
rows[["item", "condition", "answer", "label", "donors"]].head(4)

# %% [markdown]
# ## Shards: no scheduler needed
#
# `shard="1/2"` runs every second batch. Each job writes files of its own into the same
# folder, so jobs need not know of each other, and the order does not matter.

# %%
half = study.run(here / "shards", shard="2/2", progress=False)
print("after one job:  ", len(half.frame()), "rows, complete:", half.is_complete)
assert not half.is_complete
assert 0 < len(half.frame()) < len(rows)

whole = study.run(here / "shards", shard="1/2", progress=False)
print("after both jobs:", len(whole.frame()), "rows, complete:", whole.is_complete)
assert whole.is_complete
assert whole.frame().equals(rows)

# %% [markdown]
# The same rows, to the last letter. On a cluster it is one line:
#
# ```console
# $ srun --ntasks 8 bash -c 'eah-interp study run study.yaml --out runs/all \
#     --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS'
# ```
#
# A half-finished folder is not summed up by accident: that is refused, with the number
# of rows that are missing.
#
# ## Ray: workers with a model each
#
# The driver keeps a queue of batches. Each worker loads the model once by its name
# (`source=ModelSource(MODEL)` above; without it, the weights are sent), checks that
# weights and versions are the study's, and takes a batch at a time. Only the driver
# writes. A worker that dies is replaced, and its batch runs again.

# %%
if HAS_RAY:
    start = time.perf_counter()
    distributed = study.run(here / "ray", engine="ray", workers=1, progress=False)
    with_ray = time.perf_counter() - start
    print("Ray:", len(distributed.frame()), "rows, complete:", distributed.is_complete)
    assert distributed.is_complete
    assert distributed.frame().equals(rows)
    print("slower than one process:", with_ray > alone)
    assert with_ray > alone or not ON_TOY
else:
    print("Ray is not installed: pip install 'eah-interp[ray]'. Shards work without.")

# %% [markdown]
# With GPUs there, each worker gets one; `workers=` says how many, `address=` joins a
# cluster that runs already. On this little study Ray is *slower* than one process:
# starting it and loading a model in a worker takes longer than the work itself. It pays
# when batches take minutes.
#
# ## What this does not show
#
# - How fast it gets with many GPUs: that was not measured here.
# - That rows agree between *machines*. Other hardware sums floats in another order, and
#   where two answers are almost as likely, greedy decoding may choose the other one.
#   Workers check versions and weights; they cannot check arithmetic.
#
# ## Exercises
#
# 1. Stop a run half way (Kernel > Interrupt), look at `study.run(...).is_complete`, and
#    start it again.
# 2. Change `batch_size` and run into the same folder. What does the refusal name?

# %%
scratch.cleanup()
