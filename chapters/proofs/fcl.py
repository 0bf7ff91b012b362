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
#     uses: [fcl, models/images, models/resnet, models/weights]
#     data: [pairs]
#     data_parameter: dataset
# ---

# %% [markdown]
# (proof-fcl)=
# # Does training under noise converge? The proof, line by line
#
# **The question.** F2M, the method of {ref}`chap-fcl`, adds random noise to the weights at every step of
# its base training. {prf:ref}`thm-f2m` says that this still converges, in a certain sense. What exactly is
# proved, from which assumptions, and does every line of the printed proof hold?
#
# Not every line does. This page gives a complete proof that holds, checks each step by algebra or by numbers,
# and says in a box, called an *erratum*, where it departs from the thesis {cite}`shi2025thesis` and why.
#
# **After this chapter you can**
#
# - name for each assumption of a convergence theorem a case where it holds and one where it fails,
# - split the variance of a gradient into what the batch and what the noise contributes,
# - check every step of a standard convergence proof for stochastic gradient descent,
# - say what such a theorem does *not* promise.
#
# **Before you start.** You should know gradients, expectations and infinite series. The proof needs no theorem
# that is not proved here. The pattern is the one of Bottou, Curtis and Nocedal {cite}`bottou2018optimization`.
#
# **Time to run.** About 1 minute on two CPU cores; the [execution page](../../execution.md) has the
# time of the run that you are reading. To run it again: `make book`.

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps
precision = "float32"  # auto, float32 or bfloat16; the measured gradients are float32
seeds = [0, 1]  # one repetition each: weights, batches, noise; the thesis runs no experiment here
dataset = "pairs"  # pairs or digits: images of the network
classes = 10  # classes that the network learns
images = 40  # training images per class
width = 16  # channels of the first ResNet18 stage; the thesis: 64
stem_stride = 3  # stride of the first convolution; the thesis: 1
tuned_convolutions = 4  # last convolutions that get noise; the thesis: 4 or 8
epochs = 5  # epochs of training before the second measurement
batch_size = 16  # images per batch; not stated in the thesis
lr = 0.05  # first learning rate of the training; not stated in the thesis
noise_bound = 0.04  # half-width b of the noise, in units of the weights; the thesis: 0.01
prototype_weight = 0.1  # weight lambda of prototype fixing; not stated in the thesis
variance_batches = 8  # batches z that a variance is measured over
variance_draws = 4  # noise draws per batch of the nested sampling
averaged_draws = [1, 2, 4, 8, 16, 32]  # numbers M of draws per batch; the thesis: 2 to 4
dimension = 50  # parameters of the noisy quadratic
steps = 10000  # SGD steps on the noisy quadratic
repetitions = 100  # simulated paths of the noisy quadratic per seed

# %% tags=["setup"]
from experiments.fcl.proof import FclProofParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), FclProofParameters)

# %%
import matplotlib.pyplot as plt
import pandas as pd
import sympy as sp
import torch
from myst_nb import glue

import data_prep as data
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic, generator

use_style()
deterministic()
device = choose_device(P.device)
record = RunRecord.start("proofs/fcl", P, data=data.checksums(P.dataset))

# %% [markdown]
# ## What is claimed
#
# All parameters together are $\theta=\{\phi,\psi\}$. The noise $\epsilon$ has independent entries from
# $[-b,b]$ and is added to $\phi$ only. With a random batch $z$ the **smoothed risk** (3.4) is
#
# ```{math}
# R(\theta)=\mathbb E_{z,\epsilon}\,L(z;\phi+\epsilon,\psi).
# ```
#
# One step draws one batch $z_k$ and $M$ noise vectors $\epsilon_1,\dots,\epsilon_M$ of one law, and moves against the mean
# gradient (3.8), with $g(z,\epsilon;\theta)=\nabla L(z;\phi+\epsilon,\psi)$:
#
# ```{math}
# :label: eq-proof-step
# \theta_{k+1}=\theta_k-\alpha_k\,\bar g_k,\qquad \bar g_k=\frac1M\sum_{j=1}^{M}g(z_k,\epsilon_j;\theta_k).
# ```
#
# Throughout, $F(\theta)=\lVert\nabla R(\theta)\rVert^2$; the variance of a random vector is the number
# $\mathbb V[X]=\mathbb E\lVert X-\mathbb E X\rVert^2$; $\mathbb E_k$ and $\mathbb V_k$ are taken over the batch and
# the noise of step $k$ with $\theta_k$ given; steps are counted from $k=0$, and $\theta_0$ is fixed or has
# $\mathbb E R(\theta_0)<\infty$. The step sizes $\alpha_k>0$ are chosen in advance.
#
# ```{prf:theorem} Convergence of F2M, repaired
# :label: thm-proof-main
# Under {prf:ref}`ass-smooth` to {prf:ref}`ass-steps`,
# $\ \sum_k\alpha_k\,\mathbb E F(\theta_k)<\infty\ $ and $\ \liminf_{k}\mathbb E F(\theta_k)=0$.
# With {prf:ref}`ass-second` as well, $\ \lim_{k}\mathbb E\lVert\nabla R(\theta_k)\rVert^2=0$.
# ```
#
# The thesis states it as Theorem 3.1, and once more under the number 4.1 (a slip of the numbering, part of erratum
# E3). Here come the six assumptions. For each there is a case where it holds and one where it fails.
#
# ## The assumptions
#
# ```{prf:assumption} Smooth risk
# :label: ass-smooth
# $R$ is differentiable and $\lVert\nabla R(x)-\nabla R(y)\rVert\le L\lVert x-y\rVert$ for all $x,y$.
# ```
#
# *Fails* for the loss $|w|$ of one weight: its slope jumps from $-1$ to $1$. *Holds* after smoothing: the average
# of $|w|$ over the box of half-width $b$ is a parabola in the middle, and its slope $w/b$ rises by $1/b$ per unit. So
# $L=1/b$: noise *makes* a kink smooth, the less so the smaller $b$ is.

# %%
w, t = sp.symbols("w t", real=True)
b = sp.symbols("b", positive=True)
inside = (sp.integrate(-t, (t, w - b, 0)) + sp.integrate(t, (t, 0, w + b))) / (2 * b)  # |w| <= b
outside = sp.integrate(t, (t, w - b, w + b)) / (2 * b)  # w >= b
[sp.simplify(value) for value in (inside, sp.diff(inside, w), sp.diff(outside, w))]

# %%
kink_slope = sp.Derivative(sp.Abs(w), w).doit()
kink_slope.subs(w, sp.Rational(1, 10**9)) - kink_slope.subs(w, -sp.Rational(1, 10**9))

# %% [markdown]
# The last number is the change of the slope of $|w|$ over a distance of $2\cdot10^{-9}$: no $L$ covers that for all
# distances.
#
# ```{prf:assumption} Bounded below
# :label: ass-below
# $R(\theta)\ge R_{\inf}>-\infty$ for all $\theta$.
# ```
#
# *Holds* for F2M: cross-entropy and the squared shift of prototypes are at least zero. *Fails* for $R(w)=w$,
# which is perfectly smooth: gradient descent falls for ever, and the slope never gets smaller.

# %%
falling = torch.zeros(1, requires_grad=True)
for k in range(1000):
    (slope,) = torch.autograd.grad(falling.sum(), falling)
    falling.data -= slope / (k + 1)
falling.item(), slope.item()

# %% [markdown]
# ```{prf:assumption} Unbiased gradients
# :label: ass-unbiased
# $\mathbb E_k[g(z_k,\epsilon_j;\theta_k)]=\nabla R(\theta_k)$ for every $j$, and given $\theta_k$ the draws
# $z_k,\epsilon_1,\dots,\epsilon_M$ are independent of each other.
# ```
#
# It says two things: the mean of the loss may be differentiated under the expectation, and $R$ is the mean of
# *the loss that is really used*. *Holds* for $R$ = expected loss **of a batch**. *Fails* for the risk that
# one may have in mind for the prototype term: the squared shift of the class mean over *all* images. A batch gives a
# squared mean over few images, and the mean of a square is not the square of a mean. For $n$ numbers with mean
# $\mu$ and variance $s^2$ it is $\mu^2+s^2/n$. With $\mu=1$, $s^2=4$ and $n=4$:

# %%
shift = 1 + 2 * torch.randn((200_000, 4), generator=generator(P.seeds[0], "shift"))
batch_term = shift.mean(dim=1).square()
print(f"mean over batches {batch_term.mean():.2f}, with all images 1.00, formula {1 + 4 / 4:.2f}")

# %% [markdown]
# ```{prf:assumption} Bounded variance, in two parts
# :label: ass-variance
# There are constants with
# $\mathbb V_z\big[\mathbb E_\epsilon[g\mid z]\big]\le m_1^z+m_2^z F(\theta)$ and
# $\mathbb E_z\big[\mathbb V_\epsilon[g\mid z]\big]\le m_1^\epsilon+m_2^\epsilon F(\theta)$ for all $\theta$.
# Briefly, $m_i(M)=m_i^z+m_i^\epsilon/M$ for $i=1,2$.
# ```
#
# The thesis asks for $\mathbb V[g]\le m_1+m_2F$ of a single draw. That is enough: the two parts add up to $\mathbb V[g]$
# ({prf:ref}`lem-variance` below with $M=1$), so each of them obeys the same bound. *Holds* with equality for the **noisy quadratic**
# that will serve as the test bench, because all its constants are known:
#
# ```{math}
# :label: eq-proof-quadratic
# L(z;\theta)=\frac{1+u}{2}\sum_i h_i(\theta_i-t_i)^2+\xi^{\top}(\theta-t),\qquad z=(u,\xi),
# ```
#
# with $u=\pm\tau$ at equal chance, $\xi$ normal with variance $\sigma^2$ per coordinate, and uniform noise on the first half
# of the coordinates. Then $\nabla R=h(\theta-t)$, $L=\max h$, $L_2=2L^2$, $m_1^z=d\sigma^2$, $m_2^z=\tau^2$,
# $m_1^\epsilon=(1+\tau^2)\frac{b^2}{3}\sum_{\phi}h_i^2$ and $m_2^\epsilon=0$.

# %%
from experiments.fcl.proof import NoisyQuadratic

h = torch.logspace(0, -1, P.dimension, dtype=torch.float64)
quadratic = NoisyQuadratic(
    h, torch.zeros_like(h), P.dimension // 2, bound=0.8, batch_std=0.3, batch_scale=0.5
)
start, many = torch.ones_like(h), 20_000

# %%
rows = []
for M in (1, 4, 32):
    stream = generator(P.seeds[0], "assumptions", M)
    gradients = quadratic.batch_gradient(start, quadratic.draw_batch(many, stream), M, stream)
    error = (gradients - quadratic.gradient(start)).square().sum(dim=1)
    m1, m2 = quadratic.constants(M)
    bound = m1 + m2 * float(quadratic.gradient(start).square().sum())
    rows.append({"M": M, "measured variance": float(error.mean()), "m1 + m2 F": bound})
pd.DataFrame(rows).set_index("M").round(3)

# %% [markdown]
# The same samples show that {prf:ref}`ass-unbiased` holds here: the mean of the gradients differs from $\nabla R$ by no
# more than chance allows, in each coordinate, measured in standard errors.

# %%
standard_error = gradients.std(dim=0) / many**0.5
deviation = (gradients.mean(dim=0) - quadratic.gradient(start)).abs() / standard_error
print(f"largest of {P.dimension} deviations: {deviation.max():.1f} standard errors")

# %% [markdown]
# *Fails* for $L(z;w)=\frac12w^2+\frac z3w^3$ with $z=\pm1$. The risk is $\frac12w^2$, as harmless as can be, but
# $g=w+zw^2$ has variance $w^4=F^2$, and no line $m_1+m_2F$ stays above a parabola. Started at $w=4$, steps of size $1/(k+2)$,
# which satisfy {prf:ref}`ass-steps`, do not converge: count how many of 1,000 runs leave every bound.

# %%
sign = torch.randint(2, (60, 1000), generator=generator(P.seeds[0], "cubic")) * 2.0 - 1
w_k = torch.full((1000,), 4.0, dtype=torch.float64)
for k, z in enumerate(sign):
    w_k = (w_k - (w_k + z * w_k**2) / (k + 2)).clamp(-1e12, 1e12)  # 1e12 stands for infinity
float((w_k.abs() >= 1e6).double().mean())

# %% [markdown]
# ```{prf:assumption} Step sizes
# :label: ass-steps
# $\alpha_k>0$, $\ \sum_k\alpha_k=\infty\ $ and $\ \sum_k\alpha_k^2<\infty$ {cite}`robbins1951stochastic`.
# ```
#
# *Holds* for $1/k$. *Fails* in the first sum for $1/k^2$ (the steps end before the goal is reached), and in the second one
# for constant steps and for $1/\sqrt k$ (the steps do not calm the noise down fast enough for this proof).

# %%
n = sp.symbols("n", integer=True, positive=True)
for rule in (1 / n, 1 / n**2, sp.Integer(1), 1 / sp.sqrt(n)):
    finite = [bool(sp.Sum(term, (n, 1, sp.oo)).is_convergent()) for term in (rule, rule**2)]
    print(f"{rule!s:>9}: sum finite {finite[0]!s:>5}, sum of squares finite {finite[1]}")

# %% [markdown]
# ```{prf:assumption} Smooth squared gradient
# :label: ass-second
# $R$ is twice differentiable and $F=\lVert\nabla R\rVert^2$ is $L_2$-smooth.
# ```
#
# *Holds* for the quadratic with $L_2=2L^2$. *Fails* for the smoothed $|w|$ above, although that one is smooth: the
# slope of $F$ is $2w/b^2$ up to $w=b$ and $0$ from there on. So weight noise does not give
# {prf:ref}`ass-second` for free. An exercise at the end shows that the theorem can do without it.

# %%
slope_of_square = [sp.diff(sp.diff(part, w) ** 2, w) for part in (inside, outside)]
[sp.simplify(part.subs(w, b)) for part in slope_of_square]

# %% [markdown]
# ## Step 1: the descent lemma
#
# ```{prf:lemma} Descent
# :label: lem-descent
# Under {prf:ref}`ass-smooth`, for all $x,y$,
#
# $$R(y)\le R(x)+\nabla R(x)^{\top}(y-x)+\tfrac L2\lVert y-x\rVert^2 .$$
#
# With {prf:ref}`ass-below` also $F(x)\le 2L\,(R(x)-R_{\inf})$.
# ```
#
# ```{prf:proof}
# Let $v=y-x$. Then
#
# $$R(y)-R(x)-\nabla R(x)^\top v=\int_0^1(\nabla R(x+sv)-\nabla R(x))^\top v\,ds .$$
#
# By Cauchy-Schwarz and
# **{prf:ref}`ass-smooth`** the integrand is at most $Ls\lVert v\rVert^2$, and $\int_0^1Ls\,ds=\frac L2$. For
# the second claim take $y=x-\frac1L\nabla R(x)$: the right side becomes $R(x)-\frac1{2L}F(x)$, and the left side is at
# least $R_{\inf}$ by **{prf:ref}`ass-below`**.
# ```
#
# Check on the smoothed $|w|$ with $b=0.5$, so $L=2$: the smallest gap *right side minus left side* over many pairs
# of points must not be negative, rounding aside. For $|w|$ itself, with the same $L$, it is.


# %%
def smoothed(x, half=0.5):
    """Average of |w| over the box, and its slope."""
    value = torch.where(x.abs() < half, (x**2 + half**2) / (2 * half), x.abs())
    return value, (x / half).clamp(-1, 1)


pairs = 4 * torch.rand((2, 100_000), generator=generator(0, "pairs"), dtype=torch.float64) - 2
for name, loss in {"smoothed": smoothed, "|w|": lambda x: (x.abs(), x.sign())}.items():
    (x, y), ((at_x, slope_x), (at_y, _)) = pairs, (loss(pairs[0]), loss(pairs[1]))
    gap = at_x + slope_x * (y - x) + (y - x) ** 2 - at_y
    print(f"{name:>8}: smallest gap {gap.min():.1e}")

# %% [markdown]
# ## Step 2: the variance of the mean of several draws
#
# ```{prf:lemma} Variance with a shared batch
# :label: lem-variance
# Let $\epsilon_1,\dots,\epsilon_M$ be independent, equally distributed and independent of $z$. Then
#
# $$\mathbb V[\bar g]=\mathbb V_z\big[\mathbb E_\epsilon[g\mid z]\big]+\frac1M\,\mathbb E_z\big[\mathbb V_\epsilon[g\mid z]\big].$$
# ```
#
# ```{prf:proof}
# Write $\bar g-\mathbb E\bar g=A+B$ with $A=\bar g-\mathbb E[\bar g\mid z]$ and $B=\mathbb E[\bar g\mid z]-\mathbb E\bar g$.
# Since $\mathbb E[A\mid z]=0$ and $B$ depends on $z$ only, $\mathbb E[A^\top B]=\mathbb E\big[\mathbb E[A\mid z]^\top B\big]=0$. Hence
# $\mathbb V[\bar g]=\mathbb E\lVert B\rVert^2+\mathbb E\lVert A\rVert^2$. All draws have the same law, so
# $\mathbb E[\bar g\mid z]=\mathbb E_\epsilon[g\mid z]$, which gives the first term. *Given* $z$ the $M$ gradients are independent (**{prf:ref}`ass-unbiased`**),
# so their mixed terms vanish and $\mathbb E[\lVert A\rVert^2\mid z]=\frac1M\mathbb V_\epsilon[g\mid z]$, which gives the second.
# ```
#
# With **{prf:ref}`ass-variance`** and **{prf:ref}`ass-unbiased`**, for every $k$,
#
# ```{math}
# :label: eq-proof-second-moment
# \mathbb E_k\lVert\bar g_k\rVert^2=F(\theta_k)+\mathbb V_k[\bar g_k]\le m_1(M)+(1+m_2(M))\,F(\theta_k).
# ```
#
# ````{admonition} Erratum E1: the variance bound (3.19)
# :class: warning
# Printed is $\mathbb V[\bar g]\le\frac1M\mathbb V[g]$. That needs $M$ independent *pairs* $(z_j,\epsilon_j)$. In {eq}`eq-proof-step`
# all $M$ draws share one batch, so only the noise part shrinks, and the batch part is a floor:
# $\mathbb V[\bar g]\ge\mathbb V_z[\mathbb E_\epsilon[g\mid z]]$ for every $M$. The printed reason, sampling "without replacement", has
# no meaning for noise with a continuous law; what is needed, and is true, is independence given the batch. *Repair:*
# {prf:ref}`lem-variance`. The theorem survives, as its proof needs *some* $m_1,m_2$, and those of one
# draw always do. What does not survive is that many draws make the gradient as good as many batches.
# ````
#
# How large is the floor for a real network? Take the network of {ref}`chap-fcl`, on fewer classes, and measure before and
# after a short training with the loss of F2M. A batch is a random subset of the training images; batches are
# drawn independently, so that a batch as a whole is one draw of $z$.

# %%
from torch import nn

from experiments.models.resnet import resnet18_features
from ktlib.fcl import (
    BaseTraining,
    f2m_loss,
    last_convolutions,
    positions_of,
    split_network,
    train_base,
)

train = data.load(P.dataset, "train")
known = (train.labels < P.classes).nonzero().squeeze(1)
pixels = train.images[known].float() / 255
mean, std = float(pixels.mean()), float(pixels.std())


# %%
def training_images(seed):
    """`images` per class, and their labels."""
    order = known[torch.randperm(len(known), generator=generator(seed, "images"))]
    chosen = torch.cat([order[train.labels[order] == c][: P.images] for c in range(P.classes)])
    labels = positions_of(train.labels[chosen], torch.arange(P.classes))
    return data.normalised(train.images[chosen], mean, std).to(device), labels.to(device)


# %%
settings = {"bound": P.noise_bound, "prototype_weight": P.prototype_weight}


def train_network(seed, split, classifier):
    """The base session of F2M with two draws per step."""
    noise = generator(seed, "noise")

    def loss(batch, targets):
        return f2m_loss(
            split, classifier, batch, targets, draws=2, generator=noise, **settings
        ).total

    schedule = BaseTraining(epochs=P.epochs, batch_size=P.batch_size, lr=P.lr, padding=0)
    batches = generator(seed, "batches")
    pool = training_images(seed)
    train_base(split.network, classifier, *pool, loss, schedule, generator=batches)


# %% [markdown]
# `gradient_variance` takes several gradients on each of several batches: their spread *within* batches estimates the
# noise part, and the spread of their means *between* batches, less what the noise leaves in it, the batch part.
# Beside it, `measured_variance` knows no formula: it calls the loss of F2M with $M$ draws, once per batch, with new noise,
# and takes the variance of the gradients of all parameters over the batches. Both use the same batches.

# %%
from experiments.fcl.proof import gradient_variance, measured_variance, network_gradient


def draw_batches(seed):
    """Independent random subsets of the training images."""
    inputs, labels = training_images(seed)
    stream = generator(seed, "variance batches")
    picks = [torch.randperm(len(labels), generator=stream) for _ in range(P.variance_batches)]
    return [(inputs[p[: P.batch_size]], labels[p[: P.batch_size]]) for p in picks]


def gradient_of(seed, split, classifier, draws):
    """Batch -> gradient of the mean of `draws` noise draws, as training would see it."""
    split.network.train()  # batch norm uses the batch, as in training
    noise = generator(seed, "variance noise", draws)
    more = settings | {"draws": draws, "generator": noise}
    return lambda z: network_gradient(split, classifier, *z, **more)


# %%
def measure(training, seed, net, batches):
    """Both parts of the variance, and a row with the variance itself for each M."""
    both = gradient_variance(gradient_of(seed, *net, 1), batches, P.variance_draws)
    rows = []
    for many_draws in P.averaged_draws:
        value = measured_variance(gradient_of(seed, *net, many_draws), batches)
        rows.append((training, seed, many_draws, value))
    return both, rows


def before_and_after(seed):
    """Measure a network, train it, and measure it again; it comes along."""
    torch.manual_seed(seed)
    network = resnet18_features(train.images.shape[1], P.width, P.stem_stride).to(device)
    classifier = nn.Linear(network.feature_dim, P.classes).to(device)
    batches = draw_batches(seed)
    layers = last_convolutions(network, P.tuned_convolutions)
    split = split_network(network, layers, example=batches[0][0][:4])
    before = measure("before", seed, (split, classifier), batches)
    train_network(seed, split, classifier)
    after = measure("after", seed, (split, classifier), batches)
    return {"before": before, "after": after}, (split, classifier)


# %%
from experiments.run.parallel import parallel_map

measured = parallel_map(before_and_after, P.seeds, "variance", device=device)
parts, direct = {}, []
for seed, (both_times, _) in measured.items():
    parts |= {(seed, training): both for training, (both, _) in both_times.items()}
    direct += [row for _, rows in both_times.values() for row in rows]

# %%
variance = pd.DataFrame(direct, columns=["training", "seed", "draws", "measured"])
found = [parts[key] for key in zip(variance["seed"], variance["training"], strict=True)]
both = list(zip(found, variance["draws"], strict=True))
variance["repaired"] = [part.repaired(M) for part, M in both]
variance["printed"] = [part.printed(M) for part, M in both]
variance["floor"] = [part.batch for part in found]
record.table("gradient_variance", variance.to_dict("records"))
average = variance.groupby(["training", "draws"], sort=False).mean().drop(columns="seed")
average.style.format(precision=3)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two charts of the variance of the mean gradient against the number of draws, logarithmic axes, before and after training. The measured points follow the repaired formula down to a floor; the line of the printed formula falls far below them.", "classes": "chart"}, "figure": {"name": "fig-proof-variance", "caption": "Variance of the gradient of the mean of $M$ noise draws on one batch, before and after training, mean over seeds. Points: measured directly. Lines: the repaired and the printed formula, from a nested sample with draws of its own."}}
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.4))
for ax, training in zip(axes, ("before", "after"), strict=True):
    curve = average.loc[training]
    ax.plot(curve.index, curve["measured"], "o", color="black", label="measured")
    ax.plot(curve.index, curve["repaired"], label="repaired")
    ax.plot(curve.index, curve["printed"], linestyle="--", label="printed (3.19)")
    ax.axhline(curve["floor"].iloc[0], color="gray", linestyle=":", label="batch part")
    ax.set(xscale="log", yscale="log", xlabel="noise draws M", title=f"{training} training")
    ax.set_xticks(curve.index, curve.index)
    ax.minorticks_off()
axes[0].set_ylabel("variance of the gradient")
axes[0].legend(loc="lower left")
save_figure(fig, P.run_dir, "variance")

# %%
for training, rows in variance[variance["draws"] == max(P.averaged_draws)].groupby("training"):
    too_small = float((rows["measured"] / rows["printed"]).mean())
    record.metric(f"printed_too_small_by_{training}", too_small)
    glue(f"proof-too-small-{training}", too_small, display=False)
off = float((variance["measured"] / variance["repaired"] - 1).abs().max())
record.metric("repaired_off_by", off)
glue("proof-off", 100 * off, display=False)
glue("proof-most", max(P.averaged_draws), display=False)

# %% [markdown]
# With {glue:text}`proof-most:.0f` draws the measured variance is {glue:text}`proof-too-small-before:.1f` times what the printed formula
# says before training, and {glue:text}`proof-too-small-after:.1f` times after it. The repaired formula is off by at most {glue:text}`proof-off:.0f` % for any
# $M$, seed and state of training, with few batches. How much of the variance is noise, and does {prf:ref}`ass-variance` look plausible? The share depends on the state of the
# network, so constants that hold *for all* $\theta$ have to cover the worst one. (The squared gradient is an unbiased estimate
# too; where the true value is small beside the variance, it can fall below zero.)

# %%
states = [
    {"seed": seed, "training": when, "batch part": p.batch, "noise part": p.noise,
     "noise share": p.noise / (p.batch + p.noise), "squared gradient": p.squared_gradient}
    for (seed, when), p in parts.items()
]  # fmt: skip
record.table("variance_parts", states)
pd.DataFrame(states).style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## Step 3: expected descent
#
# Put $y=\theta_{k+1}$ and $x=\theta_k$ into {prf:ref}`lem-descent` and take $\mathbb E_k$. By **{prf:ref}`ass-unbiased`** the middle
# term is $-\alpha_kF(\theta_k)$, and {eq}`eq-proof-second-moment`, that is **{prf:ref}`ass-variance`**, bounds the last one:
#
# ```{math}
# :label: eq-proof-one-step
# \mathbb E_k R(\theta_{k+1})\le R(\theta_k)-\alpha_k\Big(1-\tfrac{L\alpha_k(1+m_2)}2\Big)F(\theta_k)+\tfrac{L\alpha_k^2}2\,m_1 ,
# ```
#
# with $m_i=m_i(M)$. As soon as $\alpha_k\le\frac1{L(1+m_2)}$, the bracket is at least $\frac12$. Taking the mean over $\theta_k$
# as well gives the inequality in the place of (3.14):
#
# ```{math}
# :label: eq-proof-descent
# \mathbb E R(\theta_{k+1})\le\mathbb E R(\theta_k)-\tfrac12\alpha_k\,\mathbb E F(\theta_k)+\tfrac L2\,m_1\,\alpha_k^2 .
# ```
#
# All means are finite: if $\mathbb E R(\theta_k)<\infty$, then $\mathbb E F(\theta_k)<\infty$ by the second part of
# {prf:ref}`lem-descent`, and then $\mathbb E R(\theta_{k+1})<\infty$ by {eq}`eq-proof-one-step`; $\mathbb E R(\theta_0)<\infty$ starts the induction.
#
# On the noisy quadratic the means can be computed exactly, by a recursion for the second moment of each
# coordinate, so {eq}`eq-proof-descent` can be checked at every single step without any sampling. The first step size is the
# largest allowed; $k_0=20$ delays the decay.

# %%
draws = 2  # M
m1, m2 = quadratic.constants(draws)
largest = 1 / (quadratic.smoothness * (1 + m2))
k = torch.arange(P.steps, dtype=torch.float64)
alpha = largest / (1 + k / 20)

# %%
risk, square = quadratic.expected(start, alpha.tolist(), draws)
right = risk[:-1] - alpha * square[:-1] / 2 + quadratic.smoothness / 2 * m1 * alpha**2
slack = right - risk[1:]
record.metric("descent_smallest_slack", float(slack.min()))
print(f"{P.steps} steps, smallest right side minus left side: {slack.min():.1e}")

# %% [markdown]
# The recursion itself is checked against simulated runs, as the largest difference of the two over all steps in
# units of the standard error of the simulation. Neighbouring steps depend on each other, so values of 3 or 4 are no surprise.

# %%
runs = [
    quadratic.simulate(start, alpha.tolist(), draws, P.repetitions, generator(seed, "paths"))
    for seed in P.seeds
]
paths, ahead = (torch.cat(values, dim=1) for values in zip(*runs, strict=True))
standard_error = (paths.std(dim=1) / paths.shape[1] ** 0.5)[1:]
differences = (paths.mean(dim=1) - square)[1:].abs() / standard_error
print(f"{paths.shape[1]} runs, largest difference {differences.max():.1f} standard errors")

# %% [markdown]
# And E1 once more, now as a false inequality. If all curvatures are equal, {eq}`eq-proof-one-step` is an equality, so there is no
# room for a smaller variance. With $m_i/M$ of (3.19) in place of $m_i(M)$ and 32 draws, count the steps at
# which it fails:

# %%
equal = torch.ones_like(h)
tight = NoisyQuadratic(
    equal, 0 * equal, P.dimension // 2, bound=0.8, batch_std=0.3, batch_scale=0.5
)
tight_risk, tight_square = tight.expected(equal, alpha.tolist(), 32)
for name in ("constants", "printed_constants"):
    m1_, m2_ = getattr(tight, name)(32)
    bracket = 1 - tight.smoothness * alpha * (1 + m2_) / 2
    gap = -alpha * bracket * tight_square[:-1] + alpha**2 / 2 * m1_ - tight_risk.diff()
    print(f"{name:>17}: false at {float((gap < -1e-12).double().mean()):.0%} of the steps")

# %% [markdown]
# ## Step 4: the sum, and the lower limit (3.22)
#
# By the second sum of **{prf:ref}`ass-steps`** $\alpha_k\to0$, so {eq}`eq-proof-descent` holds from some index $K$ on. Add it up from $K$ to $n$. The risks
# telescope, and **{prf:ref}`ass-below`** bounds the last one:
#
# ```{math}
# :label: eq-proof-sum
# \begin{aligned}
# \tfrac12\sum_{k=K}^{n}\alpha_k\,\mathbb E F(\theta_k)
# &\le\mathbb E R(\theta_K)-\mathbb E R(\theta_{n+1})+\tfrac L2m_1\sum_{k=K}^{n}\alpha_k^2\\
# &\le\mathbb E R(\theta_K)-R_{\inf}+\tfrac L2m_1\sum_{k=K}^{\infty}\alpha_k^2 .
# \end{aligned}
# ```
#
# The right side is finite and does not depend on $n$; the terms before $K$ are finitely many finite numbers. Hence
# $\sum_k\alpha_k\mathbb E F(\theta_k)<\infty$. If $\mathbb E F(\theta_k)\ge\delta>0$ held for all $k$ from some index on, this sum would be at
# least $\delta\sum_k\alpha_k=\infty$, up to finitely many terms. So it does not, for any $\delta$:
#
# ```{math}
# :label: eq-proof-liminf
# \liminf_{k\to\infty}\mathbb E\lVert\nabla R(\theta_k)\rVert^2=0 .
# ```
#
# This is the first half of {prf:ref}`thm-proof-main`, the thesis's (3.22). As a by-product, the mean of $\mathbb E F$ with
# weights $\alpha_k$, and so the smallest of them, is at most twice the right side of {eq}`eq-proof-sum` divided by $\sum\alpha_k$: a speed.
#
# ````{admonition} Erratum E6: what makes the steps small, before (3.24)
# :class: warning
# Before (3.24) $\lim_k\alpha_k=0$ is drawn from the *first* condition, $\sum_k\alpha_k=\infty$. Constant steps satisfy that one and do not go to
# zero. *Repair:* it follows from the *second*, $\sum_k\alpha_k^2<\infty$. The terms of a convergent series go to zero, so $\alpha_k^2\to0$, and so
# $\alpha_k\to0$. Both conditions are assumed, so nothing else changes. The first one has its own place, in {eq}`eq-proof-liminf`.
# ````
#
# The limits of the four rules of {prf:ref}`ass-steps`. Wherever the squares have a finite sum, the limit is zero. Of the two rules whose squares do
# not, both satisfy the first condition, and one of them has no limit of zero:

# %%
for rule in (1 / n, 1 / n**2, sp.Integer(1), 1 / sp.sqrt(n)):
    finite = [bool(sp.Sum(term, (n, 1, sp.oo)).is_convergent()) for term in (rule, rule**2)]
    words = f"first holds {not finite[0]!s:>5}, second holds {finite[1]!s:>5}"
    print(f"{rule!s:>9}: {words}, limit {sp.limit(rule, n, sp.oo)}")

# %% [markdown]
# It matters, because {eq}`eq-proof-descent` needs short steps. Constant steps of four times the largest allowed size satisfy the first condition for
# ever. On the noisy quadratic they multiply the mean of $F$ at each of ten steps, by at least:

# %%
too_long = quadratic.expected(start, [4 * largest] * 10, draws)[1]
print(f"{float((too_long[1:] / too_long[:-1]).min()):.1f}")

# %% [markdown]
# ````{admonition} Erratum E3: indices in (3.24) to (3.28)
# :class: warning
# The printed sums mix starts at $\theta_0$ and at $\theta_1$ and their lower limits. What telescopes is
#
# $$\sum_{k=K}^{n}\big(R(\theta_k)-R(\theta_{k+1})\big)=R(\theta_K)-R(\theta_{n+1}):$$
#
# the first index of the sum on the left is the index of the
# first risk on the right. The limit does not depend on where the sum starts, so nothing else changes. The
# theorem also appears twice, as 3.1 and as 4.1.
# ````
#
# A check of both, and of {eq}`eq-proof-sum`, on the exact means. With the sum from 0 on the left, $\theta_0$ on the right is exact,
# and $\theta_1$ is off:

# %%
falls = risk[:-1] - risk[1:]
from_0, from_1 = (float((falls.sum() - (risk[i] - risk[-1])).abs()) for i in (0, 1))
print(f"telescoping error: {from_0:.1e} with theta_0, {from_1:.1e} with theta_1")

# %%
weighted = torch.cumsum(alpha * square[:-1], dim=0)
bounds = 2 * (risk[0] - quadratic.lowest_risk) + quadratic.smoothness * m1 * torch.cumsum(
    alpha**2, 0
)
record.metric("weighted_sum", float(weighted[-1]))
print(
    f"sum of alpha F {weighted[-1]:.1f}, bound {bounds[-1]:.1f}, holds: {bool((weighted <= bounds).all())}"
)

# %% [markdown]
# ## Step 5: the increments of the squared gradient
#
# A lower limit of zero still allows $\mathbb E F$ to come back to large values for ever. To exclude that, look at how much it can rise
# in one step. **{prf:ref}`ass-second`** lets us use {prf:ref}`lem-descent` for $F$ in place of $R$, with
# $\nabla F=2\nabla^2R\,\nabla R$:
#
# ```{math}
# :label: eq-proof-increment
# \begin{aligned}
# \mathbb E_kF(\theta_{k+1})-F(\theta_k)
# &\le-2\alpha_k\nabla R^{\top}\nabla^2R\,\nabla R+\tfrac{L_2}2\alpha_k^2\,\mathbb E_k\lVert\bar g_k\rVert^2\\
# &\le2\alpha_k\lVert\nabla^2R\rVert\,\lVert\nabla R\rVert^2+\tfrac{L_2}2\alpha_k^2\,\mathbb E_k\lVert\bar g_k\rVert^2\\
# &\le2L\,\alpha_kF(\theta_k)+\tfrac{L_2}2\alpha_k^2\big(m_1+(1+m_2)F(\theta_k)\big),
# \end{aligned}
# ```
#
# all derivatives at $\theta_k$. The first line uses **{prf:ref}`ass-unbiased`**, the second that $|v^\top Hv|\le\lVert H\rVert\lVert v\rVert^2$, the third
# $\lVert\nabla^2R\rVert\le L$ from **{prf:ref}`ass-smooth`**, and **{prf:ref}`ass-variance`**. Taking the mean, $a_k=\mathbb E F(\theta_k)$ obeys
#
# ```{math}
# :label: eq-proof-summable
# a_{k+1}\le a_k+b_k,\qquad b_k=2L\,\alpha_ka_k+\tfrac{L_2}2\alpha_k^2\big(m_1+(1+m_2)a_k\big)\ge0,\qquad\sum_kb_k<\infty .
# ```
#
# The sum is finite term by term: $\sum\alpha_ka_k<\infty$ by step 4, $\sum\alpha_k^2<\infty$ by **{prf:ref}`ass-steps`**, and
# $\sum\alpha_k^2a_k\le(\max_k\alpha_k)\sum\alpha_ka_k$.
#
# ````{admonition} Erratum E2: one norm too many in (3.31), and the risk for its gradient in (3.35)
# :class: warning
# The fourth line of (3.31) carries one norm too many. Right is
#
# $$-2\alpha\nabla R^\top\nabla^2R\,\nabla R\le2\alpha\lVert\nabla^2R\rVert\lVert\nabla R\rVert^2\le2\alpha L\lVert\nabla R\rVert^2 .$$
#
# In (3.35) $R$ stands where its gradient belongs, so that $F$ is $\lVert R\rVert^2$. It must be $F=\lVert\nabla R\rVert^2$: only then is
# $\nabla F=2\nabla^2R\,\nabla R$, and only then does the limit of $F$ say something about gradients.
# ````
#
# The derivative, by algebra, for a general function of two variables:

# %%
x1, x2 = sp.symbols("x1 x2", real=True)
R = sp.Function("R")(x1, x2)
grad = sp.Matrix([R.diff(x1), R.diff(x2)])
hessian = sp.hessian(R, (x1, x2))
right_zero = sp.Matrix([(grad.T * grad)[0].diff(v) for v in (x1, x2)]) - 2 * hessian * grad
wrong_zero = sp.Matrix([(R**2).diff(v) for v in (x1, x2)]) - 2 * hessian * grad
print(
    "F = |grad R|^2:",
    sp.simplify(right_zero).T,
    " F = R^2:",
    sp.simplify(wrong_zero) == sp.zeros(2, 1),
)

# %% [markdown]
# The inequality with the right number of norms, and with one more factor $\lVert\nabla R\rVert$ or $\lVert\nabla^2R\rVert$, on random symmetric matrices
# and vectors of all lengths. The left side is of second order in $\nabla R$ and of first order in $\nabla^2R$; a bound of another
# order cannot hold for both short and long vectors.

# %%
stream = generator(0, "norms")
H = torch.randn((20_000, 4, 4), generator=stream, dtype=torch.float64)
H = (H + H.mT) * 10 ** (2 * torch.rand((20_000, 1, 1), generator=stream) - 1)
v = torch.randn((20_000, 4), generator=stream, dtype=torch.float64)
v = v * 10 ** (2 * torch.rand((20_000, 1), generator=stream) - 1)

# %%
left = -torch.einsum("ni,nij,nj->n", v, H, v)
size_h, size_v = torch.linalg.matrix_norm(H, ord=2), v.norm(dim=1)
for p, q in ((1, 2), (1, 3), (2, 2)):
    false = left > (1 + 1e-9) * size_h**p * size_v**q
    print(f"|H|^{p} |grad R|^{q}: false in {float(false.double().mean()):.1%} of the cases")

# %% [markdown]
# ## Step 6: the limit exists and is zero
#
# ```{prf:lemma} Almost decreasing sequences
# :label: lem-sequence
# Let $a_k\ge0$, $b_k\ge0$, $a_{k+1}\le a_k+b_k$ for all $k$, and $\sum_kb_k<\infty$. Then $a_k$ converges.
# ```
#
# ```{prf:proof}
# Let $s_k=\sum_{i<k}b_i$ and $c_k=a_k-s_k$. Then $c_{k+1}=a_{k+1}-s_k-b_k\le a_k-s_k=c_k$, so $c_k$ does not increase, and
# $c_k\ge-\sum_ib_i$, so it is bounded below. A bounded monotone sequence converges, hence $c_k$ does; $s_k$ converges by
# assumption; so does their sum $a_k$.
# ```
#
# It is the case without randomness of a theorem of Robbins and Siegmund {cite}`robbins1971convergence`. Here
# it is enough, because $a_k=\mathbb E F(\theta_k)$ are numbers.
#
# ```{prf:proof}
# Now the second half of {prf:ref}`thm-proof-main`. By {eq}`eq-proof-summable` and {prf:ref}`lem-sequence`, $\lim_k\mathbb E F(\theta_k)$ exists. A sequence that has a limit has it as its
# lower limit too, and that is $0$ by {eq}`eq-proof-liminf`. So $\lim_k\mathbb E\lVert\nabla R(\theta_k)\rVert^2=0$.
# ```
#
# The thesis takes another way from {eq}`eq-proof-increment` to the limit: it adds up the rises and the falls of $F$ apart. That way can be walked too, with two repairs.
# The inequality is about the mean of the next value with $\theta_k$ given, so the increments in question are
#
# ```{math}
# :label: eq-proof-parts
# d_k=\mathbb E_kF(\theta_{k+1})-F(\theta_k),\qquad A^+_K=\sum_{k<K}\max(d_k,0),\qquad A^-_K=\sum_{k<K}\max(-d_k,0).
# ```
#
# ````{admonition} Erratum E7: the split into rises and falls needs expectations
# :class: warning
# Printed is $F(\theta_K)=F(\theta_0)+A^+-A^-$. With the conditional increments that (3.31) bounds this is false for a run, since $F$ also moves by chance:
#
# $$\begin{aligned}
# F(\theta_K)&=F(\theta_0)+\sum_{k<K}\big(F(\theta_{k+1})-F(\theta_k)\big)\\
# &=F(\theta_0)+\sum_{k<K}d_k+\sum_{k<K}\big(F(\theta_{k+1})-\mathbb E_kF(\theta_{k+1})\big)\\
# &=F(\theta_0)+A^+_K-A^-_K+N_K .
# \end{aligned}$$
#
# The last sum, $N_K$, is a martingale: given $\theta_k$, each of its terms has the mean zero. *Repair:* take the mean of all terms. They are finite, as shown in step 3. Then $\mathbb E N_K=0$, and
#
# $$\mathbb E F(\theta_K)=\mathbb E F(\theta_0)+\mathbb E A^+_K-\mathbb E A^-_K .$$
#
# By {eq}`eq-proof-increment` $\max(d_k,0)$ is at most the last line there, whose mean is $b_k$. So $\mathbb E A^+_K\le\sum_kb_k<\infty$; since it does not decrease with $K$, it converges.
# ````
#
# The simulated runs show both. `simulate` has noted the exact $\mathbb E_kF(\theta_{k+1})$ at every step of every run; $K$ is the last step. $F$ is a square, so a sum below
# zero cannot be $F(\theta_K)$:

# %%
from experiments.fcl.proof import rises_and_falls

rise_so_far, fall_so_far = rises_and_falls(ahead - paths[:-1])
rise, fall = rise_so_far[-1], fall_so_far[-1]
claimed = paths[0] + rise - fall  # what the equation without expectations says
martingale = (paths[1:] - ahead).sum(dim=0)
rest = float((paths[-1] - claimed - martingale).abs().max())
print(f"F(theta_K) - claimed - N_K: at most {rest:.0e} in {len(claimed)} runs")

# %%
mean_error = martingale.mean() / (martingale.std() / len(martingale) ** 0.5)
values = {"spread": martingale.std(), "last": paths[-1].mean(), "mean": mean_error}
values |= {"negative": 100 * (claimed < 0).double().mean()}
for name, value in values.items():
    record.metric(f"martingale_{name}", float(value))
    glue(f"proof-martingale-{name}", float(value), display=False)

# %% [markdown]
# In a single run the printed sum misses $F(\theta_K)$ by $N_K$, whose standard deviation over the runs is {glue:text}`proof-martingale-spread:.2f`. The mean of $F(\theta_K)$ itself is
# {glue:text}`proof-martingale-last:.1e`. In {glue:text}`proof-martingale-negative:.0f` % of the runs the printed sum is below zero. In the mean over the runs nothing is missing but chance: the mean of $N_K$
# is {glue:text}`proof-martingale-mean:.1f` standard errors away from zero.
#
# ````{admonition} Erratum E8: the falls do not converge "similarly"
# :class: warning
# That $A^-$ converges is said to follow as for $A^+$. But (3.31) bounds rises. It says nothing about falls: a sequence that falls for ever has $A^+=0$, and its $A^-$ grows without end. *Repair:*
# use $F\ge0$. By E7,
#
# $$0\le\mathbb E F(\theta_K)=\mathbb E F(\theta_0)+\mathbb E A^+_K-\mathbb E A^-_K,\qquad\text{so}\qquad\mathbb E A^-_K\le\mathbb E F(\theta_0)+\mathbb E A^+_K\le\mathbb E F(\theta_0)+\sum_kb_k .$$
#
# $\mathbb E A^-_K$ does not decrease with $K$ and is bounded, so it converges, and $\mathbb E F(\theta_K)$ converges as the difference of two convergent sequences. In {prf:ref}`lem-sequence` the same
# is done by $a_k\ge0$. (Another repair is the lower half of the descent lemma for $F$, with $-\frac{L_2}2$ in place of $+\frac{L_2}2$. It gives $-d_k$ the bound
# that {eq}`eq-proof-increment` gives $d_k$, so that $\mathbb E A^-_K\le\sum_kb_k$ too.)
# ````
#
# A counterexample where $F$ is not bounded below: $F(w)=w$, moved by $-\alpha_k$ with $\alpha_k=\frac1{k+1}$. It never rises, and the step sizes satisfy {prf:ref}`ass-steps`. The
# falls add up to $\log K$ and more:

# %%
down = -1 / torch.arange(1, 1_000_001, dtype=torch.float64)
up_to, down_to = rises_and_falls(down)
for K in (100, 10_000, 1_000_000):
    print(f"K = {K:>9,}: A+ {up_to[K - 1]:.1f}, A- {down_to[K - 1]:.1f}")

# %% [markdown]
# On the quadratic, where $F\ge0$, both sums level off, and the mean of $F(\theta_0)+A^+_K-A^-_K$ is left with $\mathbb E F(\theta_K)$ and the chance in $N_K$. Means over the runs:

# %%
for K in (P.steps // 100, P.steps // 10, P.steps):
    up, down_ = (float(total[K - 1].mean()) for total in (rise_so_far, fall_so_far))
    print(f"K = {K:>9,}: A+ {up:.2f}, A- {down_:.2f}")

# %% [markdown]
# Why is "small increments" not enough? The sequence $1+\sin\sqrt{\log k}$ has increments that go to zero and a lower limit of zero, and
# wanders between 0 and 2 for ever. What it lacks is a finite sum of its *rises*. The check on the quadratic
# compares each rise and each fall of the mean with $b_k$, adds the $b_k$, and compares $A^-$ with its bound from E8:

# %%
b_k = 2 * quadratic.smoothness * alpha * square[:-1]
second_moment = m1 + (1 + m2) * square[:-1]
b_k = b_k + quadratic.gradient_smoothness / 2 * alpha**2 * second_moment
change = square.diff()
print(f"every rise at most b_k: {bool((change <= b_k).all())}; sum of b_k: {b_k.sum():.1f}")
print(f"every fall at most b_k: {bool((-change <= b_k).all())}")
print(f"mean of A- {fall.mean():.1f}, its bound F(theta_0) + sum {square[0] + b_k.sum():.1f}")
print(f"sum of the first half: {b_k[: P.steps // 2].sum():.1f}")

# %% [markdown]
# ## The theorem at work, and without its step sizes
#
# Five rules for the step size on the same problem, exact means, all starting with the largest step that {eq}`eq-proof-descent`
# allows, or a tenth of it: $1/k$, for which the theorem is made; constant; constant with two drops to a tenth, as networks are
# trained in practice; $1/k^2$, which breaks $\sum\alpha_k=\infty$; and $1/\sqrt k$, which breaks $\sum\alpha_k^2<\infty$.

# %%
constant = torch.full_like(alpha, largest / 10)
drops = constant * 0.1 ** ((k >= P.steps / 2).double() + (k >= 3 * P.steps / 4).double())
rules = {"1/k": alpha, "constant": constant, "step decay": drops}
rules |= {"1/k²": largest / (1 + k) ** 2, "1/√k": largest / torch.sqrt(1 + k)}
curves = {name: quadratic.expected(start, rule.tolist(), draws)[1] for name, rule in rules.items()}
simulated = paths.mean(dim=1)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Five curves of the expected squared gradient norm against the step, both axes logarithmic. The one for 1/k falls steadily, the constant one levels off, step decay levels off in three stairs, the one for 1/k squared stays high, the one for 1/root k falls slowly.", "classes": "chart"}, "figure": {"name": "fig-proof-steps", "caption": "Expected squared gradient norm of the noisy quadratic under five rules for the step size, computed exactly. Dots: mean of simulated runs for $1/k$, all seeds. Dotted line: the floor of constant steps."}}
fig, ax = plt.subplots()
for (name, curve), line in zip(curves.items(), ("-", "--", "-.", ":", "-"), strict=True):
    ax.plot(range(1, len(curve)), curve[1:], linestyle=line, label=name)
places = sorted({int(x) for x in torch.logspace(0.3, torch.log10(k[-1]).item(), 14)})
ax.plot(places, simulated[places], "o", color="black", label="1/k, simulated")
ax.axhline(quadratic.floor(float(constant[0]), draws), color="gray", linestyle=":", zorder=0)
ax.set(xscale="log", yscale="log", xlabel="step k", ylabel=r"$E\,\|\nabla R(\theta_k)\|^2$")
ax.legend(ncols=2)
save_figure(fig, P.run_dir, "steps")

# %%
half = P.steps // 2
ends = pd.DataFrame(
    [{"rule": name, "half": float(c[half]), "end": float(c[-1])} for name, c in curves.items()]
)
record.table("step_rules", ends.to_dict("records"))
ends.style.hide(axis="index").format("{:.2e}", subset=["half", "end"])

# %%
lowest = quadratic.floor(float(constant[0]), draws)
record.metric("constant_step_floor", lowest)
glue("proof-floor", lowest, display=False)
glue("proof-constant-end", float(curves["constant"][-1]), display=False)
glue("proof-end", float(curves["1/k"][-1]), display=False)
glue("proof-ratio", float(curves["1/k"][half] / curves["1/k"][-1]), display=False)
glue("proof-square", float(curves["1/k²"][-1]), display=False)

# %% [markdown]
# - **$1/k$**: the mean falls to {glue:text}`proof-end:.1e`. From the half to the end of the run it falls by a factor of
#   {glue:text}`proof-ratio:.2f`, so about like $1/k$ itself.
# - **Constant**: it stops at {glue:text}`proof-constant-end:.1e`. The recursion's fixed point is {glue:text}`proof-floor:.1e`; it is
#   proportional to the step size when that is small. The theorem says nothing here, and its conclusion is false.
# - **Step decay**: a staircase of such floors. Each is lower, none is zero.
# - **$1/k^2$**: it stalls at {glue:text}`proof-square:.1e`, having used up its steps.
# - **$1/\sqrt k$**: it falls, although $\sum\alpha_k^2=\infty$. {prf:ref}`ass-steps` is sufficient, not necessary.
#
# ## What the theorem does not say
#
# ````{admonition} Erratum E4: neither a minimum, nor flat, nor the steps used in practice
# :class: warning
# The theorem is about *stationary points of the smoothed risk, in the mean over runs*. It does not show that
# the limit is a local minimum, that it is $b$-flat in the sense of {prf:ref}`def-flat`, or anything for
# constant or step-decayed $\alpha$, with which the networks of the thesis are trained. Besides, the second condition of Definition 3.1,
# that the loss rises beyond the box, constrains only points with *all* coordinates beyond the box. Its relaxed form is the subject of E9.
# ````
#
# One weight is enough to see it. The loss $L(w)=\frac12w^2+A\cos(\pi w/b)$ has a ripple with a period of exactly the width of the
# box. Averaging over the box removes the ripple entirely:

# %%
A = sp.symbols("A", positive=True)
ripple = w**2 / 2 + A * sp.cos(sp.pi * w / b)
sp.simplify(sp.integrate(ripple.subs(w, t), (t, w - b, w + b)) / (2 * b))

# %% [markdown]
# So $w=0$ is not just stationary for the smoothed loss, it is its *unique global minimum*, for every $A$. But at that point $L$ has
# a local *maximum* as soon as $A\pi^2>b^2$, within the box it varies by about $2A$, and its slope reaches about $A\pi/b$: as far from
# $b$-flat as one likes. SGD with noise finds exactly this point. Below, $A=0.3$ and $b=0.5$. A run ends in a local minimum of $L$ only if $L''\ge0$ there; count
# those runs:

# %%
from experiments.fcl.proof import train_under_noise

height, half_width = 0.3, 0.5
short = [1 / (step + 5) for step in range(2000)]


def ripple_loss(x):
    return x**2 / 2 + height * torch.cos(torch.pi * x / half_width)


stream = generator(P.seeds[0], "ripple")
w_k = train_under_noise(ripple_loss, 2.0, half_width, short, 500, stream)
curvature = 1 - height * (torch.pi / half_width) ** 2 * torch.cos(torch.pi * w_k / half_width)

# %%
minima = int((curvature >= 0).sum())
glue("proof-minima", minima, display=False)
glue("proof-ripple-runs", len(w_k), display=False)
record.metric("ripple_ends_in_a_minimum", minima / len(w_k))
print(f"mean {w_k.mean():.3f}, mean squared slope of the smoothed loss {w_k.square().mean():.1e}")

# %% [markdown]
# {glue:text}`proof-minima` of {glue:text}`proof-ripple-runs` runs end in a local minimum.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Left: a parabola with strong ripples and, smooth through its middle, its average over the box; at zero the loss has a hill and the average its minimum. Right: a plane with a flat square in the middle; two of the four corners lead up, two lead down.", "classes": "chart"}, "figure": {"name": "fig-proof-ripple", "caption": "Left: the minimum of the smoothed loss (dashed) is a hilltop of the loss; the shaded box has the half-width of the noise. Right: a loss that satisfies Definition 3.1 at the origin, and falls beyond two corners of the box (dashed square). Formulas, not measurements."}}
fig, (ax, plane) = plt.subplots(1, 2, figsize=(6.4, 3.0))
grid = torch.linspace(-1.6, 1.6, 400)
ax.plot(grid, grid**2 / 2 + 0.3 * torch.cos(torch.pi * grid / 0.5), label="loss")
ax.plot(grid, grid**2 / 2 + 0.5**2 / 6, linestyle="--", label="smoothed loss")
ax.axvspan(-0.5, 0.5, alpha=0.12, color="black")
ax.set(xlabel="weight w", ylabel="loss", ylim=(-0.5, 1.6))
ax.legend(loc="upper center")
edge = grid.sign() * (grid.abs() - 0.5).clamp(min=0)
levels = torch.arange(-1.3, 1.4, 0.2)  # zero in the middle of one
image = plane.contourf(grid, grid, edge[None, :] * edge[:, None], levels=levels, cmap="PuOr_r")
plane.plot([-0.5, 0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5, -0.5], "k--", linewidth=1)
plane.set(xlabel="weight 1", ylabel="weight 2", aspect="equal")
plane.grid(visible=False)
fig.colorbar(image, ax=plane, label="loss", shrink=0.8)
save_figure(fig, P.run_dir, "ripple")

# %% [markdown]
# On the right is the gap in Definition 3.1: $L(w)=p(w_1)\,p(w_2)$, where $p$ is zero within the box and grows beyond it with the
# sign of its argument. Within the box the loss is constant. Where all coordinates are above the box, or all below
# it, the loss is higher, as the definition demands. Where one is above and one is below, the definition demands
# nothing, and the loss falls without end. In $d$ dimensions only 2 of the $2^d$ corners are looked at.


# %%
def beyond(x, half=0.5):
    return x.sign() * (x.abs() - half).clamp(min=0)


corners = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.4, -0.4]])
beyond(corners).prod(dim=1).tolist()

# %% [markdown]
# ````{admonition} Erratum E5: the assumptions and the networks in use
# :class: warning
# - *ReLU and max-pooling have kinks*, so $L(z;\cdot)$ is not smooth. Noise smooths kinks in $\phi$, and only there: $\psi$ and the layers
#   without noise get none.
# - *Batch norm* makes the loss of an image depend on the other images. Then $R$ has to be the expected loss *of a batch*.
# - *The prototype term* is not linear in the batch, as seen at {prf:ref}`ass-unbiased`. So (3.10), the unbiasedness, holds for the
#   expected batch loss only, and the risk that is minimised depends on the batch size.
# - *One global $L$* for all $\theta$ is more than networks with several layers have: their curvature grows with the weights.
# ````
#
# Two of these points in numbers. A ReLU unit $r(w)=\max(w,0)$ whose weight gets noise has a smooth average with slope
# $(w+b)/2b$ in the box. A second weight $v$ without noise, behind another ReLU, keeps its kink: the average of $r(w)+r(v)$ over noise in $w$
# still has a jump of its slope in $v$. And the same image has another loss in another batch:

# %%
relu_average = sp.integrate(t, (t, 0, w + b)) / (2 * b)  # for |w| <= b
print("slope of the averaged ReLU:", sp.factor(sp.diff(relu_average, w)))
relu_v = sp.Max(t, 0).diff(t)
print("slope in v, left and right of 0:", [relu_v.subs(t, value) for value in (-1, 1)])

# %%
inputs, labels = training_images(P.seeds[-1])
split, classifier = measured[P.seeds[-1]][1]
with torch.no_grad():
    split.network.train()
    alone = [classifier(split.network(inputs[i : i + 8])) for i in (0, 1)]
    losses = [
        nn.functional.cross_entropy(scores[1 - i], labels[1]) for i, scores in enumerate(alone)
    ]
[round(float(value), 3) for value in losses]

# %% [markdown]
# The two numbers are the loss of *one* image, seen in two batches that differ in one image.
#
# The theorem also says nothing about single runs (it is about means), about speed beyond the by-product of step 4, about
# accuracy, or about the few-shot sessions: these clamp the weights, which is another algorithm.

# %% [markdown]
# (sec-proof-relaxed)=
# ### The relaxed second condition
#
# Definition 3.1 also has a relaxed form. What this project knows of it is in {prf:ref}`def-flat`: within the box the loss may differ from $L(\theta^\star)$ by a small $e$ and have
# small gradients, and beyond the box it rises. These are not the thesis's words, and they leave open *how far* beyond, and *above what*. So this page examines four ways to understand the second
# condition, for one weight, where every point beyond the box has all its coordinates beyond it. The loss is
#
# - **everywhere**: higher than $L(\theta^\star)$ at every point beyond the box,
# - **next to**: higher than $L(\theta^\star)$ in some strip next to each edge of the box,
# - **from the edge**: increasing outwards from each edge through some strip,
# - **at last**: higher than $L(\theta^\star)$ far out on both sides.
#
# Does any of them follow from what {prf:ref}`thm-proof-main` gives, a stationary point of the smoothed risk? With one weight it is plain what stationary means:
#
# ```{prf:proposition} Stationary means: both edges are equally high
# :label: prp-proof-edges
# Let $L$ be continuous, $\epsilon$ uniform on $[-b,b]$ and $R(w)=\mathbb E\,L(w+\epsilon)$. Then
#
# $$R'(w)=\frac{L(w+b)-L(w-b)}{2b},\qquad\text{and}\qquad R''(w)=\frac{L'(w+b)-L'(w-b)}{2b}$$
#
# where $L$ is differentiable at both edges $w\pm b$.
# ```
#
# ```{prf:proof}
# Put $t=w+\epsilon$: $R(w)=\frac1{2b}\int_{w-b}^{w+b}L(t)\,dt$. As $L$ is continuous, the derivative of the integral with respect to $w$ is $L$ at the upper end less $L$ at the lower end. Differentiate once more.
# ```

# %%
loss_of = sp.Function("L")
average_over_box = sp.Integral(loss_of(t), (t, w - b, w + b)) / (2 * b)
sp.simplify(average_over_box.diff(w) - (loss_of(w + b) - loss_of(w - b)) / (2 * b))

# %% [markdown]
# So $R'(w^\star)=0$ compares the two edges with *each other*. The middle, $L(w^\star)$, does not occur in it, and neither does any point beyond the edges. Both conditions of the definition compare with the middle. If
# $w^\star$ is a local minimum of $R$, then $R''(w^\star)\ge0$, and $L$ cannot fall outwards at *both* edges, as $L'(w^\star+b)<0<L'(w^\star-b)$ would make $R''$ negative. This much is true. It may fall outwards at one edge, though.
#
# Now five losses. Each has $w=0$ as a stationary point of its smoothed risk, and satisfies the assumptions of {prf:ref}`thm-proof-main`. Smoothed, the ripples are parabolas, and so is the valley far out; the crater and the hilltop have bounded first and
# second derivatives. In all five the slope under noise differs from $R'$ by a bounded amount. `train_under_noise` goes to that point.

# %%
from experiments.fcl.proof import smoothed_slope, surroundings

examples = {
    "valley": lambda x: beyond(x, 0.4) ** 2,
    "ripple": ripple_loss,
    "slanted ripple": lambda x: x**2 / 2 + height * torch.sin(torch.pi * x / half_width),
    "crater": lambda x: (1 + 4 * x**2) * torch.exp(-(x**2)),
    "hilltop": lambda x: 1 / (1 + beyond(x) ** 2),
}
first_weights = dict(zip(examples, (2.0, 2.0, 2.0, 0.2, 0.0), strict=True))

# %%
import dataclasses

readings = ["everywhere", "next_to", "from_edge", "at_last"]
rows = []
for name, loss in examples.items():
    stream = generator(P.seeds[0], "readings", name)
    ends_ = train_under_noise(loss, first_weights[name], half_width, short, 500, stream)
    row = {"loss": name, "starts at": first_weights[name], "ends at most": float(ends_.abs().max())}
    row |= {"slope of R": float(smoothed_slope(loss, ends_, half_width).square().mean())}
    rows.append(row | dataclasses.asdict(surroundings(loss, half_width)))

# %%
beyond_the_box = pd.DataFrame(rows)
record.table("beyond_the_box", rows)
columns = {"slope of R": "mean squared slope of R", "variation": "e", "slope": "slope in the box"}
beyond_the_box.rename(columns=columns).style.hide(axis="index").format(precision=3)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Four charts of a loss against the weight, with the box shaded. The ripple has its highest point nearby in the middle and is lower next to the box. The slanted ripple falls from the right edge. The crater rises from the box and falls far out. The hilltop is constant in the box and falls from both edges.", "classes": "chart"}, "figure": {"name": "fig-proof-beyond", "caption": "Four losses whose smoothed risk is stationary at 0; shaded: the box; dotted: the height of the loss in the middle. Condition 2 wants the loss to rise beyond the box. Formulas, not measurements."}}
fig, axes = plt.subplots(2, 2, figsize=(6.4, 4.4), sharex=True)
grid = torch.linspace(-2, 2, 600)
for ax, name in zip(axes.flat, list(examples)[1:], strict=True):
    ax.plot(grid, examples[name](grid))
    ax.axhline(float(examples[name](torch.zeros(1))), color="gray", linestyle=":")
    ax.axvspan(-half_width, half_width, alpha=0.12, color="black")
    ax.set(title=name)
for ax in axes[1]:
    ax.set_xlabel("weight w")
for ax in axes[:, 0]:
    ax.set_ylabel("loss")
save_figure(fig, P.run_dir, "beyond")

# %%
kept = [name for name in readings if bool(beyond_the_box[name].all())]
fails = {name: int((~beyond_the_box[name]).sum()) for name in readings}
for name, count in fails.items():
    glue(f"proof-{name.replace('_', '-')}", count, display=False)
glue("proof-kept", len(kept), display=False)
glue("proof-examples", len(examples), display=False)

# %% [markdown]
# ````{admonition} Erratum E9: condition 2, strict or relaxed, is not examined
# :class: warning
# The thesis defines the point that training is to find by two conditions, and then proves that training ends in a stationary point of the smoothed risk. The proof looks neither at the strict nor at the relaxed second
# condition. It could not show them: for each of the four ways to understand "the loss rises beyond the box" there is a loss that satisfies all assumptions and does not rise
# so around the point where training under noise ends. *What holds* is {prf:ref}`prp-proof-edges`: at a local minimum of the smoothed risk, with one weight and a loss that is differentiable at the edges of the box, the loss cannot slope downwards beyond both of them. *What follows:* condition 2 is to be measured at the
# point found, or to be dropped from the definition. The method does not use it: the clamp keeps the weights within the box.
# ````
#
# Of {glue:text}`proof-examples` losses, *everywhere* fails for {glue:text}`proof-everywhere`, *next to* for {glue:text}`proof-next-to`, *from the edge* for {glue:text}`proof-from-edge` and *at last* for
# {glue:text}`proof-at-last`. The number of readings that hold for all is {glue:text}`proof-kept`. Four remarks:
#
# - Multiply a loss by a small positive number. Then its variation and its slopes in the box are as small as one likes, and none of the readings changes. So the second condition fails also where the first one holds.
# - *Everywhere* asks that no better valley exists anywhere, which nobody can check for a network. A relaxation is needed.
# - A tolerance, "higher than $L(\theta^\star)-e$", does not help. By continuity it makes *next to* true for *every* loss, in a narrow enough strip. *At last* still fails: the hilltop has $L=1$ in the middle and tends to $0$ far
#   out, so it fails for every $e<1$, with a flatness within the box that cannot be better.
# - The hilltop is a maximum of $R$, and training stays there only because it starts there. The ripples and the crater are found from other starts, and their point is a local minimum of $R$.
#
# With more weights the gap of {numref}`fig-proof-ripple` comes on top: the loss $p(w_1)\,p(w_2)$ satisfies the strict second condition as it is printed, and so every condition that asks for less.

# %% [markdown]
# (sec-proof-claims)=
# ## Claims of the thesis, and what became of them
#
# Each verdict follows from a rule that counts cases: reproduced if the claim holds in all of them, mixed if in some, not reproduced if in none. The cases are
#
# - for the limit: fourfold stretches of steps, over which $\mathbb E F$ on the noisy quadratic must at least halve (`halvings`; any fixed factor below one would do). A curve that ends at a floor stops doing so, as the one for constant steps
#   shows: {glue:text}`proof-halvings-constant` of {glue:text}`proof-stretches` stretches, against {glue:text}`proof-halvings` for $1/k$;
# - for the variance: the measurements on the network with the most draws, which must stay below (3.19);
# - for the flat minimum: the runs on the ripple, which must end in a local minimum of the loss;
# - for the relaxed condition: the four readings, each of which must hold for all five losses.

# %%
from experiments.fcl.proof import halvings
from experiments.run.claims import Claim, claim_rows, claims_table, verdict_of_share

hits, stretches = halvings(curves["1/k"])
glue("proof-halvings", hits, display=False)
glue("proof-halvings-constant", halvings(curves["constant"])[0], display=False)
glue("proof-stretches", stretches, display=False)
ratio = variance[variance["draws"] == max(P.averaged_draws)].eval("measured / printed")
spread = f"{ratio.min():.1f} to {ratio.max():.1f} times the printed bound, {len(ratio)} cases"

# %%
claims = [
    Claim(
        "Under its assumptions training with noise makes the expected squared gradient go to zero",
        "Theorem 3.1", "limit 0",
        f"proved on this page, with repairs; on the noisy quadratic it halves in {hits} of {stretches} "
        f"fourfold stretches of steps, from {curves['1/k'][0]:.1f} to {curves['1/k'][-1]:.1e}",
        "a problem with known constants; the constants of the variance are the repaired ones",
        verdict_of_share(hits, stretches), "thm-proof-main",
    ),
    Claim(
        "The mean of M noise draws has at most 1/M of the variance of one", "Equation (3.19)", "V[g] / M",
        f"with {max(P.averaged_draws)} draws {spread} (before and after training; seeds: {len(P.seeds)})",
        "small ResNet18; the draws share a batch, as in the method",
        verdict_of_share(int((ratio <= 1).sum()), len(ratio)), "fig-proof-variance",
    ),
]  # fmt: skip

# %%
one_weight = "a loss of one weight that satisfies the assumptions of the theorem"
claims += [
    Claim(
        "Training under noise converges to a flat local minimum", "Chapter 3", "stated in words",
        f"{minima} of {len(w_k)} runs end in a local minimum of the loss, which varies by "
        f"{surroundings(ripple_loss, half_width).variation:.2f} in the box",
        one_weight, verdict_of_share(minima, len(w_k)), "fig-proof-ripple",
    ),
    Claim(
        "Beyond the box around the point found the loss rises: condition 2, also relaxed",
        "Definition 3.1", "part of the definition",
        f"{len(kept)} of {len(readings)} readings hold for all losses; they fail for "
        f"{min(fails.values())} to {max(fails.values())} of the {len(examples)}",
        f"{one_weight}; the relaxed wording is read in four ways",
        verdict_of_share(len(kept), len(readings)), "sec-proof-relaxed",
    ),
]  # fmt: skip
record.table("claims", claim_rows(claims))
claims_table(claims).style.hide(axis="index")

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-proof-second
# *On paper.* Show that {prf:ref}`ass-second` is not needed: under {prf:ref}`ass-smooth` to {prf:ref}`ass-steps` alone,
# $\lim_k\mathbb E F(\theta_k)=0$. Hint: let $r_k=\sqrt{\mathbb E F(\theta_k)}$ and show $|r_{k+1}-r_k|\le C\alpha_k$. Then check the bound on the
# noisy quadratic.
# ```
#
# ```{solution-start} ex-proof-second
# :class: dropdown
# ```
#
# $r_k$ is a norm of the random vector $\nabla R(\theta_k)$, the one that belongs to $\mathbb E[X^\top Y]$. By the triangle inequality and
# **{prf:ref}`ass-smooth`**,
#
# $$|r_{k+1}-r_k|\le\sqrt{\mathbb E\lVert\nabla R(\theta_{k+1})-\nabla R(\theta_k)\rVert^2}\le L\alpha_k\sqrt{\mathbb E\lVert\bar g_k\rVert^2}\le L\alpha_k\sqrt{m_1+(1+m_2)r_k^2} .$$
#
# By {eq}`eq-proof-descent` $\mathbb E R(\theta_k)$ is bounded, so $r_k$ is by {prf:ref}`lem-descent`, and
# $|r_{k+1}-r_k|\le C\alpha_k$.
#
# Suppose $\limsup r_k>2\delta>0$. As $\liminf r_k=0$, there are infinitely many disjoint stretches $p<k<q$ with $r_p\le\delta$,
# $r_k>\delta$ in between, and $r_q\ge2\delta$. On each, $\delta\le r_q-r_p\le C\sum_{k=p}^{q-1}\alpha_k$, so
# $\sum_{k=p+1}^{q-1}\alpha_kr_k^2\ge\delta^2\big(\frac\delta C-\alpha_p\big)$, which is at least $\frac{\delta^3}{2C}$ once $\alpha_p$ is small.
# Infinitely many such stretches contradict $\sum_k\alpha_kr_k^2<\infty$ from step 4. (It also shows $q>p+1$ for late stretches.) So $r_k\to0$.

# %%
r = square.sqrt()
allowed = quadratic.smoothness * alpha * torch.sqrt(m1 + (1 + m2) * square[:-1])
print(f"largest |r_(k+1) - r_k| over its bound: {float((r.diff().abs() / allowed).max()):.2f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-proof-floor
# *Predict, then run.* One step may cost 32 gradients. Either one batch with $M=32$ noise draws, or 32 independent pairs
# of a batch and a draw. Which floor do constant steps have on the noisy quadratic in each case?
# ```
#
# ```{solution-start} ex-proof-floor
# :class: dropdown
# ```

# %%
pairs_of_32 = NoisyQuadratic(
    h, quadratic.optimum, quadratic.perturbed, bound=quadratic.bound,
    batch_std=quadratic.batch_std / 32**0.5, batch_scale=quadratic.batch_scale / 32**0.5,
)  # fmt: skip
step = float(constant[0])
shared, separate = quadratic.floor(step, 32), pairs_of_32.floor(step, 32)
print(
    f"one draw {quadratic.floor(step, 1):.1e}, shared batch {shared:.1e}, 32 pairs {separate:.1e}"
)

# %% [markdown]
# More draws on one batch remove the noise part and leave the batch part. Pairs divide all of it by 32, which is what (3.19)
# promises. (The mean of 32 independent values of $u$ is not $\pm\tau/\sqrt{32}$, but has that variance, and only the
# variance enters. A small cross term, noise times $u$, is taken at $1+\tau^2/32$ in place of $1+\tau^2$.) In practice this is an argument for a larger batch with few draws.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-proof-code
# *Write code.* Find a step-size rule with $\sum\alpha_k=\infty$ and $\sum\alpha_k^2<\infty$ for which the quadratic converges more slowly than
# with $1/\sqrt k$ at the last step of this run. What does that say about reading a rate out of {prf:ref}`thm-proof-main`?
# ```
#
# ```{solution-start} ex-proof-code
# :class: dropdown
# ```

# %%
slow = 0.05 * largest / (1 + k)
end = float(quadratic.expected(start, slow.tolist(), draws)[1][-1])
print(f"0.05/k: {end:.1e}, 1/sqrt k: {float(curves['1/√k'][-1]):.1e}")

# %% [markdown]
# Both sums are as they should be, and the theorem promises a limit of zero. But $\sum_{k\le n}\alpha_k$ grows so slowly, like
# $0.05\log n$, that the start is hardly forgotten. The theorem has no rate; the by-product of step 4 has one, and there $\sum\alpha_k$ stands in
# the denominator.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - The conclusion of Theorem 3.1 holds under its assumptions. Its printed proof needs repairs at the variance (E1), at the increments of $F$
#   (E2), at the indices (E3), where the steps become small (E6), and where rises and falls are added up (E7, E8). None of them changes the conclusion.
# - Noise draws that share a batch do not replace batches: the batch part of the variance is a floor.
# - Smoothness of $\lVert\nabla R\rVert^2$ can be dropped.
# - A stationary point of the smoothed risk need be neither a minimum of the loss nor flat (E4), the loss need not rise beyond the box in any sense (E9), and the assumptions do not
#   hold for the networks in use (E5). That the minima found *are* flat is shown by measuring, in {ref}`chap-fcl`, not by this theorem.
#
# ## Further reading
#
# Bottou, Curtis and Nocedal {cite}`bottou2018optimization` prove theorems of this kind with all details. Robbins and
# Monro {cite}`robbins1951stochastic` introduced the two sums. Robbins and Siegmund {cite}`robbins1971convergence` give the random
# version of {prf:ref}`lem-sequence`, which leads from means to almost every single run.

# %%
path = record.save(P.run_dir)
print(
    f"Record with {len(record.tables)} tables and {len(record.metrics)} metrics; saved: {path is not None}"
)
