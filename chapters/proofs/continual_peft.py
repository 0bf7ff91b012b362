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
#     uses: [cpeft, ktlib/fcl, ktlib/ila/layers]
#     data: []
# ---

# %% [markdown]
# (proof-cpeft)=
# # What can a new task not disturb? InfLoRA and L2C, line by line
#
# **The question.** A pre-trained model learns one task after the other with small updates, and nobody keeps the old images. {ref}`chap-cpeft` has two ways to protect
# what was learned. InfLoRA {cite}`liang2024inflora` chooses *directions* in which the old tasks do not look. L2C {cite}`zhang2025l2c` gives each task an *expert* of its own and must then
# decide whom to ask. What exactly is protected, from which assumptions, how much does a smaller promise give away, and when is it better to ask one expert than all?
#
# **After this chapter you can**
#
# - say what training only one factor of LoRA does to the weight, for any optimiser,
# - prove that tasks of a linear model need not interfere, and name the assumption that fails in a deep network,
# - compute from stored numbers how far old outputs can have moved, and say why the bound is loose,
# - say when a selector is good enough to ask one expert only, and why a *calibrated* selector can still be too sure of itself.
#
# **Before you start.** You should know matrices, projections and the chain rule; for the second half, conditional probabilities. The page can be read without the
# chapter on the methods; the [notation page](../../notation.md) has the symbols of the book.
#
# **Time to run.** About 1 minute on two CPU cores; the [execution page](../../execution.md) has the
# time of the run that you are reading. To run it again: `make book`.

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; not used: small matrices on the CPU
precision = "float32"  # auto, float32 or bfloat16; not used: everything is float64
seeds = [0, 1, 2]  # one repetition each: data, weights, draws; the papers run no such experiment
tasks = 4  # tasks in a row, of a linear model and of a small network; InfLoRA: 5 to 20
size = 40  # inputs d of a layer; ViT-B/16: 768
subspace = 6  # dimensions that the inputs of one linear task fill
rank = 4  # rank r of the updates; InfLoRA: 10
old_size = 28  # dimensions of the old inputs where thresholds are tried
images = 10  # images of each task of the small network
thresholds = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]  # share of energy kept; InfLoRA: 0.95 to 1
experts = 5  # experts T of the toy model; L2C: 10
own = 0.9  # accuracy p of the right expert in the toy model
other = 0.6  # accuracy q of each other expert
confidences = [0.3, 0.6, 0.8, 0.95]  # how often the selector finds the right expert
temperatures = [0.5, 1.0, 2.0, 10.0]  # temperatures that are simulated as well
draws = 20000  # images of each simulation of the toy model

# %% tags=["setup"]
from experiments.cpeft.parameters import ContinualPeftProofParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ContinualPeftProofParameters)

# %%
import math

import matplotlib.pyplot as plt
import pandas as pd
import sympy as sp
import torch
from myst_nb import glue

from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.seeding import deterministic, generator

use_style()
deterministic()
record = RunRecord.start("proofs/continual_peft", P, data={})

# %% [markdown]
# ## What is claimed, and by whom
#
# A layer computes $Wx$ from its input $x\in\mathbb R^d$. In one task LoRA {cite}`hu2022lora` adds an update of low rank $r$:
#
# ```{math}
# :label: eq-cpeft-proof-layer
# (W+sBA)\,x,\qquad A\in\mathbb R^{r\times d}\text{ fixed},\qquad B\in\mathbb R^{m\times r}\text{ trained from }0.
# ```
#
# $D=sBA$ is the update at the end of the task; it is merged into $W$, and the next task starts with a new $A$. The memory keeps a space for the old tasks, with the orthonormal basis $M$ and the projector $P=MM^\top$. $\lVert\cdot\rVert_2$ is the largest singular value of a
# matrix, and $\operatorname{rms}\lVert v\rVert$ the root of the mean of $\lVert v\rVert^2$ over inputs.
#
# | Part | Statement | Whose |
# | --- | --- | --- |
# | 1 | training $B$ is training $W$ inside the row space of $A$ | InfLoRA's Proposition 1; that it holds for every step and, in part, for any optimiser: spelled out here |
# | 2 | gradients lie in the span of the inputs | known, the ground of gradient projection memory {cite}`saha2021gpm` |
# | 3 | no interference in a linear model with threshold 1 | the aim of InfLoRA's design; the theorem as it stands is ours |
# | 4 | with a lower threshold, a bound by the energy that the memory discarded | ours |
# | 5 | a recursion for deep networks, also without the old images | ours |
# | 6 | isolation or cooperation of experts | ours; L2C's abstract states that there is such a trade-off, its bound is not public |
#
# ```{admonition} Two letters that change places
# :class: note
# InfLoRA's paper writes $A_tB_t$ for the update and fixes $B_t$. This book writes $BA$, as LoRA's paper and its software do, and fixes $A$.
# ```
#
# Every statement is checked on random data in float64. The functions of `experiments.cpeft.proof` return one row for each check, with both sides and whether the statement holds. This is how the page shows them; *difference* is the largest one of the two sides, left minus right (between two matrices, the norm of the difference):


# %%
def verdict(name, rows):
    """Keep the rows in the record; count, for each statement, how often it holds."""
    rows = [{"difference": row["left"] - row["right"], **row} for row in rows]
    record.table(name, [{k: None if v != v else v for k, v in row.items()} for row in rows])  # NaN
    statements = pd.DataFrame(rows).groupby("statement", sort=False)
    columns = {"checks": ("holds", "size"), "hold": ("holds", "sum")}
    return statements.agg(**columns, difference=("difference", "max"))


# %% [markdown]
# ## Part 1: training B is training W, in a few directions
#
# First a picture. One output, two inputs: the weight is a point of the plane. Gradient descent on $W$ may go anywhere. With $A$ fixed to one row, and only the number $B$ trained, the weight must stay on a line through its
# start. Two computations of the second path: once by training $B$, once by training $W$ with its gradient projected onto the line.

# %%
bowl = torch.tensor([[2.0, 0.6], [0.6, 0.8]], dtype=torch.float64)  # curvature of the loss
minimum = torch.tensor([1.6, 1.0], dtype=torch.float64)
A = torch.tensor([0.6, 0.8], dtype=torch.float64)  # one row of length 1
ways = {name: [torch.zeros(2, dtype=torch.float64)] for name in ("W", "B", "projected")}
B = 0.0

# %%
for _ in range(30):
    gradients = {name: (way[-1] - minimum) @ bowl for name, way in ways.items()}
    ways["W"].append(ways["W"][-1] - 0.2 * gradients["W"])
    B = B - 0.2 * gradients["B"] @ A  # the chain rule: dL/dB = G A^T
    ways["B"].append(B * A)
    ways["projected"].append(ways["projected"][-1] - 0.2 * gradients["projected"] @ A * A)
print("distance of the two ways:", float((ways["B"][-1] - ways["projected"][-1]).norm()))

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Contours of a loss over a plane of two weights. From the origin one path bends towards the minimum. A second path follows a straight line through the origin and stops at the point of the line with the lowest loss; its circles and crosses coincide.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-plane", "caption": "The weight of a layer with two inputs and one output. Gradient descent on W goes to the minimum (star). Training B with A fixed stays on a line (dotted) and finds the best point of it; training W with projected gradients (crosses) makes the same steps. Computed in the cells above, no data set."}}
fig, ax = plt.subplots(figsize=(5.4, 3.6))
across, up = torch.linspace(-0.3, 2.3, 90).double(), torch.linspace(-0.3, 1.9, 90).double()
plane = torch.stack(torch.meshgrid(across, up, indexing="xy"), dim=-1) - minimum
heights = (plane @ bowl * plane).sum(dim=-1) / 2
ax.contour(across, up, heights, levels=12, colors="0.8")
ax.plot([-0.18, 1.4], [-0.24, 1.4 * 4 / 3], ":", color="black", linewidth=1)
looks = {"W": ("s-", "C0", "W, free"), "B": ("o-", "C1", "B, with A fixed")}
looks["projected"] = ("x", "black", "W, projected gradient")
for name, (line, color, label) in looks.items():
    ax.plot(*torch.stack(ways[name]).T, line, color=color, label=label)
ax.plot(*minimum, "*", color="C2", markersize=14)
ax.set(xlabel="first weight", ylabel="second weight", aspect="equal")
ax.set(xlim=(-0.3, 2.3), ylim=(-0.3, 1.9))
fig.legend(loc="outside upper center", ncols=3)
save_figure(fig, P.run_dir, "plane")

# %% [markdown]
# Circles and crosses of {numref}`fig-cpeft-proof-plane` are the same points. This is no accident:
#
# ```{prf:theorem} Training B is training W in the row space of A
# :label: thm-cpeft-rows
# Let $G$ be the gradient of the loss with respect to the weight, at the weight as it acts, $W+sBA$. A step of gradient descent on $B$ with rate $\eta$ changes the weight by
#
# $$-\eta s^2\,G\,A^\top A .$$
#
# If the rows of $A$ are orthonormal, that is a step on $W$ along the gradient *projected* onto the row space of $A$, with rate $\eta s^2$.
# ```
#
# ```{prf:proof}
# The loss depends on $B$ through $W+sBA$ only, so the chain rule gives $\nabla_BL=s\,GA^\top$. The step moves $B$ by $-\eta s\,GA^\top$, and the weight by $s$ times that times $A$. For orthonormal rows $A^\top A$ is the orthogonal projector onto their span. $G$ depends on the weight alone and not on how it
# came about, so the same holds for every further step.
# ```
#
# InfLoRA's rows are orthonormal divided by $\sqrt3$: the rate becomes $\eta s^2/3$ and nothing else changes. And for Adam, momentum or any other optimiser?
#
# ```{prf:corollary} Any optimiser
# :label: cor-cpeft-any
# However $B$ was found, the rows of $D=sBA$ lie in the row space of $A$. If an input $x$ is orthogonal to the rows of $A$, then $Dx=0$.
# ```
#
# ```{prf:proof}
# Each row of $BA$ is a combination of the rows of $A$, with the entries of $B$ as factors; and $Ax=0$ gives $BAx=0$.
# ```
#
# The *steps* of Adam are not projected steps; that part of {prf:ref}`thm-cpeft-rows` is about gradient descent. All that follows needs only the corollary. `row_space_steps` trains a softmax regression in both ways:

# %%
from experiments.cpeft.proof import row_space_steps

steps = [row for seed in P.seeds for row in row_space_steps(seed)]
verdict("row_space", steps)

# %% [markdown]
# ## Part 2: gradients lie in the span of the inputs
#
# ```{prf:lemma} Span of the inputs
# :label: lem-cpeft-span
# A layer gives $z_i=Wx_i$ for the inputs $x_1,\dots,x_n$ of a batch, and the loss depends on $W$ through these outputs only. Then
#
# $$G=\sum_{i=1}^n\delta_ix_i^\top,\qquad\delta_i=\frac{\partial L}{\partial z_i} .$$
#
# So every row of $G$ is a combination of the inputs.
# ```
#
# ```{prf:proof}
# If $W$ moves by $h$, output $i$ moves by $hx_i$, and the loss to first order by $\sum_i\langle\delta_i,hx_i\rangle=\sum_i\langle\delta_ix_i^\top,h\rangle$.
# ```
#
# This is the sum that backpropagation computes. It says two things that a method can use:
#
# - **Where to learn.** To first order, a new task is helped by directions in the span of *its own* inputs only. Elsewhere the gradient is zero.
# - **Where not to disturb.** If all rows of an update are orthogonal to the *old* inputs, it changes no output for them: $Dx=0$, not to first order but exactly.
#
# The rows of $A$ should be in the first space and orthogonal to the second. That is InfLoRA's design. The lemma holds in every linear layer of any network, whatever stands before or behind it. Checked in the three layers of a network, with fewer images than the layers have inputs:

# %%
from experiments.cpeft.proof import gradient_span

spans = [row for seed in P.seeds for row in gradient_span(seed)]
verdict("gradient_span", spans)

# %% [markdown]
# ## Part 3: a linear model whose tasks do not interfere
#
# ```{prf:assumption} Linear model
# :label: ass-cpeft-linear
# The model is $Wx$; the input of the layer is the image itself, or fixed features of it.
# ```
#
# *Holds* for a classifier on top of a frozen encoder. *Fails* for every adapted layer but the first one of a deep network: its inputs come from layers that are adapted as well (part 5).
#
# ```{prf:assumption} Complete memory
# :label: ass-cpeft-memory
# $Px=x$ for every input $x$ that an old task was trained on.
# ```
#
# *Holds* with the threshold 1, which keeps every direction that has energy. *Fails* below it (part 4), and it can stop to be possible: when the old inputs fill all $d$ dimensions, nothing is left for a new task.
#
# ```{prf:assumption} Orthogonal rows
# :label: ass-cpeft-design
# $AP=0$ for the $A$ of every new task.
# ```
#
# *Holds* by InfLoRA's design: the rows are singular vectors of $H-PH$, where $H$ is the mean of $xx^\top$ over the new inputs, and all that is left after taking away $PH$ is orthogonal to the memory. *Fails* for a random $A$, and if $A$ is trained too.
#
# ```{prf:theorem} No interference
# :label: thm-cpeft-none
# Under {prf:ref}`ass-cpeft-linear` to {prf:ref}`ass-cpeft-design` the output for an input of task $j$ is, after any number of further tasks, what it was after task $j$: for all inputs that were trained on, and for all others in their span.
# ```
#
# ```{prf:proof}
# Let $x$ be an input of task $j$ and $D=sBA$ the update of a later task. By **{prf:ref}`ass-cpeft-memory`** $x=Px$, and the memory only grows. By **{prf:ref}`ass-cpeft-design`** $Dx=sB\,(AP)\,x=0$. The next task finds the same $x$ (**{prf:ref}`ass-cpeft-linear`**), so by induction every further update adds $0$. The set of all $x$ with $Dx=0$ is
# a linear space: it contains the span.
# ```
#
# `linear_interference` gives each task inputs in a random space of its own and trains on half of them with Adam. It does so in three designs: *inflora*; *without memory*, with $A$ from the new inputs but without subtracting $PH$; and *sequential*, with a random $A$ that is trained too. The outputs of *all* inputs
# are compared at the end.

# %%
from experiments.cpeft.proof import DESIGNS, linear_interference

linear_sizes = {"tasks": P.tasks, "size": P.size, "subspace": P.subspace, "rank": P.rank}
linear = [row for seed in P.seeds for row in linear_interference(seed, **linear_sizes)]
verdict("linear_interference", linear)

# %%
table = pd.DataFrame(linear)
moved = table[table["statement"].str.startswith("old outputs")]
largest = moved.groupby("design")["left"].max()
losses = table[table["statement"].str.startswith("every task")].groupby("design")["left"].max()

# %%
designs = list(DESIGNS)
for design in designs:
    print(f"{design:>14}: outputs move up to {largest[design]:.1e}, loss left {losses[design]:.2f}")

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Points on a logarithmic axis for three designs: with InfLoRA old outputs move by about ten to the minus fifteen, without memory and with sequential training by about one.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-designs", "caption": "Largest change of an output for inputs of old tasks, from the end of their task to the end of the last one, relative to the size of the outputs. One point for each old task and seed; linear model, random tasks. A change of exactly zero is drawn at the lower edge."}}
fig, ax = plt.subplots(figsize=(5.4, 3.0))
for place, (design, marker) in enumerate(zip(designs, "os^", strict=True)):
    heights = moved.loc[moved["design"] == design, "left"].clip(lower=1e-17)
    spread = torch.linspace(-0.15, 0.15, len(heights))
    ax.plot(place + spread, heights, marker, color=f"C{place}")
ax.set_xticks(range(len(designs)), designs)
ax.set(yscale="log", ylim=(5e-18, 50), ylabel="change of old outputs")
save_figure(fig, P.run_dir, "designs")

# %%
for name in designs:
    key = name.replace(" ", "_")
    record.metric(f"largest_change_{key}", float(largest[name]))
    glue(f"cpeft-proof-moved-{key}", float(largest[name]), display=False)
    glue(f"cpeft-proof-left-{key}", 100 * float(losses[name]), display=False)

# %% [markdown]
# With InfLoRA's design the largest change is {glue:text}`cpeft-proof-moved-inflora:.0e`: rounding. It is *the design* that does it, and not a lack of learning: the two others have the same rank and learn the same tasks, and their old outputs move by up to
# {glue:text}`cpeft-proof-moved-without_memory:.1f` and {glue:text}`cpeft-proof-moved-sequential:.1f` times the size of the outputs ({numref}`fig-cpeft-proof-designs`). All three learn: at most {glue:text}`cpeft-proof-left-inflora:.0f` %, {glue:text}`cpeft-proof-left-without_memory:.0f` % and
# {glue:text}`cpeft-proof-left-sequential:.0f` % of a task's loss are left after its training.
#
# ## Part 4: keep less, and know what it costs
#
# A complete memory is full soon. InfLoRA keeps a share $\epsilon$ of the energy, where the *energy* of inputs is the mean of $\lVert x\rVert^2$: the strongest directions first, until the share is reached. What is left over, $\operatorname{rms}\lVert(I-P)x\rVert$, is small by choice. Does a small left-over make a small change?
#
# ```{prf:theorem} Moved by at most what was discarded
# :label: thm-cpeft-bound
# Let the rows of $A$ be orthogonal to the memory ({prf:ref}`ass-cpeft-design`), and $Q$ be the orthogonal projector onto their span. Over the old inputs of the layer
#
# $$\operatorname{rms}\lVert Dx\rVert\;\le\;\lVert D\rVert_2\,\operatorname{rms}\lVert Qx\rVert\;\le\;\lVert D\rVert_2\,\operatorname{rms}\lVert(I-P)x\rVert\;\le\;\lVert D\rVert_2\,\sqrt{(1-\epsilon)\,E} ,$$
#
# where $E$ is the energy of the inputs, of which the memory kept at least the share $\epsilon$.
# ```
#
# ```{prf:proof}
# By {prf:ref}`cor-cpeft-any` the rows of $D$ lie in the range of $Q$, so $Dx=DQx$, and $\lVert DQx\rVert\le\lVert D\rVert_2\lVert Qx\rVert$ for each input; the mean square keeps the inequality. By **{prf:ref}`ass-cpeft-design`** the range of $Q$ is a part of the range of $I-P$: so $Qx=Q(I-P)x$, and a projector makes nothing
# longer. Last, $E=\operatorname{rms}^2\lVert Px\rVert+\operatorname{rms}^2\lVert(I-P)x\rVert$ by Pythagoras, and the first part is at least $\epsilon E$.
# ```
#
# The bound asks for no image: $\lVert D\rVert_2$ is computed from the weights, and the discarded energy is one number that the memory noted. With threshold 1 it is zero, and {prf:ref}`thm-cpeft-none` is back. (With $H$ kept as well, nothing need be bounded: $\operatorname{rms}^2\lVert Dx\rVert=\operatorname{tr}DHD^\top$.)
#
# `threshold_bound` trains one new task after one old task for each threshold. *Promised* is the last expression, which is known before any image was seen; *bound* the one before, with the energy that was really discarded.

# %%
from experiments.cpeft.proof import threshold_bound

layer = {"size": P.size, "old_size": P.old_size, "rank": P.rank}
kept = [row for seed in P.seeds for row in threshold_bound(seed, thresholds=P.thresholds, **layer)]
verdict("threshold_bound", kept)

# %%
columns = ["old_rank", "left", "right", "promised", "by_rows", "by_norm", "new_loss"]
means = pd.DataFrame(kept).groupby("threshold")[columns].mean()
means.rename(columns={"left": "measured", "right": "bound"}).style.format("{:.2f}", na_rep="")

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Left, against the threshold: measured movement of old outputs, the bound above it and the promise above both; all fall to zero at threshold 1. Right: the loss that is left in the new task rises with the threshold.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-threshold", "caption": "Left: root mean square movement of old outputs, bound by the discarded energy, and bound promised by the threshold. Right: the price, the loss of the new task after its training relative to before. Against the share of the old inputs' energy that the memory keeps; one linear layer, mean over seeds."}}
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.5))
looks = {"promised": ("^-.", "C2"), "right": ("s--", "C1"), "left": ("o-", "C0")}
labels = {"promised": "promised", "right": "bound", "left": "measured"}
for name, (line, color) in looks.items():
    axes[0].plot(means.index, means[name], line, color=color, label=labels[name])
axes[1].plot(means.index, means["new_loss"], "D-", color="C3")
axes[0].set(xlabel="threshold", ylabel="movement of old outputs")
axes[1].set(xlabel="threshold", ylabel="loss left in the new task", ylim=(0, None))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
save_figure(fig, P.run_dir, "threshold")

# %%
below = pd.DataFrame(kept).query("threshold < 1")
for name in ("looseness", "by_rows", "by_norm"):
    if below[name].notna().any():  # not if every threshold keeps all of the old inputs
        record.metric(name, float(below[name].median()))
    glue(f"cpeft-proof-{name}", float(below[name].median()), display=False)
price = means["new_loss"].iloc[[0, -1]] * 100
glue("cpeft-proof-price-low", float(price.iloc[0]), display=False)
glue("cpeft-proof-price-high", float(price.iloc[1]), display=False)

# %% [markdown]
# The bound holds in every row. It is {glue:text}`cpeft-proof-looseness:.1f` times the measured movement in the median, the product of two reasons, one for each inequality of {prf:ref}`thm-cpeft-bound`:
#
# - **by rows**, a factor of {glue:text}`cpeft-proof-by_rows:.1f`: the bound counts all that was discarded, but the update looks only in the $r$ directions of its rows. The more is free and the smaller the rank, the looser.
# - **by norm**, a factor of {glue:text}`cpeft-proof-by_norm:.1f`: it counts on the direction that the update stretches most, and old inputs lie in others as well.
#
# *Promised* lies above *bound*, as directions are kept or discarded as a whole: the memory stops above its threshold, not at it. And the right panel of {numref}`fig-cpeft-proof-threshold` has the price. Every direction that is kept is closed to the new task, of whose loss {glue:text}`cpeft-proof-price-low:.0f` % are left at the lowest threshold and
# {glue:text}`cpeft-proof-price-high:.0f` % at threshold 1.
#
# ## Part 5: deep networks
#
# {prf:ref}`ass-cpeft-linear` fails in a deep network. Picture two layers. The first one is changed by a new task, a little. Old images now arrive at the second layer as *other inputs* than those that its memory has seen. Even if the second layer does not change at all, its output moves. So the movement has two sources in every layer: what arrives, and
# what the layer adds.
#
# Let layer $l$ compute $z_l=W_lh_{l-1}$ and $h_l=\varphi(z_l)$, with $h_0$ the image, and $\varphi$ a function of each entry with Lipschitz constant 1, such as ReLU or $\tanh$. A task changes $W_l$ to $W_l'=W_l+D_l$; primes mark what an old image then gives. Write $e_l=\operatorname{rms}\lVert z_l'-z_l\rVert$ for the movement, which is called the *drift* of
# layer $l$, over the old images.
#
# ```{prf:theorem} Drift through the layers
# :label: thm-cpeft-drift
# Let the rows of $A_l$ be orthogonal to the memory of layer $l$, with projector $P_l$, for each $l$. Then $e_0=0$ and
#
# $$e_l\;\le\;\lVert W_l'\rVert_2\,e_{l-1}+\lVert D_l\rVert_2\,\operatorname{rms}\lVert(I-P_l)h_{l-1}\rVert .$$
# ```
#
# ```{prf:proof}
# Add and subtract $W_l'h_{l-1}$:
#
# $$z_l'-z_l=W_l'h_{l-1}'-W_lh_{l-1}=W_l'\,(h_{l-1}'-h_{l-1})+D_lh_{l-1} .$$
#
# The rms obeys the triangle inequality. The first part is at most $\lVert W_l'\rVert_2\operatorname{rms}\lVert h_{l-1}'-h_{l-1}\rVert$, and $\lVert h'-h\rVert\le\lVert z'-z\rVert$ by the Lipschitz constant. The second is at the input *as it was*, so {prf:ref}`thm-cpeft-bound` applies to it.
# ```
#
# The second summand alone, the layer's *own* bound of part 4, bounds the drift of the first layer only. One thing survives without loss: if *all* layers have a complete memory, all summands are zero, and the images that the memory has seen keep their outputs through the whole network. The theorem needs the old images, in
# the network before each task. Without them:
#
# ```{prf:corollary} From weights and records alone
# :label: cor-cpeft-records
# Let $\rho_l$ be $\operatorname{rms}\lVert(I-P_l)h_{l-1}\rVert$ when the old task was learned, as the memory noted it, and $E_{l-1}$ the sum of the bounds of $e_{l-1}$ over the tasks since then. Then
#
# $$e_l\;\le\;\lVert W_l'\rVert_2\,e_{l-1}+\lVert D_l\rVert_2\,(\rho_l+E_{l-1}) .$$
# ```
#
# ```{prf:proof}
# Since the old task the input has moved by at most $E_{l-1}$ in the rms, again by the Lipschitz constant. The memory has only grown, so $I-P_l$ leaves no more of the input than it did then, and a projector makes the movement no longer: the residual is at most $\rho_l+E_{l-1}$. Put this into {prf:ref}`thm-cpeft-drift`.
# ```
#
# `network_drift` trains a network of three layers on one task after the other and follows the images of the first task. It takes one threshold for the first layer and one for the layers behind it.

# %%
from experiments.cpeft.proof import network_drift

network = {"tasks": P.tasks, "size": P.size, "rank": P.rank, "images": P.images}
drift = [row for seed in P.seeds for row in network_drift(seed, **network)]
verdict("network_drift", drift)[["checks", "hold"]]

# %% [markdown]
# The two recursions hold in all rows. The *own* bound does not; where it holds behind the first layer it does so by being loose. Most telling is a first layer with threshold 0.95 before layers with threshold 1. Then the own bound of the later layers is zero in the second task, and the drift is not (right panel of {numref}`fig-cpeft-proof-drift`):

# %%
names = {"own": "own bound", "(1)": "theorem", "(2)": "from records"}
table = pd.DataFrame(drift).query("task == 2")
table["kind"] = table["statement"].str.split(":").str[0].map(names)

# %%
pairs = [(0.95, 0.95), (0.95, 1.0)]
places = ["threshold", "threshold_behind", "layer"]
bounds = table.dropna(subset="kind").pivot_table("right", places, "kind")
bounds["drift"] = table.groupby(places)["left"].mean()
shown = bounds[bounds.index.droplevel("layer").isin(pairs)]
shown[["drift", *names.values()]].style.format("{:.3g}")

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two charts of the drift of three layers with logarithmic axis. On the left, with threshold 0.95 everywhere, the own bound lies between the drift and the bounds of the theorem and from records, which rise far above both. On the right, with threshold 1 behind the first layer, the own bound of layers 2 and 3 lies at the lower edge, far below the drift.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-drift", "caption": "Drift of the outputs of each layer for the images of the first task during the second one, and three bounds; those of the theorem and from records are equal in the second task. Left: threshold 0.95 in all layers. Right: 0.95 in the first layer and 1 behind it. Small network, mean over seeds; values below 0.001 are drawn at the lower edge."}}
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.5), sharey=True)
looks = {"theorem": ("s--", "C1"), "from records": ("^:", "C2")}
looks |= {"own bound": ("v-.", "C3"), "drift": ("o-", "C0")}
for ax, pair in zip(axes, pairs, strict=True):
    for name, (line, color) in looks.items():
        curve = bounds.loc[pair, name].clip(lower=1e-3)
        ax.plot(curve.index, curve, line, color=color, label=name)
    ax.set(yscale="log", xlabel="layer", xticks=[1, 2, 3], title="thresholds {}, {}".format(*pair))
axes[0].set_ylabel("drift, and its bounds")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
save_figure(fig, P.run_dir, "drift")

# %%
rows = pd.DataFrame(drift)
held = rows.groupby("statement")["holds"].mean()
own_share = 100 * float(held[held.index.str.startswith("own")].iloc[0])
ends = {n: rows[rows["statement"].str.endswith(n)]["left"] for n in ("seen stay", "others move")}
last = rows[rows["statement"].str.startswith("(1)") & (rows["layer"] == 3)]
ratio = (last["right"] / last["left"])[last["threshold"] < 1].median()

# %%
for name, value in {
    "own": own_share,
    "seen": ends["seen stay"].max(),
    "others": 100 * ends["others move"].mean(),
    "loose": ratio,
}.items():
    record.metric(f"network_{name}", float(value))
    glue(f"cpeft-proof-network-{name}", float(value), display=False)

# %% [markdown]
# Three things are worth noting.
#
# - A layer's own bound holds in {glue:text}`cpeft-proof-network-own:.0f` % of the rows only. A figure that shows it for a layer of a deep network shows what *this layer adds* at inputs that stay; {ref}`chap-cpeft` says so where it draws one.
# - With threshold 1 in all layers the images *seen* keep their outputs (largest relative change {glue:text}`cpeft-proof-network-seen:.0e`). Other images of the same task do not: theirs move by {glue:text}`cpeft-proof-network-others:.0f` % of their size on average. A few images do not span what the next ones need; in a deep network
#   nothing is promised for an image that the memory has not seen.
# - The recursion multiplies the norms of all layers on the way. At the last of only three layers the bound is already {glue:text}`cpeft-proof-network-loose:.0f` times the drift, in the median.
#
# ### What is different in a transformer
#
# Linear layers of a transformer are not joined by functions of single entries. Layer norm and attention stand between them, and the proof used that $\varphi$ makes no difference larger. That is not true of attention: with dot products, it has no Lipschitz constant at all on unbounded inputs {cite}`kim2021lipschitz`; layer norm divides by the spread of the entries
# and so enlarges differences where that is small. On a bounded set of inputs constants exist, but they would be large, and the product over a dozen blocks would say nothing. So for a transformer
# this page offers part 4 at each layer's own inputs, and measurement for the rest. Attention has another twist: InfLoRA changes keys and values, and the inputs of a layer are *tokens*. The energy is then a mean over the tokens of all images.
#
# ## Part 6: isolation or cooperation?
#
# L2C keeps tasks apart outside the model. Each task $t$ has an expert $f_t(y\mid x)$, which later tasks do not change, so nothing is forgotten. In exchange somebody has to choose: a selector gives weights $g_k(x)$ with the sum 1, and the answer is
#
# ```{math}
# :label: eq-cpeft-proof-mixture
# \hat y=\sum_kg_k(x)\,f_k(y\mid x).
# ```
#
# *Isolation* asks only the expert with the largest weight, the *favourite*. *Cooperation* asks several. L2C's abstract says that there is a trade-off between the two and derives it from a generalisation bound, which is not public. What follows is another derivation, from elementary facts.
#
# ### What isolation costs
#
# ```{prf:proposition} One expert
# :label: prp-cpeft-one
# Let $m$ be the probability that the favourite is not the right expert (the *routing error*), $a_{\mathrm{own}}$ the accuracy of the favourite where it is the right one, and $a_{\mathrm{wrong}}$ where it is not. The accuracy of isolation is
#
# $$a=(1-m)\,a_{\mathrm{own}}+m\,a_{\mathrm{wrong}} .$$
# ```
#
# ```{prf:proof}
# The law of total probability.
# ```
#
# An expert that has never seen the classes of an image has $a_{\mathrm{wrong}}=0$. So isolation pays for every misrouted image in full. For an example, two groups of experts with one and the same selector, which is right in about three of four cases: *specialists*, who know nothing of the classes of other tasks, and *generalists*, who know them nearly as well as their own:

# %%
from experiments.cpeft.expert_outputs import ExpertOutputs


def soft_outputs(seed, knowledge, images=1000):
    """A selector and experts with random errors; two classes for each task."""
    stream, number = generator(seed, "soft answers"), P.experts
    labels = torch.randint(2 * number, (images,), generator=stream)
    rows, right = torch.arange(images), labels // 2
    votes = torch.randn((images, number, 2 * number), generator=stream, dtype=torch.float64)
    votes[rows, :, labels] += knowledge  # of all experts
    votes[rows, right, labels] += 4 - knowledge  # the right one knows more
    task_logits = torch.randn((images, number), generator=stream, dtype=torch.float64)
    task_logits[rows, right] += 2
    classes = torch.arange(2 * number)
    # Twice the signal is the logarithm of the odds: calibrated at temperature 1.
    return ExpertOutputs(2 * task_logits, votes.log_softmax(2), labels, classes, classes // 2 + 1)


# %%
from experiments.cpeft.toy_model import isolation_identity

groups = {"specialists": 0.0, "generalists": 3.0}
outputs = {(n, s): soft_outputs(s, k) for n, k in groups.items() for s in P.seeds}
identity = [
    {"experts": name, "seed": seed, **row}
    for (name, seed), given in outputs.items()
    for row in isolation_identity(given)
]

# %%
record.table("isolation_identity", identity)
pd.DataFrame(identity).groupby("experts", sort=False)[["left", "right", "holds"]].mean()

# %% [markdown]
# ### One bound, many readings
#
# ```{prf:theorem} Leave some out, average the others
# :label: thm-cpeft-sets
# For any set $S$ of experts with $g(S)=\sum_{k\in S}g_k>0$, and each image of class $y$,
#
# $$-\log\sum_kg_kf_k(y)\;\le\;-\log g(S)\;+\;\sum_{k\in S}\frac{g_k}{g(S)}\,\big(-\log f_k(y)\big) .$$
# ```
#
# ```{prf:proof}
# All terms are non-negative, so leaving out those outside $S$ makes the sum no larger: $-\log\sum_kg_kf_k\le-\log\sum_{k\in S}g_kf_k$. In the remaining sum take out the factor $g(S)$; what is left is a mean of $f_k$ with the weights $g_k/g(S)$, and $-\log$ of a mean is at most the mean of $-\log$ (Jensen's inequality, as $-\log$ is convex).
# ```
#
# The left side is the log loss of the answer. On the right, the first term is the cost of routing errors: it falls as $S$ grows. The second is the mean loss of those who answer: it rises as $S$ takes in experts that know less. Two readings:
#
# - $S=\{t\}$, the right expert. The second term is its own loss, as small as can be; the first, $-\log g_t$, is next to nothing if the selector is sure and right, and without bound if it is sure and wrong.
# - $S$ = all experts. The first term is zero, whatever the selector does; the second is low only if the experts agree on the right class.
#
# A *temperature* $\tau$ that divides the selector's logits moves between the two: all weight on the favourite for $\tau\to0$, equal weights for $\tau\to\infty$. The theorem holds for every $S$ at once, so the answer is never worse than the better reading. `log_loss_bounds` computes all of it:

# %%
from experiments.cpeft.toy_model import log_loss_bounds

scale = torch.logspace(-1, 1, 17, dtype=torch.float64).tolist()
bound_rows = [
    {"experts": name, "seed": seed, "temperature": tau, **row}
    for (name, seed), given in outputs.items()
    for tau in scale
    for row in log_loss_bounds(given, temperature=tau)
]
verdict("log_loss_bounds", bound_rows)

# %%
loss = pd.DataFrame(bound_rows)
loss["bound"] = loss["statement"].str.split("S = ").str[1]
readings = ["the right expert", "all experts"]
curves = loss.pivot_table("right", ["experts", "temperature"], "bound")[readings]
curves["log loss"] = loss.groupby(["experts", "temperature"])["left"].mean()

# %%
lowest = {name: float(curves.loc[name, "log loss"].idxmin()) for name in groups}
for name, tau in lowest.items():
    low, high = curves.loc[name, "log loss"].min(), curves.loc[name, "log loss"].iloc[-1]
    print(f"{name}: lowest log loss {low:.2f} at temperature {tau:.2g}, {high:.2f} at the end")

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two charts of the log loss against the temperature, each with two bounds above it. On the left, for specialists, the bound of the right expert falls and later rises, the bound of all experts rises, and they cross; the loss has a flat minimum below the crossing and then rises. On the right, for generalists, the bound of all experts is the lower one everywhere and close to the loss, which is low and flat.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-sets", "caption": "Log loss of the answer and two of its bounds, against the temperature of the weights. The selector is the same; the experts know nothing of other tasks (left) or nearly as much as of their own (right). Simulated experts, mean over seeds. Star: the lowest loss."}}
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.6), sharey=True)
looks = {"the right expert": ("--", "C1"), "all experts": ("-.", "C2"), "log loss": ("-", "C0")}
for ax, name in zip(axes, groups, strict=True):
    part = curves.loc[name]
    for column, (line, color) in looks.items():
        label = column if column == "log loss" else f"bound, S = {column}"
        ax.plot(part.index, part[column], line, color=color, label=label)
    ax.plot(lowest[name], part["log loss"].min(), "*", color="black", markersize=12)
    ax.set(xscale="log", ylim=(0, 3.5), xlabel=r"temperature $\tau$", title=name)
axes[0].set_ylabel("log loss in nats")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
save_figure(fig, P.run_dir, "sets")

# %%
for name, tau in lowest.items():
    record.metric(f"best_temperature_{name}", tau)
    glue(f"cpeft-proof-tau-{name}", tau, display=False)
    extra = curves.loc[name, "log loss"].iloc[-1] - curves.loc[name, "log loss"].min()
    glue(f"cpeft-proof-extra-{name}", float(extra), display=False)

# %% [markdown]
# Among specialists the two bounds cross (left panel of {numref}`fig-cpeft-proof-sets`): at low temperatures a wrong favourite makes the first reading expensive; at high ones the second, as it asks experts who know nothing. The answer is below both. Generalists agree, and the reading with all experts is the better one at every temperature. The same selector, yet going to nearly equal weights costs {glue:text}`cpeft-proof-extra-specialists:.2f` nats among
# specialists and {glue:text}`cpeft-proof-extra-generalists:.2f` among generalists: cooperation is cheap where experts agree.
#
# The selector is calibrated at temperature 1, and the loss is lowest at $\tau=$ {glue:text}`cpeft-proof-tau-specialists:.2g` and {glue:text}`cpeft-proof-tau-generalists:.2g`. In the next model the best temperature is on the other side of 1. There is no side that is right for all experts; it has to be measured, as {ref}`chap-cpeft` does.
#
# ### A toy model with an exact answer
#
# How sure must a selector be before isolation is right? Take the smallest case that has an answer. $T$ experts vote, independently, for the true class or for its one rival. The right expert is right with probability $p$, each other one with $q$, and $\frac12\le q<p<1$. The favourite is the right expert with probability $c$, the *confidence*; otherwise
# it is one of the others, each as likely. The selector is **calibrated**: it knows $c$, and at temperature 1 it gives the favourite the weight $c$ and the others $\frac{1-c}{T-1}$ each. The answer is the class with the larger sum of weights.
#
# Only the ratio of the weights counts. At temperature $\tau$ the favourite weighs
#
# ```{math}
# :label: eq-cpeft-proof-omega
# \omega=\Big(\frac{c\,(T-1)}{1-c}\Big)^{1/\tau}
# ```
#
# times as much as another. If $d$ of the $T-1$ others vote against it, they overrule it where $d>\omega+(T-1-d)$. If $\omega>T-1$, never: that is isolation.
#
# ```{prf:theorem} Critical confidence
# :label: thm-cpeft-critical
# Write $\alpha=p(1-q)$, $\beta=q(1-p)$ and $\rho=\big(\frac q{1-q}\big)^{T-2}$. No rule that knows the votes and the favourite has a higher accuracy than isolation, **if and only if**
#
# $$c\;\ge\;c^\star=\frac{\rho\,\alpha-\beta}{(1+\rho)(\alpha-\beta)} .$$
#
# Moreover $c^\star\ge\frac12$, with equality for $T=2$ or $q=\frac12$ only; and $c^\star>1$, so that isolation is *never* best, if and only if
#
# $$\Big(\frac q{1-q}\Big)^{T-1}>\frac p{1-p} .$$
# ```
#
# ```{prf:proof}
# The best rule answers the class that is more probable, given the favourite and the votes (Bayes). Let $s$ of the others agree with the favourite, $d=T-1-s$ disagree, and $x=\frac s{T-1}$. The right expert is the favourite with probability $c$, and each other one with $\frac{1-c}{T-1}$. Adding up these cases, the probabilities of what was seen, if the favourite's class is true and if it is false, are
#
# $$\begin{aligned}
# q^s(1-q)^d&\Big[c\,p+(1-c)\Big(x\,p+(1-x)\,\tfrac{q(1-p)}{1-q}\Big)\Big],\\
# (1-q)^sq^d&\Big[c\,(1-p)+(1-c)\Big(x\,(1-p)+(1-x)\,\tfrac{p(1-q)}q\Big)\Big].
# \end{aligned}$$
#
# *In $s$.* The ratio of the factors in front, $\big(\frac q{1-q}\big)^{s-d}$, does not fall as $s$ grows, since $q\ge\frac12$. The first bracket does not fall in $x$, because $p\ge\frac{q(1-p)}{1-q}$ says $p\ge q$, and the second does not rise, for the same reason. So if the favourite's class is the more probable one when *all* others are against it, it always is. Then the best rule is isolation. If not, the rule that gives way to
# all others together is better.
#
# *At $s=0$.* The first class is at least as probable where $c\,\alpha+(1-c)\,\beta\ge\rho\,[c\,\beta+(1-c)\,\alpha]$, after division by $(1-q)^{T-2}$. As $\alpha>\beta$, this is $c\ge c^\star$.
#
# *The size of $c^\star$.* It is at least $\frac12$, as twice its numerator is at least its denominator:
#
# $$2(\rho\alpha-\beta)-(1+\rho)(\alpha-\beta)=(\rho-1)(\alpha+\beta)\ge0,$$
#
# and zero for $\rho=1$ only. And $c^\star>1$ means $\rho\beta>\alpha$, which is the last inequality.
# ```
#
# The last inequality can be read. $\log\frac p{1-p}$ is the weight of evidence of one vote. If the $T-1$ others *together* carry more of it than the right expert, they should be able to overrule even a favourite that is surely the right one.
#
# By algebra, the two steps with $c^\star$; and `critical_confidence`, which solves the linear equation, against the closed form:

# %%
p, q, c, rho = sp.symbols("p q c rho", positive=True)
alpha, beta = p * (1 - q), q * (1 - p)
c_star = (rho * alpha - beta) / ((1 + rho) * (alpha - beta))
odds = c * alpha + (1 - c) * beta - rho * (c * beta + (1 - c) * alpha)
size_gap = (c_star - sp.Rational(1, 2)) * 2 * (1 + rho) * (alpha - beta)
print(sp.simplify(sp.solve(odds, c)[0] - c_star))
print(sp.simplify(size_gap - (rho - 1) * (alpha + beta)))

# %%
from experiments.cpeft.toy_model import critical_confidence

toy = {"experts": P.experts, "p_right": P.own, "p_other": P.other}
odds_of_other = P.other / (1 - P.other)
values = {p: P.own, q: P.other, rho: odds_of_other ** (P.experts - 2)}
critical = critical_confidence(**toy)
print(f"critical confidence {critical:.6f}, closed form {float(c_star.subs(values)):.6f}")
print("isolation is never best:", odds_of_other ** (P.experts - 1) > P.own / (1 - P.own))
glue("cpeft-proof-critical", critical, display=False)

# %% [markdown]
# And now the trap. At temperature 1 the calibrated selector isolates as soon as $\omega=\frac{c(T-1)}{1-c}>T-1$, that is from $c=\frac12$ on. But isolation is right only from $c^\star$ on, which is larger.
#
# ```{prf:corollary} Calibrated is too sure
# :label: cor-cpeft-sure
# With $T\ge3$ and $q>\frac12$, for every confidence between $\frac12$ and $\min(c^\star,1)$ the weights of temperature 1 give the accuracy of isolation, which is not the best. Some temperature *above* 1 is better. For every $c>\frac1T$ there is a temperature at which the weighted vote of all experts is the best of all rules.
# ```
#
# ```{prf:proof}
# The first part was just said. By the proof above the best rule follows the favourite unless at least a certain number of others is against it. As $c$ grows, the first bracket does not fall and the second does not rise, so that number does not fall either; and at $c=\frac1T$, where the favourite is one vote among $T$, the best rule is the majority, with $\omega=1$. So the best rule is a weighted vote with some $\omega\ge1$. As $\tau$
# goes from $0$ to $\infty$, $\omega$ takes every value above 1. For $c>\frac12$, a smaller $\omega$ than at temperature 1 needs $\tau>1$.
# ```
#
# Why does a selector that is right about itself weigh wrongly? The sum {eq}`eq-cpeft-proof-mixture` treats the experts as *alternatives*: one of them is the right one, ask it. But their votes are also *pieces of evidence* about one and the same class, and independent evidence adds up in the logarithm. The mixture does not know this; a higher temperature makes up for
# it in part.
#
# ### The toy model at work
#
# `toy_accuracy` sums over all votes, exactly. Against it stand the best rule, from the two probabilities in the proof, and a simulation that draws images and lets the same code answer that evaluates L2C in {ref}`chap-cpeft`.


# %%
def best_accuracy(c):
    """Accuracy of the best rule that knows the votes and the favourite."""
    total, others, p, q = 0.0, P.experts - 1, P.own, P.other
    for s in range(others + 1):
        d, x = others - s, s / others
        one = c * p + (1 - c) * (x * p + (1 - x) * q * (1 - p) / (1 - q))
        two = c * (1 - p) + (1 - c) * (x * (1 - p) + (1 - x) * p * (1 - q) / q)
        one, two = q**s * (1 - q) ** d * one, (1 - q) ** s * q**d * two
        total += math.comb(others, s) * max(one, two)
    return total


# %%
from experiments.cpeft.toy_model import toy_grid

fine = torch.logspace(-1, 3, 97, dtype=torch.float64).tolist()
rows = []
for c in torch.linspace(1 / P.experts, 0.995, 61, dtype=torch.float64).tolist():
    all_experts = toy_grid([P.experts], fine, confidence=c, **toy)
    row = {"confidence": c, "one expert": 100 * (c * P.own + (1 - c) * P.other)}
    row["all, temperature 1"] = toy_grid([P.experts], [1.0], confidence=c, **toy)[0]["accuracy"]
    row["all, best temperature"] = max(point["accuracy"] for point in all_experts)
    rows.append(row | {"best rule": 100 * best_accuracy(c)})
record.table("accuracy_by_confidence", rows)

# %%
by_confidence = pd.DataFrame(rows).set_index("confidence")
gap = by_confidence["best rule"] - by_confidence["all, best temperature"]
print(f"best rule above best temperature by at most {gap.max():.1e}")
cost = (by_confidence["best rule"] - by_confidence["all, temperature 1"])[0.5:].max()
record.metric("largest_cost_of_temperature_one", float(cost))
glue("cpeft-proof-cost", float(cost), display=False)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Accuracy against the confidence of the selector. A straight line for one expert; above it, up to a dotted vertical line, the curve of the best temperature, which coincides with the best rule. The curve of temperature 1 starts on the upper one, falls below it in steps, lies on the straight line from one half on and follows it.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-confidence", "caption": "Accuracy of the toy model against the probability that the favourite is the right expert: one expert, all experts at temperature 1 and at the best temperature, and the best of all rules (circles). Dotted: one half, where calibrated weights begin to isolate, and the critical confidence, if below 1. Exact values."}}
fig, ax = plt.subplots(figsize=(5.6, 3.7))
looks = {"one expert": ("--", "C1"), "all, temperature 1": ("-.", "C2")}
for name, (line, color) in (looks | {"all, best temperature": ("-", "C0")}).items():
    ax.plot(by_confidence.index, by_confidence[name], line, color=color, label=name)
some = by_confidence["best rule"].iloc[::6]
ax.plot(some.index, some, "o", color="black", fillstyle="none", label="best rule")
for place in (0.5, critical):
    if place < 1:
        ax.axvline(place, color="gray", linestyle=":", linewidth=1)
ax.set(xlabel="confidence $c$", ylabel="accuracy (%)")
fig.legend(loc="outside upper center", ncols=2)
save_figure(fig, P.run_dir, "confidence")

# %% [markdown]
# With these numbers the critical confidence is {glue:text}`cpeft-proof-critical:.2f`. From one half on, temperature 1 costs up to {glue:text}`cpeft-proof-cost:.1f` percentage points. Below one half it can cost something as well, where it asks for more votes against the favourite than the best rule does. The best temperature reaches the best rule at every confidence ({numref}`fig-cpeft-proof-confidence`), as {prf:ref}`cor-cpeft-sure` says. Now the same by temperature and by the number $K$ of experts that are asked:

# %%
by_temperature, by_number = {}, {}
for c in P.confidences:
    by_temperature[c] = [r["accuracy"] for r in toy_grid([P.experts], fine, confidence=c, **toy)]
    numbers = toy_grid(range(1, P.experts + 1), [100.0], confidence=c, **toy)
    by_number[c] = [r["accuracy"] for r in numbers]
optimum = {c: fine[max(range(len(fine)), key=by_temperature[c].__getitem__)] for c in P.confidences}
for c, tau in optimum.items():
    print(f"c = {c:g}: best accuracy {max(by_temperature[c]):.1f} %, from temperature {tau:.2f} on")

# %%
from experiments.cpeft.toy_model import simulated_accuracy, toy_expert_outputs

points = []
for c in P.confidences:
    drawn = toy_expert_outputs(P.draws, confidence=c, seed=P.seeds[0], **toy)
    for tau in P.temperatures:
        found, error = simulated_accuracy(drawn, P.experts, tau)
        points.append({"confidence": c, "temperature": tau, "accuracy": 100 * found})
record.table("simulated_accuracy", points)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Left: accuracy against the temperature for several confidences, step curves with a simulated point on each step. For low and middle confidences the steps lead up as the temperature grows, for the highest one down. Right: accuracy against the number of experts, nearly equal weights: rising for the lowest confidence, and for the others going up and down, lower at the right end than at the left one for the highest confidences.", "classes": "chart"}, "figure": {"name": "fig-cpeft-proof-tiny", "caption": "Accuracy of the toy model for several confidences c. Left: all experts, against the temperature; lines exact, crosses simulated. Right: the K most probable experts with nearly equal weights (temperature 100); K = 1 is isolation. Exact values, simulation of the first seed."}}
fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.8), sharey=True)
simulated = pd.DataFrame(points).set_index("confidence")
for number, c in enumerate(P.confidences):
    look = {"color": f"C{number}", "linestyle": ("-", "--", "-.", ":")[number % 4]}
    axes[0].plot(fine, by_temperature[c], label=f"c = {c:g}", **look)
    part = simulated.loc[[c]]
    axes[0].plot(part["temperature"], part["accuracy"], "x", color=f"C{number}")
    marker = "os^Dv"[number % 5]
    axes[1].plot(range(1, P.experts + 1), by_number[c], marker=marker, **look)
axes[0].set(xscale="log", xlabel=r"temperature $\tau$", ylabel="accuracy (%)")
axes[1].set(xlabel="experts $K$", xticks=range(1, P.experts + 1))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
save_figure(fig, P.run_dir, "tiny")

# %% [markdown]
# The curves of {numref}`fig-cpeft-proof-tiny` are steps, because only the number of others that can overrule the favourite matters. A low confidence wants the majority, on the right; one above $c^\star$ wants isolation, on the left. In between the optimum is in the middle, at a temperature at which only many others together overrule the favourite. $K$ is a blunt tool beside that: with $K=2$ nothing changes, as a single other expert cannot overrule a favourite that weighs a little more; with $K=3$ two others can, with $K=4$ it takes all three, and so the curves of
# the right panel go up and down.
#
# `toy_model_checks` puts all statements together, and the formula against the simulation for each $K$ and temperature. A simulation is allowed four standard errors:

# %%
from experiments.cpeft.toy_model import toy_model_checks

sampling = {"top_ks": range(1, P.experts + 1), "temperatures": P.temperatures, "images": P.draws}
checks = [
    {"seed": seed, "confidence": c, **row}
    for seed in P.seeds
    for c in P.confidences
    for row in toy_model_checks(confidence=c, seed=seed, **sampling, **toy)
]

# %%
record.table("tiny_model", checks)
kinds = pd.DataFrame(checks)
kinds["statement"] = kinds["statement"].str.replace(r", K = .*", "", regex=True)
counts = kinds.groupby("statement", sort=False)["holds"].agg(["size", "sum"])
counts.set_axis(["checks", "hold"], axis=1)

# %% [markdown]
# ## What this does not say
#
# - **Nothing about the accuracy of InfLoRA.** Parts 3 to 5 bound how far *outputs of layers* move. Whether a class is still recognised depends on the margins, and among all classes it depends on how the heads of different tasks compare, which no theorem here is about.
# - **Nothing about images that were not seen**, unless they lie in the span of those that were (part 5).
# - **Nothing about learning well.** A memory that keeps everything satisfies all bounds, and leaves nothing to learn with.
# - **Nothing about the released threshold.** The authors' code counts the squared singular values of the moment, and not the energy, which is the sum of the values themselves: the same 0.95 then keeps fewer directions, and part 4 promises less. {ref}`chap-cpeft` uses the energy.
# - **Nothing about dependent experts.** The toy model lets experts err independently. Experts that share a pre-trained model err together; in the extreme, where all vote alike, nothing is gained or lost by asking more of them.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-cpeft-proof-room
# *On paper.* In part 3 the inputs of every task fill $k$ dimensions, in general position, and the threshold is 1. How many tasks of rank $r\le k$ can be learned in $d$ dimensions? Check your answer with `usable_rank`.
# ```
#
# ```{solution-start} ex-cpeft-proof-room
# :class: dropdown
# ```
#
# Before task $t$ the memory has $(t-1)k$ dimensions. The rows of $A$ need $r$ free ones that the new inputs reach; these reach $k$ or all that are left. So $r\le d-(t-1)k$, which allows $t\le1+\lfloor(d-r)/k\rfloor$.

# %%
from ktlib.cpeft.gpm import DualGPM
from ktlib.cpeft.inflora import usable_rank
from ktlib.cpeft.inputs import InputMoment

memory, stream, learned = DualGPM(P.size), generator(0, "room"), 0
while True:
    space = torch.randn((P.subspace, P.size), generator=stream, dtype=torch.float64)
    if usable_rank(InputMoment.of(space), memory) < P.rank:
        break
    memory.update(InputMoment.of(space), 1.0)
    learned += 1
print(f"learned {learned}, formula {1 + (P.size - P.rank) // P.subspace}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-cpeft-proof-decay
# *On paper.* AdamW multiplies what it trains by $1-\eta\lambda$ in every step (weight decay). Does {prf:ref}`thm-cpeft-none` hold if it trains $B$? And if the weight $W+sBA$ as a whole is decayed?
# ```
#
# ```{solution-start} ex-cpeft-proof-decay
# :class: dropdown
# ```
#
# With decay of $B$ it holds: {prf:ref}`cor-cpeft-any` allows any $B$. Decay of the whole weight adds $-\eta\lambda W$ to it, whose rows are *not* in the row space of $A$: after $n$ steps every old output is $(1-\eta\lambda)^n$ times what it was. For AdamW's default $\lambda=0.01$ and a rate of $10^{-3}$ that is little in one task, and adds up over many:

# %%
for steps_made in (1_000, 10_000, 100_000):
    print(f"{steps_made:6d} steps: old outputs times {(1 - 1e-3 * 0.01) ** steps_made:.3f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-cpeft-proof-rank
# *Change a parameter.* Predict how the two factors of the looseness in part 4, *by rows* and *by norm*, change with the rank $r$. Then measure, at the first threshold, with ranks from 1 to all that stay free.
# ```
#
# ```{solution-start} ex-cpeft-proof-rank
# :class: dropdown
# ```
#
# *By rows* compares what was discarded with its part in the rows of $A$: it falls with $r$ and is 1 when the rows fill everything that is free. *By norm* compares the largest singular value of $D$ with what $D$ does to typical inputs. With rank 1 there is only one singular value, and the factor is 1; with more directions it can only count on the strongest.

# %%
rows = []
for r in sorted({1, 2, P.rank, (P.size - P.old_size) // 2, P.size - P.old_size}):
    sizes = layer | {"rank": r, "thresholds": P.thresholds[:1]}
    found = pd.DataFrame([row for seed in P.seeds for row in threshold_bound(seed, **sizes)])
    average = found[["by_rows", "by_norm", "looseness", "new_loss"]].mean()
    rows.append({"rank": r} | average.to_dict())
pd.DataFrame(rows).style.hide(axis="index").format("{:.2f}", subset=list(rows[0])[1:])

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-cpeft-proof-others
# *Write code.* How good must the other experts be so that isolation is *never* best, however sure the selector is? Solve the last inequality of {prf:ref}`thm-cpeft-critical` for $q$, for 3, 5, 10 and 20 experts, and check with `critical_confidence` that it crosses 1 there.
# ```
#
# ```{solution-start} ex-cpeft-proof-others
# :class: dropdown
# ```
#
# The odds of another expert must exceed the root $\big(\frac p{1-p}\big)^{1/(T-1)}$; odds $o$ belong to the probability $\frac o{1+o}$.

# %%
for T in (3, 5, 10, 20):
    root = (P.own / (1 - P.own)) ** (1 / (T - 1))
    limit = root / (1 + root)
    near = [
        critical_confidence(experts=T, p_right=P.own, p_other=limit + e) for e in (-0.001, 0.001)
    ]
    print(f"{T:2d} experts: q above {limit:.3f}; there c* goes from {near[0]:.3f} to {near[1]:.3f}")

# %% [markdown]
# With twenty experts, others that are hardly better than chance are enough, *if they err independently*. That is the assumption to doubt.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Training $B$ with $A$ fixed is training $W$ in the row space of $A$; whatever the optimiser, the update is zero for inputs orthogonal to the rows.
# - In a linear model with a complete memory tasks do not interfere at all, and it is the design of $A$ that does it.
# - With a lower threshold old outputs move by at most the norm of the update times what the memory discarded. The bound is loose by the rows that the update does not have and the directions that it stretches less; the price of a high threshold is the loss of the new task.
# - In a deep network inputs move as well. The drift obeys a recursion, which can be computed from weights and records, and is loose; a single layer's bound is not a bound of its drift, and images that were not seen are not protected.
# - Isolation pays for routing errors in full, cooperation for experts that know less. In the toy model there is one critical confidence, above one half; calibrated weights isolate from one half on and so too early. The best temperature is above 1 in between.
#
# ## Further reading
#
# Saha, Garg and Roy {cite}`saha2021gpm` project gradients away from old inputs; Liang and Li store the smaller of the space and its complement {cite}`liang2023dualgpm`, and choose the rows of LoRA by it {cite}`liang2024inflora`. Lopez-Paz and Ranzato {cite}`lopezpaz2017gem` and Chaudhry et al. {cite}`chaudhry2018riemannian` defined how transfer and forgetting
# are measured. HiDe-Prompt {cite}`wang2023hide` splits the class-incremental problem into naming the task and naming the class within it, as part 6 does; L2C {cite}`zhang2025l2c` is built on its code.

# %%
path = record.save(P.run_dir)
print(
    f"Record with {len(record.tables)} tables and {len(record.metrics)} metrics; saved: {path is not None}"
)
