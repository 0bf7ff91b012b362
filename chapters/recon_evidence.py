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
#     uses: [mtl, models]
#     data: [multi_fashion_mnist, multi_mnist, multi_fashion]
#     data_parameter: [dataset, transfer_from]
#     claims: experiments.mtl.claims
# ---

# %% [markdown]
# (chap-recon-evidence)=
# # Recon: the evidence
#
# **The question.** Recon {cite}`shi2023recon,shi2025thesis` splits the layers in which tasks conflict most. Does that make a
# better network, does it matter *which* layers are split, and what becomes of the conflicts? [The lesson](chap-recon)
# explains the method. This page tests it: every method, every control, every claim of chapter 4 of the thesis.
#
# **How to read it.** All tables and figures come from the long record that is kept with the project, unless
# they say *this run*. The live run of this page is small: it shows that the code behind the record works, and what two
# seeds give. `-p shown live` draws everything from it.
#
# **Time to run.** About 4 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading. The long run takes hours, in parts:
#
# ```bash
# make record CHAPTER=recon_evidence PROFILE=full SEEDS=0,1,2,3,4,5,6,7,8,9
# ```

# %% tags=["parameters", "hide-input"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; the thesis: one RTX 3090
precision = "float32"  # auto, float32 or bfloat16
shown = "long"  # what tables and figures show: long (the kept record) or live (this run)
seeds = [0, 1]  # one repetition each: weights, batches, images; the thesis: 3 runs
study_seeds = [0]  # those that methods and studies are run with, beside the long comparison
# Data
dataset = "multi_fashion_mnist"  # images with several targets; the thesis: this one and four more
tasks = []  # tasks of the data set that are trained, empty: all; the thesis: PASCAL-Context 4 of 5
test_images = 2000  # test images, 0: all; the thesis: 20,000
per_image = False  # depth and normals averaged image by image; authors' code: True
# Network and training
backbone = "resnet18"  # the network that the tasks share; the thesis: this one here
weights = ""  # what it starts from, empty: random; authors' code: ImageNet's for PASCAL-Context
width = 16  # channels of the first stage; the thesis: 64
augment = False  # maps scaled, cropped and mirrored at random; authors' code: True for maps
long_images = 3000  # training images of the long comparison, 0: all; the thesis: 120,000
long_epochs = 5  # its passes over them; authors' code: 120
train_images = 960  # training images of methods and studies, 0: all; the thesis: 120,000
epochs = 2  # passes over them; authors' code: 120
batch_size = 48  # images per step; authors' code: 256
optimizer = "sgd"  # sgd with momentum 0.9, or adam; authors' code: sgd
lr = 0.05  # first learning rate where the search has none; authors' code: 0.1
lr_drops = [0.5, 0.75]  # shares of the training after which lr falls; authors' code: these
lr_factor = 0.1  # what lr is multiplied by each time; authors' code: 0.1
# Search of Recon
batch_norm = True  # whether batch norms count as layers; authors' code: True
severity = -0.1  # severity S: a cosine below it is counted; authors' code: -0.1
top_k = 25  # layers K that become task-specific; authors' code: 25 of 41
search_quarters = 4  # quarters of the training that count; the thesis: 1
# Methods
methods = ["single", "joint", "pcgrad", "cagrad", "famo", "mmoe"]  # to train as they are
recon_methods = ["joint", "pcgrad", "cagrad"]  # to train on the split network, too; the thesis: all
searched = True  # methods have the settings of the search; False: lr serves all
method_settings = {}  # settings of a method that replace those of the search
experts = 2  # expert networks of MMoE; the thesis: 2, by the size that it prints
branch_epochs = 8  # passes of the search of BMTAS; not stated in the thesis
timed_images = 200  # images of the timed forward pass; not stated in the thesis
# Studies
controls = ["random_layers", "last"]  # other choices of layers; the thesis: these and two more
control_methods = ["joint"]  # trained on every choice of layers; the thesis: CAGrad and PCGrad
counts_studied = [5, 25, 40]  # numbers K of layers; the thesis: a curve without numbers
severities_studied = [0.0, -0.1]  # severities S; the thesis: 0 to -0.15
quarters_studied = ["4"]  # parts of the training that are searched; the thesis: each, and all
transfer_from = []  # data sets whose rankings are used on dataset; the thesis: others
skips_studied = []  # choices of layers with the released code's lost skips; not in the thesis
task_counts = [2, 10, 40]  # numbers T of tasks to time; the thesis: up to 40
timed_methods = ["joint", "pcgrad", "mgda"]  # methods to time; the thesis: all
timed_steps = 4  # steps behind every time; not stated in the thesis

# %% tags=["setup"]
from experiments.mtl.parameters import EvidenceParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), EvidenceParameters)

# %% [markdown]
# (sec-recon-protocol)=
# ## Protocol, fixed before the long run
#
# **Two sizes.** The *long comparison* is joint training of the shared network, of Recon's, and of two blind choices of layers, with
# all seeds and the most steps. It is also the search: each seed splits the layers that its own shared run found in the
# first quarter, as in the thesis. *Methods and studies* are shorter and use the same layers.
#
# **Settings.** Each method gets the same number of trials of its own settings on held-out training images, with seeds that no
# table uses. In the long comparison the shared network, Recon's and the one with random layers each have a search of their own; elsewhere a split
# network has the settings of its method. The test images play no part.
#
# **Running statistics.** A batch norm that stays shared behind the split sees the features of every task. The published method
# keeps one set of running statistics for all of them, a mixture that fits no task. Here each task keeps its own.
# Statistics do not take part in training, so each network is tested with both: *own* is what claims are judged
# by, *as published* stands beside it.
#
# **Measure.** The relative improvement $\Delta m$ of {eq}`eq-recon-dm`, in points, over a network for each task alone of the same size and
# seed.
#
# **Which conflicts are severe?** The thesis calls a cosine below $-0.01$ severe. That cuts off 12.56 % of the steps of its joint training. Cosines of
# a narrow network and of small batches spread wider, and the same number cuts off many more. So claims are judged at joint training's own
# 12.56 % *quantile*, computed for each seed; the printed threshold stands beside it. Both are taken over all steps, and over the last
# quarter, when the network has learned something.
#
# **Rule.** As in [chapter 3](sec-evidence-protocol): *reproduced* if the 95 % interval of the mean difference within seeds lies on the claimed
# side of zero, *not reproduced* if on the other, or if it holds zero and excludes the printed effect; else *undecided*.
#
# **Mechanism.** A claim about Recon is *not tested* if its search counted fewer than 300 steps, or no conflict of the severity.
# A claim about BMTAS is not tested where its search ends in a near tie: two probabilities less than 0.05 apart. Two arms that agree in every
# seed are one run.
#
# **What would count against Recon.** Over all seeds, each at its own best learning rate, the split network does not beat joint
# training. Or random layers, with statistics of each task's own, do as well as those that were chosen. Or at the quantile,
# in the last quarter, random layers remove as many severe conflicts.

# %%
import pandas as pd
from IPython.display import Markdown, display

import data_prep as data
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord, committed_record, record_label
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
sums = {}
for name in {P.dataset, *P.transfer_from}:
    sums |= {f"{name}/{file}": value for file, value in data.checksums(name).items()}
record = RunRecord.start("recon_evidence", P, data=sums)

# %%
from experiments.mtl.experiment import MultiTaskExperiment

experiment = MultiTaskExperiment(P, choose_device(P.device))
print(f"{len(experiment.train_data)} training images, {len(experiment.test_data)} test images")
print("tasks:", ", ".join(experiment.tasks))

# %% [markdown]
# (sec-recon-search)=
# ## The settings, and how they were found
#
# `python -m experiments.searches.recon_evidence` makes the record of the search. A method whose best learning rate is the last of its
# grid gets up to three more trials beyond it. The list of all trials stands in a fold.

# %%
from experiments.mtl import figures
from experiments.mtl.derived import frames
from experiments.mtl.evidence import chosen_settings

search = committed_record("recon_evidence", "search")
settings = chosen_settings(search.frame("trials")) if search else {}
figures.setting_table(settings)

# %% tags=["hide-input", "hide-output", "table"]
with pd.option_context("display.max_rows", None):
    display(figures.trial_table(search.frame("trials")) if search else "no search yet")

# %% [markdown]
# ## The run
#
# `evidence_of` runs all experiments of this page for one seed, a part of the long record.

# %%
from experiments.mtl.evidence import evidence_of, joined
from experiments.run.parallel import parallel_map


def run_seed(seed):
    """All tables of one seed."""
    return evidence_of(experiment, seed, settings)


live = joined(parallel_map(run_seed, P.seeds, "seeds", device=experiment.device).values())
for name, rows in live.items():
    record.table(name, rows)
path = record.save(P.run_dir)  # what was computed is safe, whatever the figures do

# %%
full = committed_record("recon_evidence", "full")
print(record_label(full, "recon_evidence", "full"))
source = full if full and P.shown == "long" else record
tables = frames(source)
print(
    f"Shown below: {'the long record' if source is full else 'this run'}, {len(source.seeds)} seeds"
)

# %% [markdown]
# (sec-recon-layers)=
# ## Which layers conflict?
#
# The score of layer $k$ counts the steps in which the cosine of two task gradients on it lies below $S$, {eq}`eq-recon-score`. Here it is given as a share
# of the steps. The authors published the scores of their own run, with 120,000 images and a network four times as wide: the first column.

# %% tags=["table"]
known = ("severity", "top_k", "search_quarters")
shown_severity, shown_k, quarters = (source.parameters[name] for name in known)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Heat map with a row for each layer and a column for each seed; a first column shows the ranking that the authors released. Batch norms and early layers are brightest.", "classes": "photo"}, "figure": {"name": "fig-recon-heat", "caption": "Share of the steps of the search in which the tasks conflict on a layer; marked: the layers that Recon splits. First column: as the authors released it."}}
save_figure(figures.heat_figure(tables, shown_severity, shown_k, quarters), P.run_dir, "heat")

# %% tags=["hide-input", "table"]
figures.ranking_table(tables, shown_severity, shown_k)

# %% [markdown]
# *Overlap* is the share of the first $K$ layers that two rankings have in common; of two blind choices of 25 out of 41 it is 61 %.
# *Distance* (4.20) is the mean number of places between them, about a third of the number of layers by chance. The thesis compares quarters of one training (table 4.6) and
# methods (table 4.8), but no seeds. *By angle* sorts by the mean angle between the gradients in place of the count, which section 4.4.1 of the thesis
# advises against.

# %% tags=["hide-input", "table"]
figures.layer_kind_table(tables)

# %% [markdown]
# (sec-recon-pairs)=
# ### Which tasks?
#
# With two tasks there is one pair; with more, the left panel shows who should not share a network. In the right one, the other tasks push a
# task's way on blue layers and against it on red ones: $0$ means that they neither help nor hurt, and $-1$ that they undo its own step.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two heat maps: a square one with a row and a column per task, and one with a row per layer and a column per task, in which most layers are near zero.", "classes": "photo"}, "figure": {"name": "fig-recon-pairs", "caption": "Which tasks conflict, in joint training. Left: share of the steps in which two tasks conflict over all shared layers. Right: what the gradients of the other tasks add to a step of a task on each layer, as a share of its own step (mean cosine times the ratio of lengths, summed over the others)."}}
save_figure(figures.pair_figure(tables), P.run_dir, "pairs")

# %% [markdown]
# (sec-recon-long)=
# ## Does the split help, and does the choice matter?

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Relative improvement of the shared network, of Recon and of two blind choices of layers: points for seeds, means and intervals, for own and for published statistics.", "classes": "chart"}, "figure": {"name": "fig-recon-long", "caption": "The long comparison, joint training: relative improvement over single-task networks, on test images. Grey: seeds. Coloured: mean and 95 % interval, with running statistics of each task's own and as published."}}
save_figure(figures.long_figure(tables), P.run_dir, "long")

# %% tags=["hide-input", "table"]
figures.long_table(tables)

# %% [markdown]
# (sec-recon-conflicts)=
# ## What becomes of the conflicts?
#
# The cosine is taken over *all layers that are still shared*. With other layers split, other layers remain: the rows do not describe the
# same parameters, and what a task has for itself cannot conflict.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Share of severe conflicts in each quarter of training for the shared network, Recon, random layers and random parameters; one panel for each threshold.", "classes": "chart"}, "figure": {"name": "fig-recon-conflicts", "caption": "Severe conflicts in each quarter of the long comparison, at joint training's own quantile and at the printed threshold. Training images; mean and 95 % interval over seeds."}}
save_figure(figures.conflict_figure(tables), P.run_dir, "conflicts")

# %% [markdown]
# Table 4.11 in this book's form: by how many percent severe conflicts become fewer than in joint training of the same seed.

# %% tags=["hide-input", "table"]
figures.reduction_table(tables)

# %% [markdown]
# (sec-recon-methods)=
# ## All methods, with and without Recon
#
# - **single**: a network for each task; **joint**: the sum of the losses;
# - *gradient surgery*: **mgda** {cite}`desideri2012mgda,sener2018mgda`, **pcgrad** {cite}`yu2020pcgrad`, **graddrop** {cite}`chen2020graddrop`,
#   **cagrad** {cite}`liu2021cagrad`, **upgrad** {cite}`quinton2024upgrad`, **nashmtl** {cite}`navon2022nashmtl` make another update of the
#   task gradients than their sum;
# - *weighted losses*: **uw** {cite}`kendall2018uncertainty` learns a variance for each task, **gradnorm** {cite}`chen2018gradnorm` keeps
#   gradients at lengths that fit, **famo** {cite}`liu2023famo` lets all losses fall at one rate;
# - *architectures*: **rotograd** {cite}`javaloy2022rotograd` rotates the features for each task, **mmoe** {cite}`ma2018mmoe` mixes
#   several trunks, **cross_stitch** {cite}`misra2016crossstitch` joins a trunk per task, **bmtas** {cite}`bruggemann2020bmtas`
#   searches for the place where tasks should part.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per method: an open and a filled marker joined by a line, relative improvement without and with Recon, and faint points for seeds.", "classes": "chart"}, "figure": {"name": "fig-recon-methods", "caption": "Relative improvement over single-task networks. Open: the method as it is. Filled: on the network that Recon split. Faint: seeds. Test images."}}
save_figure(figures.method_figure(tables), P.run_dir, "methods")

# %% tags=["hide-input", "table"]
figures.method_table(tables)

# %% [markdown]
# #P is the size of all parameters in MB. Operations and time are those of one forward pass for all tasks. What a split network gains it
# pays for in time: everything behind its first split layer runs once for each task.
#
# What the search of BMTAS chose; *margin* is the smallest distance between the two largest probabilities of a task.

# %% tags=["hide-input", "table"]
figures.branch_table(tables)

# %% [markdown]
# (sec-recon-controls)=
# ## Other layers, as many or as large
#
# | control | holds equal | thesis |
# |---|---|---|
# | random layers | number of layers | RSL, table 4.15 |
# | random parameters | number of parameters, about | RSP, table 4.15 |
# | first | number of layers; all lie early | printed as LSK in the text of table 4.16, meant is FSK |
# | last | number of layers; all lie late | printed as FSK, meant is LSK |
#
# The labels of table 4.16 are swapped: the sizes that it prints are those of the first 25 layers where it says last. On PASCAL-Context the thesis's own
# table 4.14 has random layers *remove* 46 % of the severe conflicts, where its text says that they make them more frequent.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per choice of layers and method: points and intervals of the relative improvement minus that of Recon's choice.", "classes": "chart"}, "figure": {"name": "fig-recon-controls", "caption": "Relative improvement minus that with Recon's layers, a panel for each method, with statistics of each task's own and as published; mean of the differences within seeds and 95 % interval."}}
save_figure(figures.control_figure(tables), P.run_dir, "controls")

# %% tags=["hide-input", "table"]
figures.control_table(tables)

# %% [markdown]
# (sec-recon-statistics)=
# ### Wrong layers, or wrong statistics?
#
# The columns *own* and *as published* of all tables are the same networks, with the same weights. What lies between them is the one set of
# running statistics. A choice that leaves many batch norms shared behind the split suffers from it; Recon's holds most of them. So a blind choice may look
# bad for a reason that has nothing to do with conflicts.
#
# (sec-recon-curves)=
# ## How many layers, and which conflicts?

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Four panels: relative improvement and severe conflicts against the number of split layers, and both against the severity; two lines for own and published statistics.", "classes": "chart"}, "figure": {"name": "fig-recon-curves", "caption": "Joint training with the first K layers of the ranking, and with the first 25 of rankings by other severities S (figure 4.6 of the thesis). Mean and 95 % interval over seeds."}}
save_figure(figures.curves_figure(tables), P.run_dir, "curves")

# %% tags=["hide-input", "table"]
for study in ("count", "severity"):
    display(figures.study_table(tables, study))

# %% [markdown]
# (sec-recon-transfer)=
# ## A ranking from elsewhere
#
# Layers that were found in another part of the training (table 4.7), and on other data (tables 4.9 and 4.10): two digits, and two garments, on
# images made in the same way.

# %% tags=["hide-input", "table"]
figures.study_table(tables, "quarter")

# %% tags=["hide-input", "table"]
figures.transfer_table(tables)

# %% [markdown]
# (sec-recon-skip)=
# ## A fault of the released code
#
# The authors' released network loses skip connections. Where the first split layer lies inside a residual block without a
# projection, only the *first* task receives the block's input. Recon's own choice holds the batch norm of the stem, in front of all blocks, so it is
# not touched. Choices that begin later are. In table 4.15 one of three random choices loses 25 points on the second task and one on the
# first, which the fault may explain. *Every task* keeps all skips; *one task* is the released code's way.

# %% tags=["hide-input", "table"]
figures.study_table(tables, "skip")

# %% [markdown]
# (sec-recon-cost)=
# ## What does the search cost with many tasks?
#
# Each task needs a backward pass of its own. The thesis measures the 40 attributes of CelebA; here up to 40 yes-no questions are asked about
# our images, such as "is the digit one of these five?".

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Time of a training step against the number of tasks, both logarithmic, one line per method.", "classes": "chart"}, "figure": {"name": "fig-recon-cost", "caption": "Time of one training step against the number of tasks. All but the first line also count conflicts. One seed."}}
save_figure(figures.cost_figure(tables), P.run_dir, "cost")

# %% tags=["hide-input", "table", "nbval-ignore-output"]
figures.cost_table(tables)

# %% [markdown]
# Recon pays this price during the search only, and once. A method that needs task gradients pays it at every step of every run.
#
# (sec-recon-claims)=
# ## Claims of chapter 4, and what became of them
#
# Each row follows from the tables above by the rule of the protocol. The words of a verdict are never typed.

# %% tags=["hide-input", "table"]
from experiments.mtl.claims import claims
from experiments.run.claims import claim_rows, claims_table

record.table("claims", claim_rows(claims(record)))
claims_table(claims(source)).style.hide(axis="index")

# %% [markdown]
# ### In five sentences

# %% tags=["hide-input", "table"]
from experiments.mtl.claims import summary

Markdown(summary(source))

# %% [markdown]
# ## The thesis's other data
#
# Loaders, losses, metrics and networks for CelebA (40 tasks), CityScapes, NYUv2 and PASCAL-Context are part of the project.
# With the data in place (`python -m data_prep.nyuv2` says how), one file of values per data set runs this page on it:
#
# ```bash
# make record CHAPTER=recon_evidence PROFILE=paper             # Multi-Fashion+MNIST at full size
# papermill notebooks/recon_evidence.ipynb out.ipynb -f chapters/params/recon_evidence.paper_celeba.yaml
# papermill notebooks/recon_evidence.ipynb out.ipynb -f chapters/params/recon_evidence.paper_cityscapes.yaml
# papermill notebooks/recon_evidence.ipynb out.ipynb -f chapters/params/recon_evidence.paper_nyuv2.yaml
# papermill notebooks/recon_evidence.ipynb out.ipynb -f chapters/params/recon_evidence.paper_pascal_context.yaml
# ```
#
# Methods that need the gradients of all tasks run on a single device: they cannot be spread over several GPUs as plain training can.
#
# ## Where it stops
#
# - **One data set, one small network.** Both tasks are classes of real images, but simple ones; ResNet18 has a quarter of its usual width.
# - **A count of conflicts is a means.** Every split makes some conflicts impossible. What counts is accuracy at a given cost.
# - **A ranking is not a cause.** Layers with many conflicts are small and early. A control that holds size *and* place equal would have to
#   be made of the same layers.
# - **Many comparisons.** Of intervals of 95 %, one in twenty leaves out the true value by chance alone.

# %%
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
