"""Heads: answers by hand, the published formulas written out, and what must hold for every head in the table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import HEADS
from knn_cli.networks.heads.margins import MarginSchedule, away, towards
from knn_cli.networks.heads.softmax import AAMSoftmax, AMSoftmax, Softmax
from knn_cli.networks.heads.sphere import SphereFace, SphereFace2

DIMENSION, CLASSES, BATCH = 5, 4, 6


def embeddings_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, DIMENSION, generator=generator) * 2, torch.tensor([0, 1, 2, 3, 3, 0])


def build(name: str, **args: Any) -> Any:
    torch.manual_seed(4)
    return HEADS.build(name, dimension=DIMENSION, classes=CLASSES, **args).eval()


def with_centres(head: Any, *rows: list[float]) -> Any:
    with torch.no_grad():
        head.weight.copy_(torch.tensor(rows))
    return head


def at_degrees(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


# By hand: two classes of the plane, one at 0 and one at 90 degrees.


def test_am_softmax_by_hand() -> None:
    head = with_centres(AMSoftmax(2, 2, margin=0.1, scale=10), [3.0, 0.0], [0.0, 0.2])
    embeddings = 7 * at_degrees(60)
    expected = [10 * (0.5 - 0.1), 10 * cos(30)]
    assert head(embeddings, torch.tensor([0]))[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert head.logits(embeddings)[0].tolist() == pytest.approx([5, 10 * cos(30)], abs=1e-5)
    loss = head.loss(embeddings, torch.tensor([0])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(expected[1] - expected[0])), abs=1e-5)


def test_aam_softmax_by_hand() -> None:
    """15 degrees further; within the margin of 180 a shift instead; above 90 nothing with the easy margin."""
    margin = math.radians(15)
    hard, easy = (AAMSoftmax(2, 2, margin=margin, scale=1, easy_margin=easy) for easy in (False, True))
    for head in (hard, easy):
        with_centres(head, [1.0, 0.0], [0.0, 1.0])
    embeddings, labels = at_degrees(60, 100, 170), torch.tensor([0, 0, 0])
    expected = [cos(75), cos(115), cos(170) - (1 - cos(15))]
    assert hard(embeddings, labels)[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert easy(embeddings, labels)[:, 0].tolist() == pytest.approx([cos(75), cos(100), cos(170)], abs=1e-6)
    torch.testing.assert_close(hard(embeddings, labels)[:, 1], hard.logits(embeddings)[:, 1])


def test_subcenters_are_consecutive_rows_and_the_nearest_counts() -> None:
    head = AAMSoftmax(2, 2, margin=0, scale=2, subcenters=2)
    with torch.no_grad():
        head.weight.copy_(at_degrees(0, 90, 180, 270))  # class 0 at 0 and 90, class 1 at 180 and 270
    expected = [[2 * cos(20), 2 * cos(90 + 20)], [2 * cos(10), 2 * cos(80)]]
    torch.testing.assert_close(head.logits(at_degrees(20, 100)), torch.tensor(expected))


def test_inter_top_k_by_hand() -> None:
    """At 30 degrees class 0 is the target; of those at 40, 80 and 200 the nearest 1 or 2 come 6 degrees nearer."""
    expected = torch.tensor([cos(30 + 12), cos(10), cos(50), cos(170)])
    nearer = torch.tensor([cos(42), cos(10 - 6), cos(50 - 6), cos(170 - 6)])
    for top_k in (0, 1, 2, 3, 9):
        penalty = math.radians(6) * 0.2 / math.radians(12)  # stated at a margin of 0.2, here it is 12 degrees
        head = AAMSoftmax(2, 4, margin=math.radians(12), scale=1, top_k=top_k, penalty=penalty)
        with torch.no_grad():
            head.weight.copy_(at_degrees(0, 40, 80, 200))
        now = torch.cat((expected[:1], nearer[1 : 1 + top_k], expected[1 + top_k :]))
        torch.testing.assert_close(head(at_degrees(30), torch.tensor([0]))[0], now)
        torch.testing.assert_close(head(at_degrees(30), torch.tensor([0]), margin=0.0), head.logits(at_degrees(30)))


def test_sphereface_by_hand() -> None:
    """Length 2, angles doubled: 60 -> cos 120; 120 -> -cos 240 - 2; half and half with the cosine."""
    head = with_centres(SphereFace(2, 2, margin=2, relaxation=1), [1.0, 0.0], [0.0, 1.0])
    scores = head(2 * at_degrees(60, 120), torch.tensor([0, 0]))[:, 0]
    assert scores.tolist() == pytest.approx([cos(60) + cos(120), cos(120) - cos(240) - 2], abs=1e-5)


def test_sphereface2_by_hand() -> None:
    """Spread 1 leaves cosines alone. Yes: 4 (0.5 - 0.1) + 1; no: 4 (cos 30 + 0.1) + 1."""
    head = with_centres(SphereFace2(2, 2, margin=0.1, scale=4, balance=0.75, spread=1), [1.0, 0.0], [0.0, 1.0])
    with torch.no_grad():
        head.bias.fill_(1.0)
    yes, no = 4 * 0.4 + 1, 4 * (cos(30) + 0.1) + 1
    assert head(at_degrees(60), torch.tensor([0]))[0].tolist() == pytest.approx([yes, no], abs=1e-5)
    loss = head.loss(at_degrees(60), torch.tensor([0])).item()
    assert loss == pytest.approx(0.75 * math.log(1 + math.exp(-yes)) + 0.25 * math.log(1 + math.exp(no)), abs=1e-5)


def test_class_weights_and_label_smoothing_by_hand() -> None:
    """Scores 0 and log 3: p is 1/4 and 3/4. Smoothing by 0.2 gives the target 0.9 and the other class 0.1."""
    head = Softmax(1, 2, normalize=False, class_weights=[3.0, 1.0])
    smooth = Softmax(1, 2, normalize=False, label_smoothing=0.2)
    for each in (head, smooth):
        with torch.no_grad():
            each.trans[0].weight.zero_()
            each.trans[0].bias.copy_(torch.tensor([0.0, math.log(3)]))
    embeddings, labels = torch.zeros(2, 1), torch.tensor([0, 1])
    assert head.loss(embeddings, labels).item() == pytest.approx((3 * math.log(4) + math.log(4 / 3)) / 4)
    expected = 0.9 * math.log(4) + 0.1 * math.log(4 / 3)
    assert smooth.loss(embeddings[:1], labels[:1]).item() == pytest.approx(expected)
    binary = with_centres(SphereFace2(1, 2, class_weights=[3.0, 1.0]), [1.0], [0.5])
    parts = [binary.loss(torch.ones(1, 1), torch.tensor([label])).item() for label in (0, 1)]
    both = binary.loss(torch.ones(2, 1), labels).item()
    assert both == pytest.approx((3 * parts[0] + parts[1]) / 4)


# The formulas as papers and wespeaker print them, without continuations or floors.


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("subcenters", "top_k"), [(1, 0), (3, 0), (3, 2)])
def test_aam_softmax_equals_the_formula(margin: float, subcenters: int, top_k: int) -> None:
    head = build("aam-softmax", margin=margin, subcenters=subcenters, top_k=top_k)
    embeddings, labels = embeddings_and_labels()
    scores = torch.empty(BATCH, CLASSES)
    for b, (x, label) in enumerate(zip(embeddings, labels.tolist(), strict=True)):
        rows = head.weight.detach().split(subcenters)
        angles = [math.acos(max(float(F.cosine_similarity(x, row, dim=0)) for row in each)) for each in rows]
        others = sorted((angle, c) for c, angle in enumerate(angles) if c != label)
        hard = {c for _, c in others[:top_k]}
        for c, angle in enumerate(angles):
            turned = angle + margin if c == label else angle - 0.06 * margin / 0.2 if c in hard else angle
            scores[b, c] = 32 * math.cos(turned)
    torch.testing.assert_close(head(embeddings, labels), scores, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(head.loss(embeddings, labels), F.cross_entropy(scores, labels), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_sphereface_equals_the_duplication_formulas(margin: int) -> None:
    """Chebyshev polynomials, as implementations for whole margins have them."""
    head = build("sphereface", margin=margin)
    embeddings, labels = embeddings_and_labels()
    cosines = head.cosines(embeddings).detach()
    power = [cosines, 2 * cosines**2 - 1, 4 * cosines**3 - 3 * cosines, 8 * cosines**4 - 8 * cosines**2 + 1][margin - 1]
    k = (margin * cosines.acos() / math.pi).floor()
    folded = (-1.0) ** k * power - 2 * k
    scores = cosines + F.one_hot(labels, CLASSES) * (folded - cosines) / 6
    torch.testing.assert_close(head(embeddings, labels), embeddings.norm(dim=1, keepdim=True) * scores)


@pytest.mark.parametrize("margin_on", ["cosine", "angle"])
def test_sphereface2_equals_the_formula(margin_on: str) -> None:
    head = build("sphereface2", margin_on=margin_on)
    embeddings, labels = embeddings_and_labels()
    cosines, target = head.cosines(embeddings).detach().double(), F.one_hot(labels, CLASSES).bool()
    if margin_on == "angle":
        angle = cosines.acos() + torch.where(target, 0.2, -0.2)
        spread = 2 * ((angle.cos() + 1) / 2) ** 3 - 1
    else:
        spread = 2 * ((cosines + 1) / 2) ** 3 - 1 + torch.where(target, -0.2, 0.2)
    scores = 32 * spread
    losses = torch.where(target, 0.7 * (1 + (-scores).exp()).log(), 0.3 * (1 + scores.exp()).log())
    torch.testing.assert_close(head(embeddings, labels).double(), scores, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(head.loss(embeddings, labels).double(), losses.sum(1).mean(), atol=1e-4, rtol=1e-5)


def test_softmax_equals_the_forks_layers() -> None:
    head = build("softmax")
    assert set(head.state_dict()) == {
        *(f"trans.0.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"trans.2.{key}" for key in ("weight", "bias")),
    }
    embeddings, labels = embeddings_and_labels()
    linear = head.trans[2]
    expected = F.relu(embeddings / math.sqrt(1 + 1e-5)) @ linear.weight.T + linear.bias
    torch.testing.assert_close(head(embeddings, labels), expected)


# Margins.


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 3.1), st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_margins_never_turn_the_order_around(margin: float, cosines: list[float]) -> None:
    """A nearer embedding scores higher with any margin; a margin makes the target worse and a rival better."""
    ordered = torch.tensor(sorted(cosines), dtype=torch.float64)
    for curve, sign in ((away, -1), (towards, 1)):
        values = curve(ordered, margin)
        assert (values.diff() >= -1e-6).all()
        assert (sign * (values - ordered) >= -2e-6).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 5), st.floats(0, 180), st.floats(0, 180))
def test_sphereface_never_turns_the_order_around(margin: float, angle: float, other: float) -> None:
    head = with_centres(SphereFace(2, 2, margin=margin, relaxation=0), [1.0, 0.0], [0.0, 1.0])
    near, far = head(at_degrees(min(angle, other), max(angle, other)), torch.tensor([0, 0]))[:, 0].tolist()
    assert near >= far - 1e-4


def test_a_larger_margin_is_a_larger_loss() -> None:
    embeddings, labels = embeddings_and_labels()
    for name, margins in (
        ("am-softmax", (0.0, 0.1, 0.4)),
        ("aam-softmax", (0.0, 0.1, 0.4)),
        ("sphereface", (1.0, 1.5, 4.0)),
        ("sphereface2", (0.0, 0.1, 0.4)),
    ):
        head = build(name)
        losses = [head.loss(embeddings, labels, margin=margin).item() for margin in margins]
        assert losses == sorted(losses) and losses[0] < losses[-1]
        head.set_margin(margins[1])
        assert head.loss(embeddings, labels).item() == losses[1]


def test_one_subcenter_is_none_and_equal_ones_are_one() -> None:
    embeddings, labels = embeddings_and_labels()
    for name in ("am-softmax", "aam-softmax"):
        single, three = build(name, subcenters=1), build(name, subcenters=3)
        with torch.no_grad():
            three.weight.copy_(single.weight.repeat_interleave(3, dim=0))
        torch.testing.assert_close(three(embeddings, labels), single(embeddings, labels))


def test_margin_schedule() -> None:
    linear = MarginSchedule(0.1, 0.5, steps=4, delay=2, kind="linear")
    assert [linear.at(step) for step in (0, 2, 3, 4, 6, 99)] == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.5, 0.5])
    exponential = MarginSchedule(0.0, 0.2, steps=100)
    assert exponential.at(50) == pytest.approx(0.2 * (1 - math.sqrt(0.001)))
    margins = [exponential.at(step) for step in range(120)]
    assert margins == sorted(margins) and margins[0] == 0 and margins[100] == 0.2
    assert MarginSchedule(0.0, 0.2, steps=0).at(0) == 0.2
    for wrong in ({"kind": "cosine"}, {"steps": -1}, {"delay": -1}, {"end": math.nan}):
        with pytest.raises(KnnError):
            MarginSchedule(**{"start": 0.0, "end": 0.2, "steps": 10, **wrong})


# The contract, of every head.


@pytest.fixture(params=HEADS.names())
def head(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def test_contract_shapes_and_plain_margin(head: Any) -> None:
    """Without margin, training scores are those of inference; labels do not change inference."""
    embeddings, labels = embeddings_and_labels()
    scores = head.logits(embeddings)
    assert scores.shape == head(embeddings, labels).shape == (BATCH, CLASSES) and scores.dtype == torch.float32
    torch.testing.assert_close(head(embeddings, labels, margin=head.plain_margin), scores, atol=2e-5, rtol=1e-5)
    loss = head.loss(embeddings, labels)
    assert loss.shape == () and loss.dtype == torch.float32 and loss > 0


def test_contract_gradient_is_finite_at_the_ends(head: Any) -> None:
    """Also where an embedding lies on its centre, opposite to it, on a rival's, or at zero."""
    embeddings, labels = embeddings_and_labels()
    if hasattr(head, "weight"):
        rows = head.weight.detach()
        embeddings = torch.stack((rows[0], -rows[1], 5 * rows[0], -rows[0], 0 * rows[0], 1e-4 * rows[0]))
    embeddings.requires_grad_()
    loss = head.loss(embeddings, labels)
    loss.backward()
    assert loss.isfinite() and embeddings.grad is not None and embeddings.grad.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_contract_learns(head: Any) -> None:
    """A few steps on the embeddings themselves put every clip into its class."""
    embeddings, labels = embeddings_and_labels()
    embeddings.requires_grad_()
    optimiser = torch.optim.Adam([embeddings, *head.train().parameters()], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        head.loss(embeddings, labels).backward()
        optimiser.step()
    assert (head.logits(embeddings).argmax(dim=1) == labels).all()


def test_contract_half_precision(head: Any) -> None:
    """Under bfloat16 autocast scores are float32, and those of the cosine heads lose nothing."""
    embeddings, labels = embeddings_and_labels()
    exact = head(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(embeddings, labels)
        loss = head.loss(embeddings, labels)
        of_half = head(embeddings.bfloat16(), labels)
    assert rough.dtype == of_half.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(
        rough, exact, **({"atol": 0, "rtol": 0} if head.has_margin else {"atol": 0.05, "rtol": 0.02})
    )
    torch.testing.assert_close(of_half, head(embeddings.bfloat16().float(), labels), atol=0.05, rtol=0.02)


def test_contract_weights_save_and_load(head: Any, request: pytest.FixtureRequest) -> None:
    """The state holds no margin and no class weights: those are the recipe's."""
    other = build(request.node.callspec.params["head"], class_weights=[1.0, 2.0, 3.0, 4.0])
    other.load_state_dict(head.state_dict())
    embeddings, _ = embeddings_and_labels()
    torch.testing.assert_close(other.logits(embeddings), head.logits(embeddings), atol=0, rtol=0)


def test_arguments_that_cannot_be_are_refused() -> None:
    for name, args, complaint in (
        ("softmax", {"classes": 1}, "2 classes"),
        ("softmax", {"label_smoothing": 1.0}, "smoothing"),
        ("softmax", {"class_weights": [1.0, 2.0]}, "2 class weights"),
        ("softmax", {"class_weights": [1.0, 2.0, 0.0, 1.0]}, "class weights"),
        ("softmax", {"class_weights": [1.0, 2.0, math.nan, 1.0]}, "class weights"),
        ("softmax", {"scale": 3.0}, "scale"),
        ("am-softmax", {"margin": -0.1}, "margin of -0.1"),
        ("am-softmax", {"scale": 0.0}, "scale"),
        ("am-softmax", {"subcenters": 0}, "sub-center"),
        ("aam-softmax", {"margin": 3.2}, "margin of 3.2"),
        ("aam-softmax", {"top_k": -1}, "penalty"),
        ("sphereface", {"margin": 0.0}, "margin of 0"),
        ("sphereface", {"relaxation": -1.0}, "relaxation"),
        ("sphereface2", {"balance": 1.0}, "balance"),
        ("sphereface2", {"margin_on": "C"}, "margin on 'C'"),
        ("sphereface2", {"label_smoothing": 0.1}, "label_smoothing"),
    ):
        with pytest.raises(KnnError, match=complaint):
            HEADS.build(name, **{"dimension": DIMENSION, "classes": CLASSES, **args})
    with pytest.raises(KnnError, match="no margin"):
        build("softmax").set_margin(0.2)
    with pytest.raises(KnnError, match="margin of nan"):
        build("aam-softmax").set_margin(math.nan)
