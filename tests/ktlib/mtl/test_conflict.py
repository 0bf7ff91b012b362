import itertools
import math
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.mtl.aggregation import aggregator
from ktlib.mtl.conflict import BINS, SEVERITIES, ConflictMeter, pair_cosines
from ktlib.mtl.gradients import apply_gradients, gramian
from ktlib.mtl.layers import layers_of

DEVICE = torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))
SEARCHES = ["observe", "observe_gramians"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 8),
        nn.Tanh(),
        nn.Linear(8, 6),
    ).to(DEVICE, torch.float64)


def heads_of(tasks, width=6, seed=1):
    torch.manual_seed(seed)
    heads = {f"task{i}": nn.Linear(width, 3) for i in range(tasks)}
    return {name: head.to(DEVICE, torch.float64) for name, head in heads.items()}


def losses_of(trunk, heads, seed, size=6):
    """Losses of one batch, each task with labels of its own."""
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, size, size, generator=source).to(next(trunk.parameters()))
    features = trunk(images)
    losses = {}
    for task, head in heads.items():
        labels = torch.randint(3, (8,), generator=source).to(DEVICE)
        losses[task] = F.cross_entropy(head(features), labels)
    return losses


def own_of(heads):
    return {task: list(head.parameters()) for task, head in heads.items()}


def counts(meter):
    state = meter.state_dict()
    return {
        name: torch.as_tensor(value).tolist()
        for name, value in state.items()
        if name in ("conflicts", "histograms", "observations")
    }


def by_separate_passes(trunk, heads, seeds, severity, layers):
    """Conflict scores from a forward and a backward pass of its own for every task."""
    scores = dict.fromkeys(layers, 0)
    for seed in seeds:
        gradients = {}
        for task in heads:
            trunk.zero_grad()
            losses_of(trunk, heads, seed)[task].backward()
            gradients[task] = {
                name: torch.cat([p.grad.flatten().clone() for p in layer])
                for name, layer in layers.items()
            }
        for one, other in itertools.combinations(heads, 2):
            for name in layers:
                cosine = F.cosine_similarity(gradients[one][name], gradients[other][name], dim=0)
                scores[name] += int(cosine < severity)
    trunk.zero_grad()
    return scores


class Vectors(nn.Module):
    """Two layers that the losses are linear in: the gradients are the inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.to(DEVICE, torch.float64)

    def forward(self, to_first, to_second):
        rows = [
            torch.tensor(row, dtype=torch.float64, device=DEVICE) for row in (to_first, to_second)
        ]
        return (self.first(rows[0]) + self.second(rows[1])).sum()


def direction(degrees, length=1.0):
    angle = math.radians(degrees)
    return [length * math.cos(angle), length * math.sin(angle)]


@pytest.mark.parametrize("search", SEARCHES)
def test_known_angles(search):
    """120 and 95 degrees on the layers; together 2 cos 120 + 6 cos 95 over lengths (2.2, 3.6)."""
    trunk = Vectors()
    meter = ConflictMeter(trunk, severities=(0.0, -0.1, -0.4, -0.6))
    getattr(meter, search)(
        {
            "a": trunk(direction(10, 1.0), direction(20, 2.0)),
            "b": trunk(direction(130, 2.0), direction(115, 3.0)),
        }
    )
    assert meter.scores(0.0) == {"first": 1, "second": 1}
    assert meter.scores(-0.1) == {"first": 1, "second": 0}  # cos 95 = -0.087
    assert meter.scores(-0.4) == {"first": 1, "second": 0}
    assert meter.scores(-0.6) == {"first": 0, "second": 0}  # cos 120 = -0.5
    together = (2 * math.cos(math.radians(120)) + 6 * math.cos(math.radians(95))) / math.sqrt(
        5 * 13
    )
    assert -0.4 < together < -0.1
    assert [meter.shared_score(s) for s in meter.severities] == [1, 1, 0, 0]
    assert meter.histogram("second")[BINS.index(-0.09)] == 1
    assert sum(meter.histogram("second")) == 1
    assert meter.histogram()[sum(edge <= together for edge in BINS) - 1] == 1
    assert meter.observations == 1
    assert meter.pairs == {"first": 1, "second": 1}
    assert meter.mean_angles() == pytest.approx({"first": 120.0, "second": 95.0})


def test_mean_angles_are_over_all_pairs_and_steps(tmp_path):
    trunk, meter = Vectors(), ConflictMeter(Vectors())
    assert all(math.isnan(angle) for angle in meter.mean_angles().values())
    for degrees in (30, 90):
        part = ConflictMeter(trunk)
        part.observe(
            {"a": trunk(direction(0), direction(0)), "b": trunk(direction(degrees), direction(60))}
        )
        torch.save(part.state_dict(), tmp_path / "part.pt")
        loaded = ConflictMeter(trunk)
        loaded.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
        meter.merge(loaded)
    assert meter.mean_angles() == pytest.approx({"first": 60.0, "second": 60.0})
    meter.load_state_dict(part.state_dict())
    assert meter.mean_angles() == pytest.approx({"first": 90.0, "second": 60.0})


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("tasks", [2, 5])
def test_one_pass_counts_what_separate_passes_count(search, tasks):
    trunk, heads = network(), heads_of(tasks)
    meter = ConflictMeter(trunk)
    seeds = range(6)
    for seed in seeds:
        getattr(meter, search)(losses_of(trunk, heads, seed))
    for severity in (0.0, -0.04, -0.15):
        expected = by_separate_passes(trunk, heads, seeds, severity, layers_of(trunk))
        assert meter.scores(severity) == expected
    assert 0 < sum(meter.scores(-0.15).values()) < sum(meter.scores(0.0).values())
    assert meter.observations == 6
    assert set(meter.pairs.values()) == {6 * tasks * (tasks - 1) // 2}


def test_the_gradients_are_those_of_backward():
    trunk, heads = network(), heads_of(3)
    found = ConflictMeter(trunk).observe(losses_of(trunk, heads, 0), task_parameters=own_of(heads))
    assert found.tasks == ("task0", "task1", "task2")
    for row, task in enumerate(found.tasks):
        trunk.zero_grad()
        losses_of(trunk, heads, 0)[task].backward()
        expected = torch.cat([p.grad.flatten() for p in trunk.parameters()])
        torch.testing.assert_close(found.matrix[row], expected)
    own = {id(parameter): gradient for parameter, gradient in found.own}
    for head in heads.values():
        torch.testing.assert_close(own[id(head.weight)], head.weight.grad)


def test_gramians_are_exact_and_counted_alike():
    trunk, heads = network(), heads_of(5)
    kept, dropped = ConflictMeter(trunk), ConflictMeter(trunk)
    gradients = kept.observe(losses_of(trunk, heads, 3), task_parameters=own_of(heads))
    gramians = dropped.observe_gramians(losses_of(trunk, heads, 3), task_parameters=own_of(heads))
    expected = gradients.matrix @ gradients.matrix.T
    torch.testing.assert_close(gramians.shared, expected.cpu(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(sum(gramians.layers.values()), gramians.shared)
    assert counts(kept) == counts(dropped)
    assert len(gramians.own) == len(gradients.own) == 10
    for (one, left), (other, right) in zip(gradients.own, gramians.own, strict=True):
        assert one is other
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_task_may_leave_layers_out(search):
    """The pair of the two early tasks has no cosine on the last layer, where they are not."""
    torch.manual_seed(0)
    first, last = (nn.Linear(4, 4).to(DEVICE, torch.float64) for _ in range(2))
    trunk = nn.ModuleList([first, last])
    x = torch.randn(5, 4, dtype=torch.float64, device=DEVICE)
    early = first(x).tanh()
    late = last(early)
    losses = {"a": late.sum(), "b": late.square().sum(), "c": early.sum(), "d": -early.sum()}
    meter = ConflictMeter(trunk)
    getattr(meter, search)(losses)
    assert meter.pairs == {"0": 6, "1": 1}
    assert meter.histogram("0")[0] == 1  # c against d


def test_bins_below_a_severity_hold_its_conflicts():
    trunk, heads = network(), heads_of(4)
    meter = ConflictMeter(trunk, batch_norm=False)
    for seed in range(5):
        meter.observe(losses_of(trunk, heads, seed))
    assert meter.layers == ("0", "4", "6")
    for severity in SEVERITIES:
        below = BINS.index(severity)
        scores = meter.scores(severity)
        for layer in meter.layers:
            assert sum(meter.histogram(layer)[:below]) == scores[layer]
        assert sum(meter.histogram()[:below]) == meter.shared_score(severity)
    assert sum(meter.histogram()) == 5 * 6


@pytest.mark.parametrize("search", SEARCHES)
def test_batch_norms_are_part_of_the_shared_gradient_either_way(search):
    """The tasks agree on the layer; on the norm they want the opposite, three times as much."""
    trunk = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).to(DEVICE, torch.float64)
    for batch_norm in (False, True):
        meter = ConflictMeter(trunk, batch_norm=batch_norm)
        layer, norm = trunk[0].weight.sum(), 3 * trunk[1].bias.sum()
        getattr(meter, search)({"a": layer + norm, "b": layer - norm})
        assert meter.layers == (("0", "1") if batch_norm else ("0",))
        assert meter.scores(-0.15) == ({"0": 0, "1": 1} if batch_norm else {"0": 0})
        assert meter.histogram()[BINS.index(-0.8)] == 1  # cos = (1 - 9) / (1 + 9)
        assert meter.shared_score(-0.15) == 1


def test_edges_belong_to_the_bin_above_them():
    """cos = 0 is no conflict; opposite and equal gradients are in the outer bins."""
    trunk = Vectors()
    meter = ConflictMeter(trunk, severities=[0.0], bins=(-1.0, 0.0, 1.0))
    meter.observe({"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([0.0, 1.0], [3.0, 0.0])})
    meter.observe({"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([-2.0, 0.0], [3.0, 0.0])})
    assert meter.histogram("first") == [1, 1]
    assert meter.histogram("second") == [0, 2]
    assert meter.scores(0.0) == {"first": 1, "second": 0}


def test_ranking_breaks_ties_by_the_order_of_the_network():
    trunk = Vectors()
    layers = {"late": [trunk.second.weight], "early": [trunk.first.weight]}
    meter = ConflictMeter(layers, [0.0, -0.2, -0.9])
    with pytest.raises(ValueError, match="nothing to rank: no conflict of severity 0.0 in 0 steps"):
        meter.ranking(0.0)
    meter.observe({"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([-1.0, 1.0], [3.0, 0.0])})
    assert meter.ranking(0.0) == ["early", "late"]
    with pytest.raises(ValueError, match=r"of severity -0.9 in 1 steps. .* severity \[0.0, -0.2\]"):
        meter.ranking(-0.9)  # cos 135 degrees
    meter.observe({"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([1.0, 0.0], [-3.0, 0.0])})
    assert meter.ranking(0.0) == ["late", "early"]


def test_quarters_add_up_to_the_whole_search():
    trunk, heads = network(), heads_of(3)
    whole, quarters = ConflictMeter(trunk), [ConflictMeter(trunk) for _ in range(4)]
    for seed in range(8):
        whole.observe(losses_of(trunk, heads, seed))
        quarters[seed // 2].observe(losses_of(trunk, heads, seed))
    merged = ConflictMeter(trunk)
    for quarter in quarters:
        before = counts(quarter)
        merged.merge(quarter)
        assert counts(quarter) == before
    assert counts(merged) == counts(whole)


def test_a_search_goes_on_where_it_was_saved(tmp_path):
    trunk, heads = network(), heads_of(3)
    whole, first = ConflictMeter(trunk), ConflictMeter(trunk)
    for seed in range(4):
        whole.observe(losses_of(trunk, heads, seed))
    for seed in range(2):
        first.observe(losses_of(trunk, heads, seed))
    torch.save(first.state_dict(), tmp_path / "search.pt")
    second = ConflictMeter(trunk)
    second.observe(losses_of(trunk, heads, 9))  # replaced by what is loaded
    for _ in range(2):
        second.load_state_dict(torch.load(tmp_path / "search.pt", weights_only=True))
        assert counts(second) == counts(first)
    for seed in range(2, 4):
        second.observe(losses_of(trunk, heads, seed))
    assert counts(second) == counts(whole)
    assert counts(first) != counts(whole)


def test_counts_of_another_meter_are_refused():
    trunk = network()
    meter = ConflictMeter(trunk)
    for other, name in [
        (ConflictMeter(trunk, batch_norm=False), "layers"),
        (ConflictMeter(trunk, [0.0]), "severities"),
        (ConflictMeter(trunk, bins=(-1, 0, 1)), "bins"),
    ]:
        with pytest.raises(ValueError, match=f"{name} of the counts must be"):
            meter.merge(other)
        with pytest.raises(ValueError, match=f"{name} of the counts must be"):
            meter.load_state_dict(other.state_dict())
    assert meter.observations == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_counting_leaves_no_gradients_behind(search):
    trunk, heads = network(), heads_of(2)
    losses = losses_of(trunk, heads, 0)
    getattr(ConflictMeter(trunk), search)(losses)
    assert all(p.grad is None for p in trunk.parameters())
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(losses["task1"], list(trunk.parameters()))
    losses = losses_of(trunk, heads, 0)
    getattr(ConflictMeter(trunk), search)(losses, retain_graph=True)
    assert torch.autograd.grad(losses["task1"], list(trunk.parameters()))


@pytest.mark.parametrize("search", SEARCHES)
def test_half_precision_counts_in_single_precision(search):
    """Under autocast or outside of it, the inner products are not those of bfloat16."""
    trunk, heads = network().float(), heads_of(3)
    heads = {task: head.float() for task, head in heads.items()}
    found = []
    for inside in (True, False):
        meter = ConflictMeter(trunk)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            losses = losses_of(trunk, heads, 0)
            if inside:
                result = getattr(meter, search)(losses)
        if not inside:
            result = getattr(meter, search)(losses)
        found.append((counts(meter), result))
    assert found[0][0] == found[1][0]
    if search == "observe":
        rows = found[0][1].matrix
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, found[1][1].matrix)
    else:
        # Products of half precision would agree to 2 or 3 digits only.
        torch.testing.assert_close(found[0][1].shared, found[1][1].shared, rtol=1e-5, atol=0)
        kept = ConflictMeter(trunk)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            rows = kept.observe(losses_of(trunk, heads, 0)).matrix.double()
        torch.testing.assert_close(found[0][1].shared, (rows @ rows.T).cpu(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_lengths_whose_squares_leave_single_precision(search, size):
    trunk = Vectors().float()
    a = size * (trunk.first(torch.tensor([1.0, 0.0], device=DEVICE)) + trunk.second.weight.sum())
    b = size * (trunk.first(torch.tensor([-1.0, 1.0], device=DEVICE)) + trunk.second.weight.sum())
    meter = ConflictMeter(trunk)
    getattr(meter, search)({"a": a.sum(), "b": b.sum()})
    assert meter.histogram("first")[BINS.index(-0.71)] == 1  # cos 135 degrees
    assert meter.histogram("second")[-1] == 1


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("size", "expected"), [(0.0, []), (1e-30, ["first"])])
def test_only_rows_that_are_short_but_not_0_go_through_double_precision(
    search, size, expected, monkeypatch
):
    """A task without gradient costs no second pass; its zeros beside a short row change nothing."""
    wide = []

    def watched(rows):
        wide.extend(["first"] * (rows.dtype == torch.float64))
        return gramian(rows)

    monkeypatch.setattr("ktlib.mtl.conflict.gramian", watched)
    trunk = Vectors().float()
    ones, mixed = torch.ones(2, device=DEVICE), torch.tensor([0.1, -0.3], device=DEVICE)
    rows = {"a": 0 * ones, "b": size * ones, "c": mixed, "d": ones}
    losses = {t: (trunk.first(row) + trunk.second(mixed)).sum() for t, row in rows.items()}
    meter = ConflictMeter(trunk)
    getattr(meter, search)(losses)
    assert wide == expected
    assert meter.pairs == {"first": 3 if size else 1, "second": 6}
    assert meter.histogram("first")[BINS.index(-0.45)] == (2 if size else 1)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_name_task_and_layer(search, bad):
    trunk = Vectors()
    meter = ConflictMeter(trunk)
    good = {"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([0.0, 1.0], [3.0, 0.0])}
    getattr(meter, search)(good)
    before = counts(meter)
    losses = {"a": trunk([1.0, 0.0], [1.0, 0.0]), "b": trunk([0.0, 1.0], [bad, 0.0])}
    with pytest.raises(FloatingPointError, match="task 'b' is not finite on layer 'second'"):
        getattr(meter, search)(losses)
    assert counts(meter) == before


@pytest.mark.parametrize("search", SEARCHES)
def test_losses_that_cannot_be_searched_are_refused(search):
    trunk, heads = network(), heads_of(2)
    meter = ConflictMeter(trunk)
    losses = losses_of(trunk, heads, 0)
    apart = nn.Linear(3, 1).to(DEVICE, torch.float64)
    ones = torch.ones(3, dtype=torch.float64, device=DEVICE)

    def refuse(message, **changed):
        with pytest.raises(ValueError, match=message):
            getattr(meter, search)(losses | changed, retain_graph=True)

    refuse("loss of task 'alone' does not depend on the shared", alone=apart(ones).sum())
    refuse("loss of task 'still' does not depend on the shared", still=torch.zeros(()))
    refuse("loss of task 'task1' must be a scalar. Found shape \\(8,\\)", task1=torch.ones(8))
    with pytest.raises(ValueError, match="at least 1 task. Found {}"):
        getattr(meter, search)({})
    with pytest.raises(ValueError, match=r"task_parameters must name tasks .* Found \['other'\]"):
        getattr(meter, search)(losses, task_parameters={"other": apart.parameters()})
    for wrong, message in [
        (list(losses.values()), "losses must be a dict with the names of tasks. Found list"),
        (torch.stack(list(losses.values())), "losses must be a dict .* Found Tensor"),
        (losses | {"task1": 0.5}, "loss of task 'task1' must be a tensor with .* Found float"),
        (losses | {"task1": [losses["task1"]]}, "loss of task 'task1' must be .* Found list"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(meter, search)(wrong)
    for wrong, message in [
        (heads["task0"].parameters(), "task_parameters must be a dict .* Found generator"),
        (heads, "task_parameters of task 'task0' must be a list of parameters. Found Linear"),
        ({"task1": heads["task1"].bias}, "of task 'task1' must be a list .* Found Parameter"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(meter, search)(losses, task_parameters=wrong)
    with pytest.raises(ValueError, match="task 'task0' has parameters of its own that are also"):
        getattr(meter, search)(losses, task_parameters={"task0": [trunk[0].weight]})
    trunk[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="must require gradients. Found 1 of 8 frozen"):
        getattr(meter, search)(losses)
    assert meter.observations == 0


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_of_a_head_that_are_not_finite_name_the_task(search, bad):
    trunk, heads = network(), heads_of(3)
    meter, losses = ConflictMeter(trunk), losses_of(trunk, heads, 0)
    losses["task1"] = losses["task1"] + bad * heads["task1"].bias.sum()
    with pytest.raises(FloatingPointError, match=r"task 'task1' .* own parameter of shape \(3,\)"):
        getattr(meter, search)(losses, task_parameters=own_of(heads))
    assert meter.observations == 0
    assert not any(map(sum, counts(meter)["histograms"]))


@pytest.mark.parametrize("search", SEARCHES)
def test_sparse_gradients_count_as_dense_ones(search):
    """Of an embedding in the trunk, and of one in a head, whose gradient stays sparse."""
    words, found = torch.arange(12, device=DEVICE).view(4, 3) % 7, []
    for sparse in (True, False):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Embedding(9, 2, sparse=sparse), nn.Flatten(), nn.Linear(6, 5))
        trunk.to(DEVICE)
        heads = {t: nn.Linear(5, 1).to(DEVICE) for t in "ab"}
        extra = nn.Embedding(9, 2, sparse=sparse).to(DEVICE)
        meter, features = ConflictMeter(trunk), trunk(words)
        losses = {
            t: (head(features) - i).square().mean() for i, (t, head) in enumerate(heads.items())
        }
        losses["b"] = losses["b"] + extra(words).square().sum()
        result = getattr(meter, search)(losses, task_parameters={"b": extra.parameters()})
        found.append([counts(meter), getattr(result, "matrix", 0), result.own[0][1].to_dense()])
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_a_tied_weight_counts_under_its_first_name():
    """As by hand: the gradient of the weight is the sum over both of its places."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).to(DEVICE, torch.float64)
    trunk[2].weight = trunk[0].weight
    x = torch.randn(4, 3, dtype=torch.float64, device=DEVICE)
    losses = {"a": trunk(x).sum(), "b": trunk(x).square().mean()}
    rows = [
        torch.autograd.grad(v, list(trunk.parameters()), retain_graph=True) for v in losses.values()
    ]
    first = [torch.cat([row[0].flatten(), row[1]]) for row in rows]
    for search in SEARCHES:
        meter = ConflictMeter(trunk, bins=(-1.0, 0.0, 0.5, 1.0))
        getattr(meter, search)(losses, retain_graph=True)
        assert meter.layers == ("0", "2")
        for layer, pair in (("0", first), ("2", [row[2] for row in rows])):
            cosine = F.cosine_similarity(*pair, dim=0)
            expected = [int(low <= cosine < high) for low, high in ((-1, 0), (0, 0.5), (0.5, 1))]
            assert meter.histogram(layer) == expected


def scaled_steps(scale, steps):
    """A head and a trunk in float32, trained with losses times a scale; the meter and the scale."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 4).to(DEVICE), {t: nn.Linear(4, 2).to(DEVICE) for t in "ab"}
    x = torch.randn(16, 4).to(DEVICE)
    parameters = [p for module in (trunk, *heads.values()) for p in module.parameters()]
    optimizer, meter = torch.optim.SGD(parameters, lr=1e-3), ConflictMeter(trunk)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=scale or 1.0, enabled=scale is not None)
    for _ in range(steps):
        optimizer.zero_grad()
        features = trunk(x)
        losses = {
            t: 64 * (h(features) - i).square().mean() for i, (t, h) in enumerate(heads.items())
        }
        losses = {task: scaler.scale(loss) for task, loss in losses.items()}
        given = {} if scale is None else {"loss_scale": scaler.get_scale()}
        own = {t: h.parameters() for t, h in heads.items()}
        gradients = meter.observe(losses, task_parameters=own, **given)
        # FairGrad's update does not grow with the gradients: they must come without the scale.
        apply_gradients(trunk, gradients, aggregator("fairgrad"))
        scaler.step(optimizer)
        scaler.update()
    return parameters, meter, scaler.get_scale()


def test_scaled_losses_count_and_train_as_plain_ones():
    plain, scaled = scaled_steps(None, 3), scaled_steps(2.0**12, 3)
    torch.testing.assert_close(scaled[0], plain[0])
    assert counts(scaled[1]) == counts(plain[1])


def test_a_scaler_backs_off_where_scaled_gradients_overflow():
    """Losses of 64 times 2**127 are not finite in float32; some factors later they are."""
    start = scaled_steps(None, 0)[0]
    skipped, meter, scale = scaled_steps(2.0**127, 1)
    torch.testing.assert_close(skipped, start, rtol=0, atol=0)
    assert (meter.observations, scale) == (0, 2.0**126)
    _, meter, scale = scaled_steps(2.0**127, 12)
    assert 0 < meter.observations < 12
    assert scale == 2.0 ** (127 - (12 - meter.observations))


def test_pairs_of_tasks_by_hand():
    """Cosines of 120 degrees (a, b), 90 (a, c), -30 (b, c) on the first layer, lengths 1, 2, 3."""
    trunk = Vectors()
    meter = ConflictMeter(trunk, severities=(0.0, -0.6), task_pairs=True)
    with pytest.raises(ValueError, match="must be made with task_pairs=True"):
        ConflictMeter(trunk).pair_rows(0.0)
    with pytest.raises(ValueError, match=r"tasks must be 2 names. Found \[\]"):
        meter.count(dict.fromkeys(meter.layers, torch.eye(2)))
    meter = ConflictMeter(trunk, severities=(0.0, -0.6), task_pairs=True)

    def losses(*names):
        directions = {"a": (0, 1.0), "b": (120, 2.0), "c": (90, 3.0)}
        none = [0.0, 0.0]
        return {
            n: trunk(direction(*directions[n]), none if n == "c" else [1.0, 0.0]) for n in names
        }

    meter.observe(losses("a", "b", "c"))
    meter.observe(losses("b", "a"))  # another order, and a task is absent
    rows = {(row["first"], row["second"], row["layer"]): row for row in meter.pair_rows(0.0)}
    assert set(rows) == {
        ("a", "b", "first"), ("a", "b", "second"), ("a", "b", None), ("a", "c", "first"),
        ("a", "c", None), ("b", "c", "first"), ("b", "c", None),
    }  # fmt: skip
    first = rows["a", "b", "first"]
    assert (first["pairs"], first["conflicts"]) == (2, 2)
    assert first["cosines"] == pytest.approx(-1.0)  # twice cos 120
    assert first["inner_product"] == pytest.approx(-1.0)  # 1 * 2 * cos 120
    assert first["norm_ratio"] == pytest.approx(0.5)
    assert rows["a", "b", None]["inner_product"] == pytest.approx(0.0)
    assert rows["a", "b", "second"]["cosines"] == pytest.approx(2.0)
    assert rows["b", "c", "first"]["cosines"] == pytest.approx(math.cos(math.radians(30)))
    assert rows["b", "c", None]["norm_ratio"] == pytest.approx(math.sqrt(5) / 3)
    assert all(row["conflicts"] == 0 for row in meter.pair_rows(-0.6))
    for layer in meter.layers:  # the sums over pairs are what is counted anyway
        mine = [row for row in rows.values() if row["layer"] == layer]
        assert sum(row["pairs"] for row in mine) == meter.pairs[layer]
        assert sum(row["conflicts"] for row in mine) == meter.scores(0.0)[layer]


def test_pairs_of_tasks_add_up_and_are_saved(tmp_path):
    trunk, heads = network(), heads_of(3)
    meters = [ConflictMeter(trunk, task_pairs=True) for _ in range(3)]
    for seed in range(4):
        meters[0].observe(losses_of(trunk, heads, seed))
        meters[1 + seed // 2].observe_gramians(losses_of(trunk, heads, seed))
    torch.save(meters[1].state_dict(), tmp_path / "search.pt")
    loaded = ConflictMeter(trunk, task_pairs=True)
    for _ in range(2):
        loaded.load_state_dict(torch.load(tmp_path / "search.pt", weights_only=True))
    loaded.merge(meters[2])
    for ours, theirs in zip(loaded.pair_rows(-0.1), meters[0].pair_rows(-0.1), strict=True):
        assert [*ours.values()][:5] == [*theirs.values()][:5]
        assert [*ours.values()][5:] == pytest.approx([*theirs.values()][5:], rel=1e-9)
    with pytest.raises(ValueError, match="task_pairs of the counts must be False. Found True"):
        ConflictMeter(trunk).merge(loaded)
    with pytest.raises(ValueError, match="task_pairs of the counts must be True. Found False"):
        loaded.load_state_dict(ConflictMeter(trunk).state_dict())


def test_frozen_layers_of_a_network_are_left_out():
    trunk, heads = network(), heads_of(2)
    trunk[0].requires_grad_(False)
    meter = ConflictMeter(trunk)
    meter.observe(losses_of(trunk, heads, 0))
    assert meter.layers == ("1", "4", "6")
    with pytest.raises(ValueError, match="layers whose parameters are trained. Found none"):
        ConflictMeter(network().requires_grad_(False))


@pytest.mark.parametrize("severity", [0.3, -1.0, -2.0, math.nan])
def test_severity_outside_is_refused(severity):
    with pytest.raises(ValueError, match=r"severity must lie in \(-1, 0\]. Found severity="):
        ConflictMeter(network(), severities=[0.0, severity])


def test_what_was_not_counted_is_refused():
    meter = ConflictMeter(network(), severities=[0.0, -0.1])
    with pytest.raises(ValueError, match=r"one of \(0.0, -0.1\).* Found severity=-0.2"):
        meter.scores(-0.2)
    with pytest.raises(ValueError, match="layer must be one of .* Found layer='8'"):
        meter.histogram("8")
    with pytest.raises(ValueError, match="bins must rise from -1 to 1"):
        ConflictMeter(network(), bins=(-1, 0, 0, 1))
    shared = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="each parameter in one layer"):
        ConflictMeter({"a": [shared.weight], "b": [shared.weight]})


def test_cosines_of_pairs_by_hand():
    """Lengths 1, 2, 0 and inner product -1 of the first two: cos = -0.5, others undefined."""
    gramian = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    cosines, defined = pair_cosines(gramian)
    assert cosines.tolist() == [-0.5, 0.0, 0.0]
    assert defined.tolist() == [True, False, False]
