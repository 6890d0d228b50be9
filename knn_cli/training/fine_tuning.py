"""Fine-tuning: which weights are trained, how fast, how close to their first values, with LoRA or adapters.

Layer-wise rates after Clark et al., "ELECTRA" (ICLR 2020, appendix A); the penalty on the distance to the first
weights is L2-SP (Li et al., ICML 2018, arXiv:1802.01483, equation 2), as in CA-MHFA's training; low-rank changes are
LoRA (Hu et al., ICLR 2022, arXiv:2106.09685, equation 3); dropping layers is LayerDrop (Fan et al., ICLR 2020,
arXiv:1909.11556).
Bottleneck adapters are in `networks.encoders.adapters`, masks in `spec_augment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from knn_cli.core.errors import KnnError
from knn_cli.networks.contracts import Encoder
from knn_cli.networks.encoders.adapters import adapters_of
from knn_cli.networks.network import Network
from knn_cli.training.dataset import Rows
from knn_cli.training.recipe import AdapterConfig, LoraConfig, OptimizerConfig, Recipe
from knn_cli.training.spec_augment import SpecAugment

__all__ = ["L2SP", "FineTuner", "LayerDrop", "LowRankUpdate", "depths_below_top", "merged_state", "parameter_groups"]

_MASKS = ("mask_share", "mask_time_share", "mask_feature_share")  # of [augment]


class LowRankUpdate(nn.Module):
    """A parametrization of a weight (out, in): W + alpha / rank * B A; B starts at 0, so nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        if rank > min(weight.shape):
            raise KnnError(f"A rank of {rank} is no low rank of a weight of {tuple(weight.shape)}.", "Lower it.")
        self.factor = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        return weight + self.factor * (self.b @ self.a)


class LayerDrop:
    """Each block of the encoder left out of a step with this probability, the same in all processes.

    The block runs and its result is not used: the point is the regularization, not the time.
    """

    def __init__(self, encoder: Encoder, share: float) -> None:
        self.kept: list[bool] = []
        self.share = share
        self._encoder = encoder
        blocks = encoder.block_list()
        if not blocks or encoder.layers != len(blocks) + 1:  # one layer per block, all of one width
            raise KnnError("tuning.layer_drop needs an encoder of equal blocks, such as wavlm.", "Take that line out.")
        for number, block in enumerate(blocks):
            block.register_forward_hook(self._hook(number))

    def draw(self, random: np.random.Generator) -> None:
        """Choose the blocks of the next step."""
        self.kept = [bool(value >= self.share) for value in random.random(len(self._encoder.block_list()))]

    def _hook(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not self._encoder.training or not self.kept or self.kept[number]:
                return output
            return cast(Tensor, args[0] + 0.0 * output)  # its weights stay in the graph, with gradients of 0

        return hook


class L2SP:
    """L2-SP: a pull of the encoder's weights towards those it began with, strength * |w - w0|^2 added to the loss.

    It is added to the gradient itself, once a step, which costs no graph and is the same in all processes.
    """

    def __init__(self, encoder: nn.Module, strength: float) -> None:
        self.strength = strength
        trained = [weight for weight in encoder.parameters() if weight.requires_grad]
        self._pairs = [(weight, weight.detach().clone()) for weight in trained] if strength else []

    def add(self) -> None:
        """Add the pull's gradient to the weights' gradients."""
        for weight, first in self._pairs:
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - first, alpha=2 * self.strength)

    @torch.no_grad()
    def value(self) -> float:
        """The term itself."""
        return self.strength * sum(float((weight - first).square().sum()) for weight, first in self._pairs)


class FineTuner:
    """What a recipe's fine-tuning does to a network: frozen weights, LoRA, adapters, hooks, and gradients.

    Raises
    ------
    KnnError
        If the recipe asks for what the network does not have, or for what would do nothing.
    """

    def __init__(self, network: Network, recipe: Recipe) -> None:
        encoder = network.encoder
        self.network = network
        if recipe.tuning.lora is not None:
            _add_low_rank(encoder, recipe.tuning.lora)
        if recipe.tuning.adapters is not None:
            _leave_adapters(encoder, recipe.tuning.adapters)
        _freeze(network, recipe.tuning.freeze)
        if not any(weight.requires_grad for weight in encoder.parameters()):
            _refuse_for_frozen(recipe)
        self.l2_sp = L2SP(encoder, recipe.tuning.pull)
        self.layer_drop = LayerDrop(encoder, recipe.tuning.layer_drop) if recipe.tuning.layer_drop else None
        masked = any(getattr(recipe.augment, key) for key in _MASKS)
        self.spec_augment = SpecAugment(encoder, recipe.augment) if masked else None
        self._cnn_factor = recipe.tuning.cnn_gradient
        self._cnn = _convolutions(encoder) if recipe.tuning.cnn_gradient != 1 else []
        if self._cnn and not any(weight.requires_grad for weight in self._cnn):
            raise KnnError("tuning.cnn_gradient does nothing to convolutions that are frozen.", "Take that line out.")

    def train(self) -> None:
        """Training mode, but for what is frozen whole: its batch norms keep their statistics."""
        self.network.train()
        for module in self.network.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()

    def draw(self, random: np.random.Generator) -> None:
        """Choose the blocks that the next step leaves out."""
        if self.layer_drop is not None:
            self.layer_drop.draw(random)

    def set_mask_seeds(self, seeds: Rows) -> None:
        """Give the seeds of the masks of the next batch's clips."""
        if self.spec_augment is not None:
            self.spec_augment.seeds = seeds

    def change_gradients(self) -> None:
        """What happens to gradients between their making and their clipping."""
        for weight in self._cnn:
            if weight.grad is not None:
                weight.grad.mul_(self._cnn_factor)
        self.l2_sp.add()


def parameter_groups(network: Network, recipe: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, one for each learning rate and weight decay; frozen weights are in none.

    Pooling and head have `rate`, weights of the encoder encoder_rate * layer_decay^(`depths_below_top`). Norms and
    biases do not decay.

    Raises KnnError for a layer-wise rate of an encoder without blocks.
    """
    rate = recipe.rate if recipe.encoder_rate is None else recipe.encoder_rate
    if recipe.layer_decay != 1 and not network.encoder.block_list():
        raise KnnError("optimizer.layer_decay needs an encoder of blocks, such as wavlm.", "Take that line out.")
    down = depths_below_top(network.encoder)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        part, _, rest = name.partition(".")
        weight_rate = recipe.rate
        if part == "encoder":
            weight_rate = rate * recipe.layer_decay ** down[rest]
        decay = recipe.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((weight_rate, decay), []).append(weight)
    return [{"params": weights, "lr": each, "weight_decay": decay} for (each, decay), weights in groups.items()]


def depths_below_top(encoder: Encoder) -> dict[str, int]:
    """How far each weight of an encoder lies under its top, by name: 0 behind the blocks, 1 in the last of n blocks,
    n in the first, n + 1 before them.

    What stands behind `blocks` in the encoder lies behind them, but a list as long as they are, whose parts go with
    them. All weights of an encoder without blocks lie at 1.
    """
    children, count = dict(encoder.named_children()), len(encoder.block_list())
    order = list(children)
    place = order.index("blocks") if count else len(order)
    found = {}
    for name, _ in encoder.named_parameters():
        child, _, rest = name.partition(".")
        module = children.get(child)
        behind = child in order[place:] or (child == "norm" and encoder.norm_after_blocks)
        if behind and isinstance(module, nn.ModuleList) and len(module) == count:
            found[name] = count - int(rest.partition(".")[0])
        else:
            found[name] = 0 if behind else count + 1
    return found


def merged_state(network: Network) -> Mapping[str, Tensor]:
    """The network's weights as a plain network has them, low-rank changes added in; nothing is changed."""
    plain = {}
    for name, value in network.state_dict().items():
        if ".parametrizations.weight." not in name:
            plain[name] = value
        elif name.endswith(".parametrizations.weight.original"):
            owner = name.removesuffix(".parametrizations.weight.original")
            with torch.no_grad():
                plain[f"{owner}.weight"] = cast(Tensor, network.get_submodule(owner).weight).detach()
    return plain


def _add_low_rank(encoder: nn.Module, recipe: LoraConfig) -> None:
    linears = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: linear for name, linear in linears.items() if name.rpartition(".")[2] in recipe.targets}
    missing = set(recipe.targets) - {name.rpartition(".")[2] for name in chosen}
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linears})
        raise KnnError(
            f"The encoder has no linear layer named {sorted(missing)[0]!r} for LoRA.", f"Known: {', '.join(known)}."
        )
    encoder.requires_grad_(False)
    for linear in chosen.values():
        parametrize.register_parametrization(linear, "weight", LowRankUpdate(linear.weight, recipe.rank, recipe.alpha))


def _leave_adapters(encoder: Encoder, recipe: AdapterConfig) -> None:
    """Freeze all of the encoder but its adapters, and the norms of its blocks where they are asked for."""
    encoder.requires_grad_(False)
    for weight in adapters_of(encoder).values():
        weight.requires_grad_(True)
    for block in encoder.block_list() if recipe.norms else ():
        for norm in block.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.requires_grad_(True)


def _refuse_for_frozen(recipe: Recipe) -> None:
    """KnnError for what changes how an encoder learns, where it does not."""
    for key, asked in (
        *((f"augment.{key}", getattr(recipe.augment, key) > 0) for key in _MASKS),
        ("tuning.layer_drop", recipe.tuning.layer_drop > 0),
        ("tuning.pull", recipe.tuning.pull > 0),
        ("optimizer.encoder_rate", recipe.optimizer.encoder_rate is not None),
        ("optimizer.layer_decay", recipe.optimizer.layer_decay != 1),
    ):
        if asked:
            raise KnnError(
                f"{key} does nothing to an encoder that is frozen whole.",
                "Take that line out, or shorten tuning.freeze.",
            )


def _freeze(network: Network, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
            known = sorted({".".join(name.split(".")[:2]) for name in names})
            raise KnnError(f"There is nothing named {prefix!r} to freeze.", f"Such as: {', '.join(known)}.")
    for name, weight in network.named_parameters():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise KnnError("All weights are frozen, so there is nothing to train.", "Shorten tuning.freeze.")


def _convolutions(encoder: Encoder) -> list[nn.Parameter]:
    weights = encoder.convolution_weights()
    if not weights:
        raise KnnError("tuning.cnn_gradient is about the convolutions of wavlm.", "Take that line out.")
    return weights
