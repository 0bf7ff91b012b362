"""Losses and scores of tasks, against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from data_prep import Task
from experiments.mtl import metrics
from experiments.mtl.dense import (
    balanced_cross_entropy,
    depth_loss,
    normals_loss,
    segmentation_loss,
)
from experiments.mtl.metrics import (
    ClassMetric,
    DepthMetric,
    EdgeMetric,
    ImageMeans,
    NormalsMetric,
    SaliencyMetric,
    SegmentationMetric,
)
from experiments.mtl.tasks import task_metric


def maps(*rows):
    """One map (1, 1, h, w)."""
    return torch.tensor([[rows]], dtype=torch.float32)


def directions(*vectors):
    """One row of normals (1, 3, 1, w)."""
    return torch.tensor(vectors, dtype=torch.float32).T[None, :, None]


def test_cross_entropy_counts_only_pixels_with_a_class():
    scores = torch.tensor([[2.0, 0.0, 5.0], [0.0, 0.0, -5.0]])[None, :, None]
    target = torch.tensor([[[0, 1, -1]]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    for kind in (torch.int64, torch.int8):
        assert segmentation_loss(scores, target.to(kind)).item() == pytest.approx(by_hand)
    other = torch.tensor([[[0, 1, 255]]])
    assert segmentation_loss(scores, other, ignore=255).item() == pytest.approx(by_hand)


def test_depth_is_the_mean_error_where_something_was_measured():
    loss = depth_loss(maps((1.0, 5.0), (3.0, 0.5)), maps((2.0, 0.0), (1.0, 0.0)))
    assert loss.item() == pytest.approx((1 + 2) / 2)


def test_normals_cost_one_minus_the_cosine_whatever_their_length():
    prediction = directions((2, 0, 0), (0, 3, 0), (0, 0, -1), (9, 9, 9))
    target = directions((1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0))
    assert normals_loss(prediction, target).item() == pytest.approx((0 + 1 + 2) / 3)


def test_a_normal_whose_components_sum_to_nothing_counts():
    target = directions((1, -1, 0)) / math.sqrt(2)
    assert normals_loss(-target, target).item() == pytest.approx(2)


def test_balanced_cross_entropy_by_hand():
    scores, target = maps((1.0, -1.0, 0.0, 7.0)), maps((1, 0, 0, -1))
    yes, no = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1)) + math.log(2)
    # Two of three pixels say no, so yes weighs 2/3 and no 1/3.
    counted = balanced_cross_entropy(scores, target).item()
    assert counted == pytest.approx((2 / 3 * yes + 1 / 3 * no) / 3)
    fixed = balanced_cross_entropy(scores, target, positive_weight=0.95).item()
    assert fixed == pytest.approx((0.95 * yes + 0.05 * no) / 3)


def test_half_the_weight_each_is_half_the_plain_cross_entropy():
    torch.manual_seed(0)
    scores, target = torch.randn(2, 1, 4, 5), torch.randint(2, (2, 1, 4, 5)).float()
    plain = F.binary_cross_entropy_with_logits(scores, target)
    torch.testing.assert_close(balanced_cross_entropy(scores, target, 0.5), plain / 2)


def test_balanced_cross_entropy_stays_finite_for_large_scores():
    scores = maps((200.0, -200.0)).requires_grad_()
    loss = balanced_cross_entropy(scores, maps((0, 1)))
    loss.backward()
    assert loss.item() == pytest.approx(100)
    assert scores.grad.isfinite().all()


LOSSES = {
    "segmentation": (segmentation_loss, torch.randn(2, 3, 2, 2), torch.full((2, 2, 2), -1)),
    "depth": (depth_loss, torch.randn(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)),
    "normals": (normals_loss, torch.randn(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)),
    "balanced": (balanced_cross_entropy, torch.randn(2, 1, 2, 2), -torch.ones(2, 1, 2, 2)),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_without_a_valid_pixel_a_loss_is_zero_with_a_gradient_of_zeros(kind):
    loss, prediction, target = LOSSES[kind]
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, prediction)
    assert gradient.eq(0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_pixels_without_a_value_get_no_gradient_and_change_nothing(kind):
    loss, prediction, target = LOSSES[kind]
    target = target.clone()
    target[0, ..., 0, 0] = 1
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target) if kind != "balanced" else loss(prediction, target, 0.9)
    value.backward()
    assert prediction.grad[0, :, 0, 0].ne(0).any()
    assert prediction.grad[0, :, 1].eq(0).all()
    assert prediction.grad[1].eq(0).all()
    changed = prediction.detach().clone()
    changed[1] += 1
    again = loss(changed, target) if kind != "balanced" else loss(changed, target, 0.9)
    assert again.item() == value.item()


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_several_losses_can_be_taken_at_once(kind):
    loss, prediction, target = LOSSES[kind]
    target = target.clone()
    target[0, ..., 0, 0] = 1
    prediction = prediction.clone().requires_grad_()
    losses = torch.stack([loss(prediction, target), 3 * loss(prediction[:1], target[:1])])
    (both,) = torch.autograd.grad(
        losses, prediction, torch.eye(2), retain_graph=True, is_grads_batched=True
    )
    for row, one in zip(both, losses, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(one, prediction, retain_graph=True)[0])


@pytest.mark.parametrize("kind", LOSSES)
def test_maps_that_do_not_fit_are_refused(kind):
    loss, prediction, target = LOSSES[kind]
    with pytest.raises(ValueError, match=r"(scores|prediction) must have shape .* Found \(2, "):
        loss(prediction[..., :1], target)


def test_arguments_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"positive_weight must lie in \[0, 1\]. Found 1.5"):
        balanced_cross_entropy(maps((1.0,)), maps((1,)), positive_weight=1.5)
    with pytest.raises(ValueError, match=r"target must have shape \(n, 3, h, w\)"):
        normals_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="tolerance must lie in"):
        EdgeMetric(tolerance=-0.1)
    with pytest.raises(ValueError, match="thresholds must increase"):
        SaliencyMetric([0.5, 0.4])
    with pytest.raises(ValueError, match=r"hold -1 or lie in \[0, 2\). Found values from 0 to 2"):
        SegmentationMetric(2).update(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 2]]]))


def chosen(classes, count):
    """Scores whose largest entry is the given class: (1, count, 1, w)."""
    return F.one_hot(torch.tensor(classes), count).T[None, :, None].float()


def test_miou_and_accuracy_by_hand_over_two_batches():
    score = SegmentationMetric(4)
    score.update(chosen([0, 0, 1], 4), torch.tensor([[[0, 1, 1]]]))
    score.update(chosen([0, 2, 2], 4), torch.tensor([[[0, 0, -1]]]))
    # Class 0: 2 of 4; class 1: 1 of 2; class 2: 0 of 1; class 3 never occurs.
    assert score.compute() == pytest.approx({"miou": (0.5 + 0.5 + 0) / 3, "pixel_accuracy": 3 / 5})


def test_depth_errors_by_hand_over_two_batches_of_different_size():
    score = DepthMetric()
    score.update(maps((3.0, 9.0)), maps((2.0, 0.0)))
    score.update(maps((1.0, 4.0)), maps((4.0, 4.0)))
    expected = {"absolute_error": (1 + 3 + 0) / 3, "relative_error": (0.5 + 0.75 + 0) / 3}
    assert score.compute() == pytest.approx(expected)


def test_depth_errors_image_by_image_leave_out_images_without_a_depth():
    score = ImageMeans(DepthMetric)
    prediction = torch.cat([maps((3.0, 9.0)), maps((1.0, 4.0)), maps((7.0, 7.0))])
    score.update(prediction[:1], maps((2.0, 0.0)))
    score.update(prediction[1:], torch.cat([maps((4.0, 4.0)), maps((0.0, 0.0))]))
    expected = {"absolute_error": (1 + 3 / 2) / 2, "relative_error": (0.5 + 0.75 / 2) / 2}
    assert score.compute() == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs targets with values"):
        ImageMeans(DepthMetric).compute()


@pytest.mark.parametrize("kind", ["depth", "normals", "saliency", "classes"])
def test_depth_and_normals_may_be_taken_image_by_image(kind):
    task = Task("task", kind, ("a", "b") if kind == "classes" else ())
    by_image = isinstance(task_metric(task, per_image=True)._metric, ImageMeans)
    assert by_image == (kind in ("depth", "normals"))
    assert not isinstance(task_metric(task)._metric, ImageMeans)


def turned(*degrees):
    return directions(*((math.cos(math.radians(d)), math.sin(math.radians(d)), 0) for d in degrees))


def test_angles_of_normals_by_hand():
    score = NormalsMetric()
    score.update(5 * turned(0, 10, 20), turned(0, 0, 0))
    score.update(turned(25, 180, 70), torch.cat([turned(0, 0), torch.zeros(1, 3, 1, 1)], dim=3))
    expected = {
        "mean": (0 + 10 + 20 + 25 + 180) / 5, "median": 20,
        "within_11.25": 2 / 5, "within_22.5": 3 / 5, "within_30": 4 / 5,
    }  # fmt: skip
    assert score.compute() == pytest.approx(expected, abs=1e-4)
    score.update(turned(24), turned(0))
    assert score.compute()["median"] == pytest.approx(22, abs=1e-4)


def test_max_f_averages_precision_and_recall_over_images_first():
    score = SaliencyMetric([0.25, 0.5])
    probability = torch.cat([maps((0.9, 0.4), (0.3, 0.1)), maps((0.6, 0.6), (0.0, 0.9))])
    target = torch.cat([maps((1, 1), (0, 0)), maps((1, 0), (0, -1))])
    score.update(probability, target)
    # At 0.25: precision (2/3 + 1/2) / 2, recall 1. At 0.5: (1 + 1/2) / 2 and (1/2 + 1) / 2.
    low, high = 2 * 7 / 12 / (1 + 7 / 12), 0.75
    assert high > low
    assert score.compute()["max_f"] == pytest.approx(high)
    only_low = SaliencyMetric([0.25])
    only_low.update(probability, target)
    assert only_low.compute()["max_f"] == pytest.approx(low)


def test_nothing_found_and_nothing_to_find_count_as_zero_and_both_as_a_full_overlap():
    score = SaliencyMetric([0.5])
    score.update(maps((0.1, 0.2)), maps((1, 0)))
    assert score.compute() == {"max_f": 0, "miou": 0}
    score.update(maps((0.9, 0.2)), maps((1, 0)))
    assert score.compute() == pytest.approx({"max_f": 0.5, "miou": 0.5})
    score.update(maps((0.1, 0.2)), maps((0, 0)))
    assert score.compute() == pytest.approx({"max_f": 1 / 3, "miou": 2 / 3})
    score.update(maps((0.9, 0.2)), maps((0, 0)))
    assert score.compute()["miou"] == pytest.approx(2 / 4)


def test_overlap_of_what_is_salient_by_hand_leaves_out_pixels_without_a_value():
    score = SaliencyMetric([0.25, 0.5])
    score.update(maps((0.9, 0.4, 0.6, 0.1, 0.9)), maps((1, 1, 0, 0, -1)))
    score.update(maps((0.9, 0.3, 0.3, 0.3, 0.9)), maps((1, 0, 0, 0, -1)))
    # At 0.25: 2 of 3 and 1 of 4. At 0.5: 1 of 3 and 1 of 1.
    assert score.compute()["miou"] == pytest.approx((1 / 3 + 1) / 2)


def test_classes_are_counted_over_batches_of_different_size():
    score = ClassMetric()
    score.update(torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1]))
    score.update(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert score.compute() == {"accuracy": 0.5, "error": 0.5}
    with pytest.raises(ValueError, match=r"target must have shape \('any',\). Found \(1, 1\)"):
        score.update(torch.zeros(1, 2), torch.zeros(1, 1))


def edge_score(probability, target, radius, thresholds=(0.5,)):
    diagonal = math.hypot(*target.shape[-2:])
    score = EdgeMetric((radius + 0.01) / diagonal, thresholds)
    score.update(probability, target)
    return score.compute()["ods_f_approximate"]


def test_an_edge_one_pixel_beside_the_true_one_counts_only_with_tolerance():
    target, probability = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    target[..., 2], probability[..., 3] = 1, 0.9
    assert edge_score(probability, target, radius=0) == 0
    assert edge_score(probability, target, radius=1) == 1
    probability[..., 0] = 0.9  # two pixels away: half of what was found is wrong
    assert edge_score(probability, target, radius=1) == pytest.approx(2 * 0.5 / 1.5)


def test_edges_use_the_best_threshold_and_leave_out_pixels_without_a_value():
    target, probability = maps((1, 0, 0, -1)), maps((0.6, 0.4, 0.0, 0.9))
    assert edge_score(probability, target, 0, (0.3,)) == pytest.approx(2 * 0.5 / 1.5)
    assert edge_score(probability, target, 0, (0.3, 0.5)) == 1
    # A pixel without a value is no neighbour either.
    beside = edge_score(maps((0.0, 0.9, 0.0, 0.0, 0.9)), maps((1, -1, 0, 0, 1)), 1)
    assert beside == pytest.approx(2 * 0.5 / 1.5)


def test_without_tolerance_edges_and_a_single_image_of_saliency_agree():
    torch.manual_seed(1)
    probability, target = torch.rand(1, 1, 9, 9), torch.randint(-1, 2, (1, 1, 9, 9)).float()
    saliency = SaliencyMetric(metrics.EDGE_THRESHOLDS)
    saliency.update(probability, target)
    found = edge_score(probability, target, 0, metrics.EDGE_THRESHOLDS)
    assert found == pytest.approx(saliency.compute()["max_f"])


def test_tolerance_never_lowers_the_edge_score():
    torch.manual_seed(2)
    probability, target = torch.rand(2, 1, 12, 12), (torch.rand(2, 1, 12, 12) > 0.9).float()
    found = [edge_score(probability, target, r, metrics.EDGE_THRESHOLDS) for r in range(4)]
    assert found == sorted(found)
    assert found[0] < found[3]


@pytest.mark.parametrize(
    ("score", "prediction", "target"),
    [
        (ClassMetric(), torch.zeros(0, 2), torch.zeros(0)),
        (SegmentationMetric(2), torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), -1)),
        (DepthMetric(), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)),
        (NormalsMetric(), torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)),
        (SaliencyMetric(), torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 1, 1)),
        (EdgeMetric(), torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 1, 1)),
    ],
)
def test_a_score_that_saw_no_value_says_so(score, prediction, target):
    score.update(prediction, target)
    with pytest.raises(ValueError, match="Found none so far"):
        score.compute()


def test_a_perfect_prediction_has_the_best_of_every_score():
    torch.manual_seed(3)
    classes, yes = torch.randint(3, (2, 4, 4)), torch.randint(2, (2, 1, 4, 4)).float()
    depth, normals = torch.rand(2, 1, 4, 4) + 1, torch.randn(2, 3, 4, 4)
    everything = (
        SegmentationMetric(3),
        DepthMetric(),
        NormalsMetric(),
        SaliencyMetric(),
        EdgeMetric(),
    )
    one_hot = F.one_hot(classes, 3).permute(0, 3, 1, 2)
    predictions, targets = (one_hot, depth, normals, yes, yes), (classes, depth, normals, yes, yes)
    for score, prediction, target in zip(everything, predictions, targets, strict=True):
        score.update(prediction, target)
    results = {name: value for score in everything for name, value in score.compute().items()}
    best = {"absolute_error": 0, "relative_error": 0, "mean": 0, "median": 0}
    assert results == pytest.approx({name: best.get(name, 1) for name in results}, abs=1e-3)
